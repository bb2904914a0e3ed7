"""The name that batch scripts of version 0.1 call; `triax.launcher.slurm.placement` is today's."""

from __future__ import annotations

import sys

from triax.launcher.slurm.placement import main

if __name__ == "__main__":
    sys.exit(main())
