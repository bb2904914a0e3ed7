"""What `triax check` refuses of the deepspeed engine: with a reason, and with what works."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from typing import Any

import pytest

from triax.launcher.checks import deepspeed as deepspeed_checks
from triax.launcher.config.problems import Problem
from triax.parallel.config import ParallelConfig
from triax.training.stability_config import FaultsConfig

CHECKS = (
    deepspeed_checks.deepspeed_is_installed,
    deepspeed_checks.deepspeed_runs_zero_stage,
    deepspeed_checks.deepspeed_runs_layout,
    deepspeed_checks.deepspeed_recomputes,
    deepspeed_checks.offload_fits_engine,
)


def problems(**fields: Any) -> list[Problem]:
    parallel = ParallelConfig(**fields)
    return list(itertools.chain.from_iterable(check(parallel) for check in CHECKS))


REFUSED = [
    ({"zero_stage": 0}, "zero_stage"),
    ({"zero_stage": 2, "pipeline": 2}, "zero_stage"),
    ({"zero_stage": 3, "pipeline": 2}, "zero_stage"),
    *(
        ({"pipeline": 2, "pipeline_schedule": schedule}, "pipeline_schedule")
        for schedule in ("gpipe", "interleaved-1f1b", "zbv-zero-bubble", "dualpipe-v")
    ),
    ({"replicate": 2}, "replicate"),
    ({"compile": True}, "compile"),
    ({"async_tensor": True, "tensor": 2}, "async_tensor"),
    (
        {"activation_checkpointing": "selective", "tensor": 2, "sequence_parallel": False},
        "activation_checkpointing",
    ),
    ({"activation_checkpointing": "selective", "zero_stage": 3}, "activation_checkpointing"),
    ({"offload": "cpu", "zero_stage": 1}, "offload"),
    ({"offload": "cpu", "pipeline": 2}, "offload"),
    ({"offload": "nvme", "zero_stage": 2, "offload_path": "/drive"}, "offload"),
    ({"offload": "nvme", "zero_stage": 3}, "offload_path"),
    ({"offload": "cpu", "zero_stage": 3, "offload_path": "/drive"}, "offload_path"),
]


@pytest.mark.parametrize(("fields", "path"), REFUSED, ids=str)
def test_what_is_refused_says_why_and_what_else(fields: dict[str, Any], path: str) -> None:
    [problem] = problems(engine="deepspeed", **fields)
    assert problem.path == f"parallel.{path}"
    assert "use " in problem.message
    without_offload = {n: value for n, value in fields.items() if not n.startswith("offload")}
    assert problems(engine="native", **without_offload) == []


def test_only_stages_that_work_are_advised() -> None:
    [problem] = problems(engine="deepspeed", offload="nvme", offload_path="/drive", zero_stage=1)
    assert problem.message.endswith("use 3")


def test_offload_needs_the_engine() -> None:
    [problem] = problems(offload="cpu", zero_stage=3)
    assert str(problem.path) == "parallel.offload" and "deepspeed" in problem.message


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 2, "tensor": 2, "activation_checkpointing": "selective"},
        {"pipeline": 2, "zero_stage": 1, "pipeline_split": (1, 3)},
        {"zero_stage": 2, "offload": "cpu"},
        {"zero_stage": 3, "offload": "nvme", "offload_path": "/drive"},
    ],
    ids=str,
)
def test_what_works_is_not_refused(fields: dict[str, Any]) -> None:
    assert problems(engine="deepspeed", **fields) == []


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    [problem] = problems(engine="deepspeed")
    assert problem.path == "parallel.engine"
    assert "deepspeed and megatron-core are not installed" in problem.message
    assert 'pip install "triax[deepspeed]"' in problem.message


def test_the_import_says_it_too_and_is_quiet_otherwise() -> None:
    """Where the check can't know: a package that is there, but broken."""
    module = "triax.parallel.engines.deepspeed"
    quiet = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert quiet.stdout + quiet.stderr == ""
    code = f"import sys; sys.modules['deepspeed'] = None\nimport {module}"
    broken = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert broken.returncode != 0
    assert 'pip install "triax[deepspeed]"' in broken.stderr


@pytest.mark.parametrize(
    ("engine", "rank", "are_refused"),
    [("deepspeed", 1, True), ("deepspeed", None, False), ("native", 1, False)],
)
def test_a_weight_of_one_process_alone_is_not_to_be_flipped(
    engine: Any, rank: int | None, are_refused: bool
) -> None:
    plan = ({"kind": "kill", "step": 1}, {"kind": "flip-weight", "step": 2, "rank": rank})
    faults = FaultsConfig.model_validate({"plan": plan})
    found = list(deepspeed_checks.deepspeed_flips_together(ParallelConfig(engine=engine), faults))
    assert [problem.path for problem in found] == ["faults.plan.1.rank"] * are_refused
