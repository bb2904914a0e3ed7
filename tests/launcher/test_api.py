"""`import triax`: runs trained in this process, read, loaded and planned."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
import torch
from jobs import NUM_STEPS, make_job

import triax


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(corpus, tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> triax.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return triax.train("run.toml", quiet=True, metrics={"tensorboard": False})


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, triax; triax.Run; triax.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
    assert {"train", "load", "plan", "Run"} <= set(dir(triax))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = triax.trian


def test_a_run_is_read_as_tables(trained: triax.Run) -> None:
    assert trained.ending is not None and trained.ending["code"] == 0
    assert list(trained.metrics.index) == list(range(1, NUM_STEPS + 1))
    assert trained.metrics.loss.iloc[-1] < trained.metrics.loss.iloc[0]
    assert list(trained.evaluations.index) == [0, 10, 20, 24]
    assert trained.config["metrics"]["tensorboard"] is False
    assert trained.events[0]["environment"]["processes"] == 1
    assert "<!doctype html>" in trained.report()


def test_a_trained_model_writes_and_is_measured(trained: triax.Run, folder: Path) -> None:
    loaded = triax.load(trained.path)
    text = loaded.generate("the cat", max_new_tokens=8, temperature=0)
    assert text and text == loaded.generate("the cat", max_new_tokens=8, temperature=0)
    logits_TV = loaded.logits([5, 6, 7])
    assert logits_TV.shape == (3, 304) and logits_TV.dtype == torch.float32
    found = loaded.evaluate(folder / "data" / "validation", sequences=16)
    assert found.loss == pytest.approx(trained.evaluations.loss.iloc[-1], abs=1e-5)


def test_a_callback_sees_steps_and_stops_the_run_which_goes_on_bitwise(
    trained: triax.Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    seen: list[triax.Progress] = []

    def watch(progress: triax.Progress) -> None:
        seen.append(progress)
        if progress.step == 7:
            progress.stop()

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = tomllib.loads((folder / "run.toml").read_text()) | {"run": {"name": "stopped"}}
    stopped = triax.train(config, callbacks=[watch], quiet=True)
    assert stopped.ending is not None and stopped.ending["code"] == 75
    assert 7 < stopped.metrics.index[-1] < NUM_STEPS
    assert seen[0].figures["validation/loss"] > 0 and "loss" in seen[1].figures
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    # In a thread, as notebooks' servers and web frameworks call it.
    thread = threading.Thread(target=triax.train, args=[config], kwargs={"quiet": True})
    thread.start()
    thread.join(120)
    assert stopped.reload().metrics.loss.tolist() == trained.metrics.loss.tolist()


def test_a_callback_that_fails_stops_the_run_and_is_raised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)

    def fail(progress: triax.Progress) -> None:
        if progress.step == 3:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        triax.train("run.toml", callbacks=[fail], quiet=True, run={"name": "failed"})
    assert capsys.readouterr().out == ""
    assert (folder / "runs" / "failed" / "exit.json").exists()


def test_mistakes_are_the_users_and_nothing_exits(folder: Path) -> None:
    with pytest.raises(triax.UserError, match=r"batch\.global_batch_size"):
        triax.train(folder / "run.toml", batch={"global_batch_size": -1})
    with pytest.raises(triax.UserError, match=r"optimizer\.lrr"):
        triax.train(folder / "run.toml", optimizer={"lrr": 1})
    with pytest.raises(triax.UserError, match="holds no run"):
        triax.Run(folder)
    with pytest.raises(triax.UserError, match="config or a preset"):
        triax.plan(gpus=8)


def test_a_plan_is_data() -> None:
    found = triax.plan(preset="llama3-8b", gpus=8)
    assert found["best"] and found["parameters"] > 8e9
