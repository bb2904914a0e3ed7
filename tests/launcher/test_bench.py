"""`triax bench` as it is typed."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import CONFIG, command

from triax.common.errors import UserError
from triax.launcher import bench as worker
from triax.launcher.cli import main
from triax.launcher.commands.bench import add_arguments, as_overrides, worker_arguments
from triax.launcher.config.overrides import parse_arguments
from triax.launcher.config.problems import ConfigError
from triax.launcher.job import bench as bench_job
from triax.launcher.job import engine as engine_job
from triax.launcher.job.bench_config import bench_config
from triax.models.counts import flops_per_token
from triax.models.families import model_config

TINY = (
    "--model.num_layers=2", "--model.hidden_size=32", "--model.num_heads=2",
    "--model.ffn_hidden_size=64", "--model.vocab_size=304", "--seq-len=32", "--steps=2",
)  # fmt: skip
FLOPS = flops_per_token(
    model_config(num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=2, head_dim=16,
                ffn_hidden_size=64, vocab_size=304),
    seq_len=32,
)  # fmt: skip
KINDS = [
    "gemm", "attention", "loss", "optimizer", "elementwise", "copies", "communication", "idle"
]  # fmt: skip


def bench(
    folder: Path,
    *argv: str,
    program: Sequence[str] = ("triax", "bench"),
    timeout: float = 120,
) -> Any:
    """Run it to its end."""
    return subprocess.run(
        [command(program[0]), *program[1:], *argv],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def test_a_table_of_a_preset(tmp_path: Path) -> None:
    argv = "--preset mini-10m --seq-len 16 --micro-batch-size 2 --precision bf16 --steps 1"
    ended = bench(tmp_path, *argv.split(), "--kernels", "3", "--model.num_layers=1")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.split()[0] for line in lines if line]
    begin = shown.index("where") + 1
    assert shown[begin : begin + len(KINDS)] == KINDS
    for name in ("tokens/s", "TFLOP/s", "MFU", "memory", "start", "limit", "ratio", "waits"):
        assert name in shown
    assert "2 x 16 tokens" in ended.stdout and "bf16" in ended.stdout
    assert "the bf16 peak of cpu isn't known" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_of_several_processes_is_one_object_that_adds_up(tmp_path: Path) -> None:
    program = ("torchrun", "--nproc-per-node=2", "-m", "triax.launcher.bench")
    argv = ("--json", "--trace=trace.json.gz", "--batch.global_batch_size=4")
    ended = bench(tmp_path, *TINY, *argv, program=program)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    setup, step = found["setup"], found["step_seconds"]
    assert (setup["num_processes"], setup["num_micro_batches"]) == (2, 2)
    assert (setup["seq_len"], setup["num_tokens"], len(step["all"])) == (32, 4 * 32, 2)
    assert step["min"] <= step["median"] <= step["max"]
    assert found["tokens_per_second"] == pytest.approx(4 * 32 / step["median"])
    per_device = found["tokens_per_second_per_device"]
    assert per_device == pytest.approx(found["tokens_per_second"] / 2)
    assert setup["flops_per_token"] == FLOPS
    assert found["tflops_per_device"] == pytest.approx(per_device * FLOPS / 1e12)
    assert found["mfu"] is None
    limit = found["limit"]
    assert limit["total"] == pytest.approx(sum(limit[part] for part in KINDS if part in limit))
    assert found["ratio"] == pytest.approx(limit["total"] / step["median"])
    assert limit["gemm_flops"] == 2 * 32 * (FLOPS - 12 * 2 * 32 * 32)  # of one process
    profile = found["profile"]
    assert list(profile["seconds"]) == KINDS
    assert sum(profile["seconds"].values()) == pytest.approx(profile["step_seconds"])
    kinds = ("gemm", "attention", "loss", "optimizer", "elementwise", "communication")
    assert all(profile["seconds"][kind] > 0 for kind in kinds)
    assert found["losses"][0] == pytest.approx(5.7, abs=0.5)  # about the logarithm of 304
    assert found["num_skipped"] == 0
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_or_grows_and_kernels_are_known(tmp_path: Path) -> None:
    argv = "--preset mini-50m --seq-len 1024 --micro-batch-size 8 --steps 10 --json"
    ended = bench(tmp_path, *argv.split(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    profile, memory = found["profile"], found["memory"]
    assert profile["num_stream_waits"] == 0, profile["waits"]
    assert profile["waits"].get("aten::_local_scalar_dense", 0) == 0
    assert (memory["growth_bytes"], memory["num_retries"]) == (0, 0)
    assert 0 < memory["peak_gib"] <= memory["reserved_gib"] < memory["total_gib"]
    for kind in ("gemm", "attention", "loss", "optimizer", "elementwise"):
        assert profile["seconds"][kind] > 0, profile["kernels"]
    assert sum(profile["seconds"].values()) == pytest.approx(profile["step_seconds"])
    assert 0 < found["ratio"] < 1
    assert found["limit"]["attention_backend"] != "math"
    if any(name in found["setup"]["device"] for name in ("A100", "H100", "H200", "B200")):
        assert 0 < found["mfu"] < 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset=llama9"], 'no preset is called "llama9"; did you mean'),
        (["--preset=llama3-405b"], "out of memory: weights, gradients and moments of 406B"),
        (["--preset=mini-10m", "--precision=int8"], "precision.compute: expected"),
        (["--preset=mini-10m", "--parallel.tensor=5"], "is not a multiple of parallel.tensor = 5"),
        (["--preset=mini-10m", "--trace=trace.txt"], "expected a name that ends with .json"),
        (["--preset=mini-10m", "--trace=folder.json"], "is a folder; give a file in it"),
        (["--preset=mini-10m", "--trace=no/trace.json"], "no is no folder that can be written to"),
        (["missing.toml"], "missing.toml: no such file"),
    ],
)
def test_mistakes_are_told(
    argv: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "folder.json").mkdir()
    monkeypatch.chdir(tmp_path)
    assert worker.main(argv) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("triax: error: ")
    assert message in " ".join(error.split())


def test_memory_that_runs_out_says_what_to_change(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_args: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(bench_job, "make_engine", no_memory)
    assert worker.main(["--preset=mini-10m"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("triax: error: out of memory: cpu has ")
    assert "--micro-batch-size" in error and "activation_checkpointing" in error


def test_nothing_of_the_engine_is_left_when_its_limit_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest models leave no room beside them."""
    made: list[weakref.ref[torch.Tensor]] = []

    def make_engine(*args: Any) -> Any:
        engine: Any = engine_job.make_engine(*args)
        weights = [weight for part in engine.parts for weight in part.module.parameters()]
        made.extend(map(weakref.ref, (*weights, *engine.parameters.values())))
        return engine

    def measure_roofline(*_args: object) -> Any:
        assert len(made) == 2 * 21
        assert [weight for weight in made if weight() is not None] == []
        raise UserError("enough")

    monkeypatch.setattr(bench_job, "make_engine", make_engine)
    monkeypatch.setattr(bench_job, "measure_roofline", measure_roofline)
    assert worker.main([*TINY, "--precision=bf16"]) == 2


def test_nothing_to_measure_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "give a run's CONFIG or --preset NAME; presets are mini-10m" in capsys.readouterr().err


def parsed(*argv: str) -> Any:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parse_arguments(parser, argv)


def test_short_arguments_are_overrides_that_longer_ones_win_over() -> None:
    args = parsed("--preset", "mini-10m", "--precision", "bf16", "--model.num_layers=2",
                  "--seq-len=64", "--data.seq_len=128", "--json")  # fmt: skip
    config = bench_config(None, as_overrides(args), "cuda", 1)
    assert (config.model.preset, config.model.num_layers) == ("mini-10m", 2)
    assert (config.data.seq_len, config.precision.compute) == (128, "bf16")
    again = parsed(*worker_arguments(args))
    assert as_overrides(again) == as_overrides(args)
    assert (again.json, again.steps, again.trace) == (True, 10, None)


def test_a_preset_takes_the_place_of_the_config_s_model(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.replace('"TOKENS"', "512").replace("EVERY", "1000"))
    config = bench_config(str(path), as_overrides(parsed("x", "--preset=mini-30m")), "cpu", 1)
    assert config.model == model_config(preset="mini-30m")
    assert config.optimizer.lr == 3e-3


def test_without_a_config_settings_suit_the_device_and_the_processes() -> None:
    overrides = as_overrides(parsed("--preset=mini-10m", "--micro-batch-size=3"))
    config = bench_config(None, overrides, "cpu", 4)
    assert (config.data.seq_len, config.precision.compute, config.parallel.compile) == (
        256, "auto", False,
    )  # fmt: skip
    assert config.batch.global_batch_size == 12
    config = bench_config(None, (*overrides, "parallel.pipeline=2"), "cuda", 4)
    assert (config.data.seq_len, config.precision.compute, config.parallel.compile) == (
        8192, "bf16", True,
    )  # fmt: skip
    assert config.batch.global_batch_size == 12
    with pytest.raises(ConfigError, match="start 3 or 6 processes"):
        bench_config(None, (*overrides, "parallel.pipeline=3"), "cpu", 4)
