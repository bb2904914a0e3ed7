"""triax from Python: `train`, `load`, `plan` and `Run`.

Importing it is quick: what a name needs, torch for the first two, is imported when it is asked
for. docs/python.md has examples; the command line is `triax.launcher.cli`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triax.common.errors import UserError
    from triax.launcher.api.models import LoadedModel, load
    from triax.launcher.api.planning import plan
    from triax.launcher.api.runs import Run
    from triax.launcher.api.training import Progress, train

_HOMES = {
    "LoadedModel": "triax.launcher.api.models",
    "Progress": "triax.launcher.api.training",
    "Run": "triax.launcher.api.runs",
    "UserError": "triax.common.errors",
    "load": "triax.launcher.api.models",
    "plan": "triax.launcher.api.planning",
    "train": "triax.launcher.api.training",
}

__all__ = ["LoadedModel", "Progress", "Run", "UserError", "load", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'triax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
