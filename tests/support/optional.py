"""Imports the packages of the `deepspeed` extra where they are, once for all forked processes."""

from __future__ import annotations

import contextlib

from triax.common.errors import UserError

with contextlib.suppress(UserError):
    import triax.parallel.engines.deepspeed  # noqa: F401
