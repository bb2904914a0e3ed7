"""Fixtures for the checkpoint tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import checkpoint_ranks


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`run_ranks(function, num_ranks, *args)`: what `function(group, *args)` gives on each rank."""

    def run(function: Callable[..., Any], num_ranks: int, *args: Any, **options: Any) -> list[Any]:
        return checkpoint_ranks.run_ranks(function, num_ranks, tmp_path, *args, **options)

    return run
