"""Runs that train adapters: saved alone, gone on with, used, exported, and aligned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fine_tuning_jobs import CHATS, DPO, SFT, good, make_taught
from jobs import curve, kills, read_rows, train, triax

from triax.checkpoint.folders import inspect, resolve_checkpoint
from triax.checkpoint.reading import count_tensors
from triax.inference.export import export_run
from triax.inference.load import find_model
from triax.models.description import describe
from triax.models.families import recorded_model

LORA = ("--model.lora.rank=4", "--model.lora.alpha=8", "--optimizer.lr=1e-2")
START = "--checkpoint.init_from=runs/pretrained"
TUNED = (*SFT, *LORA, START, "--run.name=tuned", "--checkpoint.every=2 steps")


@pytest.fixture(scope="module")
def taught(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, pairs, a run over text, and one that trained adapters from there."""
    folder = make_taught(corpus, tmp_path_factory.mktemp("taught"))
    good(train(folder, "--run.name=pretrained", "--data.seq_len=63", "--budget.tokens=1008"))
    good(train(folder, *TUNED))
    return folder


def test_a_killed_run_goes_on_in_another_layout(taught: Path) -> None:
    whole = curve(taught / "runs/tuned")
    assert len(whole) == 8 and whole[-1][1] < whole[0][1]
    options = (*TUNED, "--run.name=killed")
    plan = kills(("after-update", 5, None))
    assert train(taught, *options, plan).code == -9
    spread = (*options, "--parallel.zero_stage=3")
    good(train(taught, *spread, num_processes=2))
    for found, expected in zip(curve(taught / "runs/killed"), whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    paths = [resolve_checkpoint(taught / "runs" / name) for name in ("tuned", "pretrained")]
    manifests = [inspect(path).manifest for path in paths]
    assert manifests[0] is not None and manifests[1] is not None
    assert manifests[0].record["base"]["digest"] == manifests[1].digest
    factors = describe(recorded_model(manifests[0].record["config"]["model"])).trained
    assert count_tensors(paths[0]) == 4 * len(factors), "each with its moments and its step"


def test_adapters_are_used_and_exported_as_one_with_their_model(taught: Path) -> None:
    said = good(
        triax(taught, "generate", "runs/tuned", "--prompt", "the cat", "--temperature", "0")
    )
    assert said.out.strip()
    export_run(taught / "runs/tuned", taught / "merged")
    ours = find_model(str(taught / "runs/tuned")).load()
    merged = find_model(str(taught / "merged")).load()
    tokens_BT = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(tokens_BT), merged.logits(tokens_BT), rtol=1e-5, atol=2e-5
        )
    done = good(triax(
        taught, "checkpoint", "export", "runs/tuned", "--format", "peft", "--output", "adapters"
    ))  # fmt: skip
    assert "exported to adapters" in done.out
    config = json.loads((taught / "adapters/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    good(triax(
        taught, "checkpoint", "import", "adapters", "--base", "runs/pretrained", "--output", "back"
    ))  # fmt: skip
    again = find_model(str(taught / "back")).load()
    assert all(map(torch.equal, ours.parameters(), again.parameters()))
    evaluated = good(triax(taught, "eval", "runs/tuned", "--data", "chats/validation"))
    assert "loss" in evaluated.out


def test_preferences_of_adapters_and_a_kill_in_their_midst(taught: Path) -> None:
    """The reference is the start: its adapters, not switched off."""
    options = (*DPO, *LORA, "--checkpoint.init_from=runs/tuned", "--checkpoint.every=2 steps")
    good(train(taught, *options, "--run.name=preferred"))
    rows = read_rows(taught / "runs/preferred")
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["reward_margin"] > 0
    plan = kills(("after-update", 5, None))
    assert train(taught, *options, "--run.name=killed-preferred", plan).code == -9
    for path in (taught / "runs/killed-preferred/reference").iterdir():
        path.unlink()
    # Nothing is left that knows the reference, but the adapters know what they stand beside.
    other = ("--run.name=other", "--run.seed=5", "--data.seq_len=63", "--budget.tokens=1008")
    good(train(taught, *other))
    wrong = ("--run.name=killed-preferred", "--checkpoint.init_from=runs/other")
    refused = train(taught, *options, *wrong)
    assert refused.code == 2 and "isn't what the run started from" in " ".join(refused.text.split())
    again = good(train(taught, *options, "--run.name=killed-preferred", plan))
    assert "reference log-probabilities of" in again.out
    assert curve(taught / "runs/killed-preferred") == curve(taught / "runs/preferred")


def test_what_adapters_cant_be_combined_with(taught: Path) -> None:
    tuned = "--checkpoint.init_from=runs/tuned"
    for options, expected in (
        ((*SFT, *LORA), "name its checkpoint"),
        ((*SFT, tuned), "it holds adapters, not a model"),
        ((*SFT, *LORA, tuned, "--model.lora.rank=2"), "model.lora.rank: 4 there, 2 here"),
        ((*SFT, *LORA, tuned, "--model.lora.alpha=2"), "model.lora.alpha: 8.0 there, 2.0 here"),
        ((*SFT, *LORA, START, "--parallel.engine=deepspeed"), 'use parallel.engine = "native"'),
        ((*SFT, *LORA, START, "--precision.compute=fp8"), "without adapters"),
        ((*TUNED, "--model.lora.alpha=9", "--budget.tokens=5040"), "model.lora.alpha: 8.0 -> 9.0"),
    ):
        refused = train(taught, "--run.name=refused", *options)
        text = " ".join(refused.text.split())
        assert refused.code == 2 and expected in text, text


def test_a_run_whose_base_is_gone_or_another(taught: Path) -> None:
    base = resolve_checkpoint(taught / "runs/pretrained")
    more = (*TUNED, CHATS, "--budget.tokens=5040")
    base.rename(taught / "kept")
    gone = train(taught, *more)
    assert gone.code == 2 and "stand beside the weights of" in " ".join(gone.text.split())
    good(train(taught, *more, "--checkpoint.init_from=kept"))
    (taught / "kept").rename(base)
