"""When the guard begins anew because the config has changed, and what is said of the rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triax.data.read.identity import Identity
from triax.data.read.plan import whole_run
from triax.launcher.config.loading import load_config
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.levels import describe_rates
from triax.launcher.job.record import RecordKeeper
from triax.launcher.job.resume import ResumePoint
from triax.parallel.layout import Layout
from triax.training.step.state import TrainState

BASE = """
[run]
name = "test"
[model]
num_layers = 1
hidden_size = 32
num_heads = 2
ffn_hidden_size = 64
vocab_size = 304
[data]
sources = [{path = "a"}]
seq_len = 64
[batch]
global_batch_size = 8
[optimizer]
lr = 1e-3
[schedule]
kind = "wsd"
[budget]
tokens = 51200
"""
SOURCES = ([Identity("a", 100, ("1",))], whole_run(1.0))
OTHERS = ([Identity("b", 100, ("2",))], whole_run(1.0))


def load(folder: Path, *overrides: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(BASE)
    return load_config(path, overrides)


def keeper_of(config: RunConfig, resume_point: ResumePoint) -> RecordKeeper:
    return RecordKeeper(config, Layout.of(config.parallel, 1), torch.device("cpu"), resume_point)


@pytest.mark.parametrize(
    ("override", "is_new"),
    [
        ("optimizer.lr=2e-3", True),
        ("schedule.kind=cosine", True),
        ("schedule.warmup=3 steps", True),
        ("budget.tokens=102400", True),
        ('data.sources=[{"path": "moved"}]', False),
        ("data.mask_documents=false", True),
        ("data.prefetch=0", False),
        ("batch.micro_batch_size=2", False),
        ("checkpoint.keep=7", False),
        ("run.name=test", False),
    ],
)
def test_the_guard_begins_anew_with_what_moves_the_loss(
    tmp_path: Path, override: str, is_new: bool
) -> None:
    old = keeper_of(load(tmp_path), ResumePoint.new(*SOURCES))
    for _ in range(60):
        old.guard.judge(torch.tensor(3.0), torch.tensor(1.0))
    record = old.make(TrainState(100, 51200, 800))
    seen = old.guard.state()
    keeper = keeper_of(load(tmp_path, override), ResumePoint.of(record, *SOURCES))
    assert (keeper.guard_news is not None) == is_new
    assert (keeper.guard.state() == seen) == (not is_new)
    # Rolled back to before the change, it must not take up the old level either.
    keeper.restore(record)
    assert (keeper.guard.state() == seen) == (not is_new)


def test_the_guard_begins_anew_with_other_data(tmp_path: Path) -> None:
    old = keeper_of(load(tmp_path), ResumePoint.new(*SOURCES))
    old.guard.judge(torch.tensor(3.0), torch.tensor(1.0))
    record = old.make(TrainState(100, 51200, 800))
    keeper = keeper_of(load(tmp_path), ResumePoint.of(record, *OTHERS))
    assert keeper.guard_news is not None and keeper.guard.state()["losses"] == []
    keeper.restore(record)
    assert keeper.guard.state()["losses"] == []


def test_a_finished_run_that_is_extended_says_how_the_rate_jumps(tmp_path: Path) -> None:
    old = load(tmp_path).model_dump(mode="json")
    longer = load(tmp_path, "budget.tokens=102400")
    assert describe_rates(old, longer, 51200) == ("the learning rate was 0.0001 and will be 0.001")
    del old["schedule"]
    assert describe_rates(old, longer, 51200) == "the learning rate will be 0.001"
