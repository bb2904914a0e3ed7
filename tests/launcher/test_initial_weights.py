"""`checkpoint.init_from`: only the weights that the model has, and that mean the same in it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from jobs import Ended, curve, train

from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.staging import whole
from triax.checkpoint.store import CheckpointStore
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import ExitCode, UserError
from triax.launcher.checks.sections import find_problems
from triax.launcher.cli import main
from triax.launcher.config.loading import load_config
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.initial_weights import find_initial_weights
from triax.models.families import recorded_model
from triax.models.layers.transformer import Transformer

MODEL = {
    "num_layers": 2, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2,
    "ffn_hidden_size": 24, "vocab_size": 40,
}  # fmt: skip


def weights(fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = Transformer(recorded_model(fields))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def write(folder: Path, fields: dict[str, Any], record: dict[str, Any]) -> Path:
    shards = {f"model.{name}": whole(tensor) for name, tensor in weights(fields).items()}
    write_checkpoint(folder, shards, record, step=0)
    return folder


def config_of(tmp_path: Path, fields: dict[str, Any], checkpoint: dict[str, Any]) -> RunConfig:
    path = tmp_path / "run.toml"
    tables = {
        "run": {"name": "new", "dir": str(tmp_path / "runs")},
        "model": fields,
        "data": {"sources": [{"path": "data"}], "seq_len": 8},
        "batch": {"global_batch_size": 1},
        "checkpoint": checkpoint,
    }
    path.write_text(tomli_w.dumps(tables))
    return load_config(path)


def checked(config: RunConfig) -> list[str]:
    sections = {name: getattr(config, name) for name in ("run", "checkpoint", "model")}
    return [problem.message for problem in find_problems(sections)]


def started(config: RunConfig, folder: Path) -> list[str]:
    """What the start says of it."""
    said: list[str] = []
    store = CheckpointStore(folder / "new", keep=1, asynchronous=False, deadline_seconds=60)
    assert find_initial_weights(store, config, None, said.append) is not None
    return said


@pytest.mark.parametrize(
    ("there", "here", "shown"),
    [
        ({}, {"rope_theta": 5e5}, "model.rope_theta: 10000.0 there, 500000.0 here"),
        ({}, {"num_heads": 8, "num_kv_heads": 4}, "model.num_heads: 4 there, 8 here"),
        ({"sliding_window": 8}, {}, "model.sliding_window: 8 there, none here"),
        ({}, {"norm_eps": 1e-6}, "model.norm_eps: 1e-05 there, 1e-06 here"),
        ({}, {"logit_softcap": 30.0}, "model.logit_softcap: none there, 30.0 here"),
        ({}, {"rope_scaling": {"factor": 8.0}}, "model.rope_scaling: none there"),
    ],
)
def test_settings_that_change_what_weights_mean(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], shown: str
) -> None:
    record = {"config": {"model": MODEL | there}}
    path = str(write(tmp_path / "old", MODEL | there, record))
    same = config_of(tmp_path, MODEL | there, {"init_from": path})
    assert checked(same) == [] and started(same, tmp_path) == []
    other = config_of(tmp_path, MODEL | here, {"init_from": path})
    [problem] = checked(other)
    assert shown in problem and "init_from_other_settings = true" in problem
    with pytest.raises(UserError, match="would mean something else"):
        started(other, tmp_path)
    permitted = {"init_from": path, "init_from_other_settings": True}
    meant = config_of(tmp_path, MODEL | here, permitted)
    assert checked(meant) == []
    assert shown in " ".join(started(meant, tmp_path))


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"num_layers": 4}, {}),
        ({"num_layers": 1}, {}),
        ({}, {"tie_embeddings": True}),
        ({"tie_embeddings": True}, {}),
        ({"qk_norm": True}, {}),
        ({"vocab_size": 48}, {}),
        ({"head_dim": 8}, {}),
        ({"qk_norm": True}, {"qk_norm": True, "num_heads": 8, "num_kv_heads": 4}),
    ],
)
@pytest.mark.parametrize("records_it", [True, False])
def test_tensors_left_over_or_missing_are_never_ignored(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], records_it: bool
) -> None:
    record = {"config": {"model": MODEL | there}} if records_it else {}
    path = str(write(tmp_path / "old", MODEL | there, record))
    config = config_of(
        tmp_path, MODEL | here, {"init_from": path, "init_from_other_settings": True}
    )
    if records_it:
        [problem] = checked(config)
        assert "its weights are of another model: model." in problem
    with pytest.raises(UserError, match="of another model"):
        started(config, tmp_path)


def test_what_acts_on_training_alone_may_differ(tmp_path: Path) -> None:
    record = {"config": {"model": MODEL | {"z_loss": 1e-4, "init_std": 0.01}}}
    path = str(write(tmp_path / "old", MODEL, record))
    config = config_of(tmp_path, MODEL, {"init_from": path})
    assert checked(config) == [] and started(config, tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no checkpoint here"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), "no good checkpoint"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "config.json").write_text("{}"), "`triax checkpoint import"),
    ],
)
def test_check_refuses_what_is_no_checkpoint(tmp_path: Path, damage: Any, words: str) -> None:
    folder = write(tmp_path / "old", MODEL, {})
    damage(folder)
    [problem] = checked(config_of(tmp_path, MODEL, {"init_from": str(folder)}))
    assert words in problem


EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 24}


@pytest.mark.parametrize(
    ("there", "here", "noise", "words"),
    [
        ({}, {"experts": EXPERTS | {"ffn_hidden_size": 32}}, 0.0, "24 there, here 32 in experts"),
        (
            {},
            {"experts": EXPERTS | {"first_dense_layers": 1}, "ffn_hidden_size": 48},
            0.0,
            "and 48",
        ),
        ({}, {"experts": EXPERTS | {"num_shared_experts": 1}}, 0.0, "num_shared_experts"),
        ({"qk_norm": True}, {"experts": EXPERTS}, 0.0, "qk_norm: True there, False here"),
        ({"rope_theta": 5e5}, {"experts": EXPERTS}, 0.0, "rope_theta: 500000.0 there"),
        ({"experts": EXPERTS}, {}, 0.0, "another model"),
        ({}, {}, 0.1, "init_from_noise is for experts"),
    ],
)
def test_what_experts_cannot_be_made_of(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], noise: float, words: str
) -> None:
    path = str(write(tmp_path / "old", MODEL | there, {"config": {"model": MODEL | there}}))
    config = config_of(tmp_path, MODEL | here, {"init_from": path, "init_from_noise": noise})
    [problem] = checked(config)
    assert words in problem
    with pytest.raises(UserError, match=words):
        started(config, tmp_path)


def test_how_load_is_balanced_may_differ(tmp_path: Path) -> None:
    old: dict[str, Any] = MODEL | {"experts": EXPERTS | {"z_loss": 0.0}}
    new: dict[str, Any] = MODEL | {"experts": EXPERTS | {"z_loss": 0.1}}
    path = str(write(tmp_path / "old", old, {"config": {"model": old}}))
    assert checked(config_of(tmp_path, new, {"init_from": path})) == []
    new["experts"]["top_k"] = 1
    [problem] = checked(config_of(tmp_path, new, {"init_from": path}))
    assert "would mean something else: model.experts.top_k: 2 there, 1 here" in problem


def test_a_run_with_experts_begins_from_a_dense_one(job: Path) -> None:
    """Its first loss is near where the other ended, and not where a new model begins."""
    assert train(job, "--run.name=dense", "--optimizer.lr=1e-2").code == 0
    experts = [f"--model.experts.{n}={v}" for n, v in (EXPERTS | {"ffn_hidden_size": 64}).items()]
    started = train(
        job, "--run.name=sparse", "--checkpoint.init_from=runs/dense", *experts,
        "--checkpoint.init_from_noise=0.01", "--budget.tokens=512", "--optimizer.lr=1e-5",
    )  # fmt: skip
    assert started.code == 0, started.text
    assert "starting from the weights of runs/dense" in started.out
    assert "experts      busiest " in started.out and ", 0 dropped" in started.out
    assert (job / "runs/sparse/expert-load.png").read_bytes().startswith(b"\x89PNG")
    dense, sparse = (curve(job / "runs" / name) for name in ("dense", "sparse"))
    (_, new, _), (_, trained, _), (_, begun, _) = dense[0], dense[-1], sparse[0]
    assert begun < (new + trained) / 2 and begun == pytest.approx(trained, abs=0.3)


@pytest.mark.parametrize("model", [7, "x", {}, {"num_layers": 10**30}, MODEL | {"rope_theta": "x"}])
def test_a_record_of_wrong_types_is_refused(tmp_path: Path, model: Any) -> None:
    folder = write(tmp_path / "old", MODEL, {"config": {"model": model}})
    [problem] = checked(config_of(tmp_path, MODEL, {"init_from": str(folder)}))
    assert "its recorded model" in problem


def test_a_run_goes_on_without_the_folder_it_began_from(job: Path) -> None:
    def start(*overrides: str) -> Ended:
        return train(job, "--checkpoint.init_from=old", "--run.name=new", *overrides)

    assert train(job, "--run.name=base", "--budget.tokens=256").code == 0
    (job / "runs/base").rename(job / "old")
    assert "starting from the weights of old/" in start("--budget.tokens=1024").out
    shutil.rmtree(job / "old")
    more = start("--budget.tokens=2048")
    assert more.code == 0, more.text
    assert len(curve(job / "runs/new")) == 8


def test_import_shows_and_writes_the_section_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = MODEL | {"rope_theta": 5e5, "sliding_window": 8}
    model = recorded_model(fields)
    export_huggingface(weights(fields), model, tmp_path / "hf", seq_len=32)
    paths = [str(tmp_path / name) for name in ("hf", "imported", "model.toml")]
    argv = ["checkpoint", "import", paths[0], "--output", paths[1], "--write-config", paths[2]]
    assert main(argv) == ExitCode.DONE
    written = Path(paths[2]).read_text()
    assert written in capsys.readouterr().out
    section = tomllib.loads(written)["model"]
    config = config_of(tmp_path, section, {"init_from": paths[1]})
    assert checked(config) == [] and started(config, tmp_path) == []
    assert config.model == recorded_model(fields)
    argv[4] = str(tmp_path / "again")
    assert main(argv) == ExitCode.BAD_INPUT
    assert not (tmp_path / "again").exists()
