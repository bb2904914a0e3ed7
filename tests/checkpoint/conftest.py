"""Fixtures for the checkpoint tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_ranks
import pytest


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`run_ranks(function, num_ranks, *args)`: what `function(group, *args)` gives on each rank."""

    def run(function: Callable[..., Any], num_ranks: int, *args: Any, **options: Any) -> list[Any]:
        return checkpoint_ranks.run_ranks(function, num_ranks, tmp_path, *args, **options)

    return run
