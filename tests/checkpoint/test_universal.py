"""DeepSpeed's universal checkpoints: there and back, and as DeepSpeed itself reads them."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed_ranks import restored_by_deepspeed
from fleet import run_fleet
from worlds import SMALL, Case

from triax.checkpoint.manifest import read_manifest
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import ExitCode
from triax.launcher.cli import main

TENSORS = {
    "model.head.weight": torch.rand(6, 4),
    "optimizer.head.weight.exp_avg": torch.rand(6, 4),
    "optimizer.head.weight.exp_avg_sq": torch.rand(6, 4),
    "optimizer.head.weight.step": torch.tensor(3.0),
    "model.norm.weight": torch.rand(4),
}


RECORD = {"tokens": 7, "config": {"model": dict(SMALL)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    target = tmp_path / "step-00000003"
    write_checkpoint(target, {n: whole(t) for n, t in TENSORS.items()}, RECORD, step=3)
    return target


def convert(source: Path, to: str, output: Path) -> int:
    return main(["checkpoint", "convert", str(source), "--to", to, "--output", str(output)])


def test_there_and_back_is_bitwise_the_same(checkpoint: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, "deepspeed", tmp_path / "universal") == ExitCode.DONE
    assert convert(tmp_path / "universal", "native", tmp_path / "back") == ExitCode.DONE
    found = read_tensors(tmp_path / "back")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    manifest = read_manifest(tmp_path / "back")
    assert (manifest.step, manifest.record) == (3, RECORD)


def test_what_is_no_universal_checkpoint(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, "native", tmp_path / "out") == ExitCode.BAD_INPUT
    assert "no universal checkpoint" in capsys.readouterr().err
    assert convert(checkpoint, "deepspeed", tmp_path) == ExitCode.BAD_INPUT
    assert convert(checkpoint, "deepspeed", tmp_path / "universal") == ExitCode.DONE
    weight = tmp_path / "universal" / "zero" / "norm.weight" / "fp32.pt"
    for damaged in (b"cut", weight.read_bytes().replace(b"little", b"litter")):
        weight.write_bytes(damaged)
        assert convert(tmp_path / "universal", "native", tmp_path / "out") == ExitCode.BAD_INPUT
        assert "can't be read as tensors" in capsys.readouterr().err
    assert json.loads((tmp_path / "universal" / "triax.json").read_text())["step"] == 3


@pytest.mark.parametrize("value", [{"weight": torch.rand(4)}, {"param": "four"}, [1.0], None])
def test_what_is_no_tensor_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    convert(checkpoint, "deepspeed", tmp_path / "universal")
    torch.save(value, tmp_path / "universal" / "zero" / "norm.weight" / "fp32.pt")
    assert convert(tmp_path / "universal", "native", tmp_path / "out") == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert "norm.weight/fp32.pt: expected a tensor or a number" in error and '"param"' in error


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\xff", "[" * 100_000, '{"step": 3}', '{"step": -1, "record": {}}',
     '{"step": 3, "record": []}'],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_record_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    convert(checkpoint, "deepspeed", tmp_path / "universal")
    (tmp_path / "universal" / "triax.json").write_text(text, encoding="latin-1")
    assert convert(tmp_path / "universal", "native", tmp_path / "out") == ExitCode.BAD_INPUT
    assert 'triax.json: expected JSON with "step"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for it: writing fails in the same places."""
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code = convert(checkpoint, "deepspeed", tmp_path / "universal")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == ExitCode.BAD_INPUT
    assert "universal: cannot be written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("parallel", [{"zero_stage": 2, "tensor": 2}, {"zero_stage": 3}], ids=str)
def test_deepspeed_reads_it(tmp_path: Path, parallel: dict[str, Any]) -> None:
    """Every rank's share of every weight and moment, through DeepSpeed's own loader."""
    case = Case(parallel={"engine": "deepspeed"} | parallel)
    num_processes = 4 if "tensor" in parallel else 2
    for problems in run_fleet(num_processes, restored_by_deepspeed, case, str(tmp_path)):
        assert problems == []
