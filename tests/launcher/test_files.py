"""config.toml in the run directory: written, read again, compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.launcher.config.loading import load_config
from triax.launcher.config.resolved import (
    config_to_dict,
    diff_configs,
    diff_with_record,
    refuse_changes,
    write_resolved_config,
)
from triax.launcher.config.run_config import RunConfig

BASE = """
[run]
name = "test"
[model]
preset = "llama3.2-1b"
[data]
sources = [{path = "a", weight = 0.1}, {path = "b"}]
seq_len = 64
tokenizer = "tok"
[batch]
global_batch_size = 8
[checkpoint]
every = "1.5 min"
[budget]
tokens = "1.5B"
[[faults.plan]]
step = 3
kind = "kill"
"""


def load(folder: Path, *overrides: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(BASE)
    return load_config(path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.tokenizer=null", "eval.every=null", "optimizer.clip_norm=none"),
        ("model.rope_scaling=none", "model.num_layers=3"),
        ("model.rope_scaling=null", "checkpoint.every=none"),
        ("run.name=a \"quoted\" \\ 'name'", "optimizer.lr=1e-17", "budget.tokens=chinchilla"),
        ('data.prepare={"inputs":["a","b"],"output":"o","vocab_size":300}', "run.seed=12345678901"),
        ("checkpoint.every=1B tokens", "schedule.warmup=3 steps", "model.sliding_window=7"),
    ],
)
def test_the_written_config_loads_to_an_equal_one(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, *overrides)
    written = tmp_path / "config.toml"
    write_resolved_config(config, written)
    monkeypatch.chdir("/")
    loaded = load_config(written)
    monkeypatch.chdir(tmp_path)
    assert diff_with_record(loaded.model_dump(mode="json"), config) == []
    assert Path(loaded.run.dir) == tmp_path / "runs"
    assert [source.path for source in loaded.data.sources] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert [path.name for path in tmp_path.iterdir() if "config.toml" in path.name] == [
        "config.toml"
    ]


def test_a_diff_names_each_value_that_changed(tmp_path: Path) -> None:
    old = config_to_dict(load(tmp_path))
    new = config_to_dict(
        load(
            tmp_path,
            "optimizer.lr=1e-3",
            'data.sources=[{"path": "a"}]',
            "data.tokenizer=null",
            "data.validation=v",
            "model.rope_scaling.factor=8",
        )
    )
    changes = {change.path: (change.old, change.new) for change in diff_configs(old, new)}
    assert changes == {
        "optimizer.lr": (3e-4, 1e-3),
        "data.sources": (
            [{"path": "a", "weight": 0.1}, {"path": "b", "weight": 1.0}],
            [{"path": "a", "weight": 1.0}],
        ),
        "data.tokenizer": ("tok", "none"),
        "data.validation": ("none", "v"),
        "model.rope_scaling.factor": (32.0, 8.0),
    }


@pytest.mark.parametrize(
    ("override", "breaks"),
    [
        ("model.num_layers=2", True),
        ("model.rope_scaling.factor=8", True),
        ("model.rope_scaling=null", True),
        ("data.seq_len=32", True),
        ("data.mask_documents=false", True),
        ("data.packing=best-fit", True),
        ("data.too_long=truncate", True),
        ("data.tokenizer=other", False),
        ("batch.global_batch_size=16", True),
        ("run.seed=1", True),
        ("run.deterministic=true", False),
        ("batch.micro_batch_size=2", False),
        ("optimizer.lr=1e-3", False),
        ("parallel.zero_stage=3", False),
        ("budget.tokens=2B", False),
        ('data.sources=[{"path": "a"}]', False),
        ("checkpoint.every=5 steps", False),
        ("metrics.every=5", False),
    ],
)
def test_what_would_break_the_run_is_refused(tmp_path: Path, override: str, breaks: bool) -> None:
    old = config_to_dict(load(tmp_path))
    changes = diff_configs(old, config_to_dict(load(tmp_path, override, "eval.batches=3")))
    assert len(changes) >= 2
    if not breaks:
        refuse_changes(changes)
        return
    with pytest.raises(UserError) as raised:
        refuse_changes(changes)
    lines = str(raised.value).splitlines()
    assert sum("(breaks the run)" in line for line in lines) == len(changes) - 1
    assert "  eval.batches: 8 -> 3" in lines


def test_a_config_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.toml"):
        write_resolved_config(load(tmp_path), tmp_path / "missing" / "config.toml")


def test_a_field_newer_than_the_record_is_no_change(tmp_path: Path) -> None:
    config = load(tmp_path)
    recorded = config.model_dump(mode="json")
    del recorded["model"]["z_loss"], recorded["data"]["mask_documents"], recorded["stability"]
    del recorded["data"]["sources"][1]["weight"], recorded["model"]["rope_scaling"]["factor"]
    recorded["model"]["rope_scaling"] |= {"factor": 32.0}
    del recorded["checkpoint"]["every"], recorded["faults"]["plan"][0]["rank"]
    changes = diff_with_record(recorded, config)
    assert [str(change) for change in changes] == ["checkpoint.every: '500 steps' -> '90 s'"]


def test_a_path_spelled_otherwise_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = load(tmp_path).model_dump(mode="json")
    others = ("data.tokenizer=./x/../tok", f"run.dir={tmp_path}/runs")
    assert diff_with_record(recorded, load(tmp_path, *others)) == []
