"""Imports the packages of the `deepspeed` extra where they are, once for all forked processes."""

from __future__ import annotations

import contextlib
import importlib.util

from triax.common.errors import UserError

# Where DeepSpeed isn't, the engine's import would still ask for a GPU before it says so.
if importlib.util.find_spec("deepspeed") is not None:
    with contextlib.suppress(UserError):
        import triax.parallel.engines.deepspeed  # noqa: F401
