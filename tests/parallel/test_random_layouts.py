"""What `triax check` accepts is exact: models and layouts at random.

`TRIAX_SEEDS=100-200 pytest tests/parallel/test_random_layouts.py` tries others than the usual.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fleet import run_fleet
from parity import TOLERANCE
from random_cases import random_case, random_model
from relay import check_relay
from worlds import difference, engine_run, merged, plain_run

FIRST, _, LAST = os.environ.get("TRIAX_SEEDS", "1-2").partition("-")
SEEDS = range(int(FIRST), int(LAST))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_layout_is_one_process(seed: int) -> None:
    random = Random(seed)
    num_processes, case = random_case(random, random_model(random))
    [expected] = run_fleet(1, plain_run, replace(case, parallel={}))
    found = difference(merged(run_fleet(num_processes, engine_run, case, timeout=240)), expected)
    assert found.worst <= TOLERANCE, (found, num_processes, case)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_layout_goes_on_from_another(tmp_path: Path, seed: int) -> None:
    random = Random(1_000_000 + seed)
    model = random_model(random)
    given = {"global_batch_size": 8, "documents": "random"}
    check_relay(tmp_path, [random_case(random, model, **given) for _ in range(3)])
