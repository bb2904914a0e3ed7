"""Half precision on a whole job: overflows are skipped, the loss scale is part of the state."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import CONFIG, curve, kills, read_events, read_rows, train

from triax.launcher.cluster.launchers import discover
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.loading import parse_config
from triax.launcher.job import precision
from triax.training.records.hardware import multiplies_bf16


@pytest.mark.parametrize("num_processes", [1, 2])
def test_fp16_finds_its_loss_scale_and_resumes_with_it(job: Path, num_processes: int) -> None:
    large = 2.0**24
    fp16: tuple[str, ...] = ("--precision.compute=fp16", f"--precision.initial_loss_scale={large}")
    fp16 += ("--precision.loss_scale_window=4", "--eval.every=none", "--parallel.zero_stage=2")
    for overrides, code in ((("--run.name=straight",), 0), ((kills(("after-update", 11, 0)),), -9)):
        ended = train(job, *fp16, *overrides, num_processes=num_processes)
        assert ended.code == code, ended.text
    ended = train(job, *fp16, num_processes=num_processes)
    assert ended.code == 0, ended.text
    rows, straight = read_rows(job / "runs/job"), read_rows(job / "runs/straight")
    names = ("step", "loss", "grad_norm", "loss_scale", "skipped")
    figures = [[repr(row[name]) for name in names] for row in rows]
    assert figures == [[repr(row[name]) for name in names] for row in straight]

    skipped = [row["step"] for row in rows if row["skipped"]]
    assert skipped[0] == 1 and len(skipped) < 12
    assert [event["step"] for event in read_events(job / "runs/straight", "skipped_update")] == (
        skipped
    )
    scales = [row["loss_scale"] for row in rows]
    assert scales[0] == large
    for before, row, after in zip(scales, rows, scales[1:], strict=False):
        assert after == before / 2 if row["skipped"] else after in (before, before * 2)
    assert min(scales) * 2 in scales[scales.index(min(scales)) :], "the scale grew again"
    losses = [event["loss"] for event in read_events(job / "runs/job", "evaluation")]
    assert losses[-1] < losses[0] - 1


def test_fp8_learns_as_bf16_does_and_resumes_bitwise(job: Path) -> None:
    """The validation loss after 24 steps on real text; tokens and shapes are those of fp8."""
    fp8 = ("--precision.compute=fp8", "--eval.every=none")
    bf16 = ("--precision.compute=bf16", "--eval.every=none", "--run.name=bf16")
    done = (train(job, *bf16), train(job, *fp8, "--run.name=straight"))
    assert all(ended.code == 0 for ended in done), [ended.text for ended in done]
    assert train(job, *fp8, kills(("after-update", 11, 0))).code == -9
    assert train(job, *fp8).code == 0
    assert curve(job / "runs/job") == curve(job / "runs/straight")
    last = {
        name: read_events(job / "runs" / name, "evaluation")[-1]["loss"]
        for name in ("bf16", "straight")
    }
    assert 1e-5 < abs(last["straight"] / last["bf16"] - 1) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("compute", ["bf16", "fp8"])
def test_a_compiled_run_on_a_gpu_resumes_bitwise(job: Path, compute: str) -> None:
    fast: tuple[str, ...] = (
        f"--precision.compute={compute}",
        "--precision.gradients=bf16",
        "--eval.every=none",
    )
    fast += ("--optimizer.state_dtype=bf16", "--parallel.compile=true", "--run.deterministic=true")
    # The first of them compiles everything.
    ended = train(job, *fast, "--run.name=straight", timeout=300)
    assert ended.code == 0, ended.text
    assert train(job, *fast, kills(("after-update", 11, 0))).code == -9
    assert train(job, *fast).code == 0
    assert curve(job / "runs/job") == curve(job / "runs/straight")


def test_bf16_learns(job: Path) -> None:
    ended = train(job, "--precision.compute=bf16", "--eval.every=none")
    assert ended.code == 0, ended.text
    losses = [event["loss"] for event in read_events(job / "runs/job", "evaluation")]
    assert losses[-1] < losses[0] - 1.5


def test_auto_is_resolved_for_the_run(job: Path) -> None:
    ended = train(job, "--precision.compute=auto", "--budget.tokens=512", "--eval.every=none")
    assert ended.code == 0, ended.text
    compute = tomllib.loads((job / "runs/job/config.toml").read_text())["precision"]["compute"]
    assert compute == ("bf16" if multiplies_bf16(torch.device("cpu")) else "fp32")
    assert f"auto     {compute}: cpu has " in ended.out
    # To go on with what it became is no change.
    again = train(job, "--precision.compute=auto", "--budget.tokens=1024", "--eval.every=none")
    assert again.code == 0 and "precision" not in again.out.replace("precision.compute", "")
    assert f"auto     {compute}: as the run began" in again.out


@pytest.mark.parametrize(
    ("compute", "here", "there", "expected"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp32"),
        ("auto", False, True, "fp32"),
        ("fp16", True, True, "fp16"),
    ],
)
def test_all_ranks_take_bf16_or_none(
    compute: str, here: bool, there: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduced(value: bool, merge: Callable[[bool, bool], bool], _group: object) -> bool:
        return merge(value, there)

    monkeypatch.setattr(precision, "multiplies_bf16", lambda _device: here)
    monkeypatch.setattr(precision, "reduce_objects", reduced)
    config = parse_config("run.toml", CONFIG, [f"precision.compute={compute}"])
    processes = Processes(discover({}), torch.device("cpu"), None, None)
    assert precision.with_precision(config, processes).precision.compute == expected


@pytest.mark.parametrize(
    ("text", "has_bf16", "expected"),
    [
        ('[precision]\ncompute = "fp32"\n', True, "fp32"),
        ('[precision]\ncompute = "bf16"\n', False, "bf16"),
        ('[precision]\ncompute = "fp8"\n', True, "bf16"),
        ("precision = 1\n", True, "bf16"),
        ("[precision", False, "fp32"),
    ],
)
def test_a_run_that_goes_on_keeps_what_auto_was(
    text: str, has_bf16: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _device: has_bf16)
    resolved = tmp_path / "config.toml"
    resolved.write_text(text)
    config = parse_config("run.toml", CONFIG, ["precision.compute=auto"])
    processes = Processes(discover({}), torch.device("cpu"), None, None)
    assert precision.with_precision(config, processes, resolved).precision.compute == expected
