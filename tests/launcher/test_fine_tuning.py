"""From a model to one that answers: runs of `sft` and `dpo`, killed and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import Ended, curve, kills, read_events, read_rows, train, triax

CHATS = '--data.sources=[{"path": "chats/train"}]'
SFT = (
    "--run.name=sft", "--objective.kind=sft", CHATS, "--data.validation=chats/validation",
    "--data.tokenizer=chats/tokenizer", "--data.seq_len=63", "--budget.tokens=4032",
)  # fmt: skip
DPO = (
    "--run.name=dpo", "--objective.kind=dpo", '--data.sources=[{"path": "pairs/train"}]',
    "--data.validation=pairs/validation", "--data.tokenizer=chats/tokenizer", "--data.seq_len=63",
    "--budget.tokens=4032", "--optimizer.lr=1e-3", "--checkpoint.init_from=runs/sft",
)  # fmt: skip


def write_rows(folder: Path) -> None:
    """Conversations and pairs from the job's own words."""
    chats = [
        {"prompt": f"the cat {n}", "completion": f"and the dog {n % 3}", "tools": None}
        for n in range(60)
    ]
    pairs = [
        {"prompt": f"the cat {n}", "chosen": f"the dog {n % 3}", "rejected": f"a tree {n % 5}"}
        for n in range(60)
    ]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def good(ended: Ended) -> Ended:
    assert ended.code == 0, ended.text
    return ended


@pytest.fixture(scope="module")
def taught(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations, pairs, and a run that learned the conversations."""
    from jobs import make_job

    folder = make_job(corpus, tmp_path_factory.mktemp("taught"))
    write_rows(folder)
    for command in ("chats.jsonl --output chats", "pairs.jsonl --pairs --output pairs"):
        good(triax(
            folder, "data", "conversations", *command.split(),
            "--tokenizer", "tokenizer", "--validation-fraction", "0.1",
        ))  # fmt: skip
    good(train(folder, *SFT))
    return folder


def test_a_run_learns_answers_and_resumes_exactly(taught: Path) -> None:
    whole = curve(taught / "runs/sft")
    assert len(whole) == 8 and whole[-1][1] < whole[0][1]
    options = (*SFT, "--run.name=killed", "--checkpoint.every=2 steps")
    plan = kills(("after-update", 5, None))
    killed = train(taught, *options, plan)
    assert killed.code == -9, killed.text
    good(train(taught, *options, kills(("after-update", 5, None))))
    assert curve(taught / "runs/killed") == whole


def test_a_blend_of_text_and_conversations(taught: Path) -> None:
    blend = '--data.sources=[{"path": "chats/train"}, {"path": "data/train"}]'
    good(train(taught, *SFT, "--run.name=blend", blend))
    rows = read_rows(taught / "runs/blend")
    answers = read_rows(taught / "runs/sft")
    assert sum(r["num_targets"] for r in rows) > sum(r["num_targets"] for r in answers)


def test_preferences_are_learned_against_the_start_and_resume_exactly(taught: Path) -> None:
    seen = '--eval.sets=[{"name": "seen", "path": "pairs/train"}]'
    said = good(train(taught, *DPO, seen))
    assert "reference log-probabilities of" in said.out
    assert "perplexity" not in said.out and "chinchilla" not in said.out
    losses = [
        event["sets"]["seen"]["loss"] for event in read_events(taught / "runs/dpo", "evaluation")
    ]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < losses[0]
    rows = read_rows(taught / "runs/dpo")
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["reward_margin"] > 0 and rows[-1]["reward_accuracy"] > 0.7
    assert rows[-1]["loss"] < rows[0]["loss"]
    options = (*DPO, "--run.name=killed-dpo", "--checkpoint.every=2 steps")
    assert train(taught, *options, kills(("after-update", 5, None))).code == -9
    again = good(train(taught, *options, kills(("after-update", 5, None))))
    assert "reference log-probabilities of" not in again.out
    assert curve(taught / "runs/killed-dpo") == curve(taught / "runs/dpo")


def test_a_reference_that_was_damaged_or_lost(taught: Path) -> None:
    options = (*DPO, "--run.name=lost", "--checkpoint.every=2 steps")
    assert train(taught, *options, kills(("after-update", 5, None))).code == -9
    [first, second] = sorted((taught / "runs/lost/reference").iterdir())
    kept = first.read_bytes()
    first.write_bytes(kept[:-1] + b"\x7f")
    damaged = train(taught, *options)
    assert damaged.code == 2 and "damaged: its checksum is another one" in damaged.text
    first.unlink()
    second.unlink()
    again = good(train(taught, *options, kills(("after-update", 5, None))))
    assert "reference log-probabilities of" in again.out
    assert first.read_bytes() == kept, "of the start, not of where the run is by now"


def test_a_reference_is_of_the_model_that_the_run_starts_from(taught: Path) -> None:
    """Killed before its first checkpoint, a run may begin anew with another model."""
    first = next((taught / "runs/sft/checkpoints").iterdir())
    other = taught / "runs/other"
    good(train(taught, *SFT, "--run.name=other", "--run.seed=5"))
    options = (*DPO, "--run.name=anew")
    plan = kills(("after-update", 2, None))
    assert train(taught, *options, f"--checkpoint.init_from={first}", plan).code == -9
    began = good(train(taught, *options, f"--checkpoint.init_from={other}"))
    assert "reference log-probabilities of" in began.out
    assert read_rows(taught / "runs/anew")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    # A run that goes on asks no other model about what it lost.
    next((taught / "runs/anew/reference").iterdir()).unlink()
    refused = train(taught, *options, f"--checkpoint.init_from={first}", "--budget.tokens=4536")
    assert refused.code == 2 and "isn't what the run started from" in " ".join(refused.text.split())


def test_experts_with_noise_begin_as_their_own_reference(taught: Path) -> None:
    """The noise is added once, not before the reference and again before the run."""
    experts = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 64}
    options = [f"--model.experts.{name}={value}" for name, value in experts.items()]
    options += ["--checkpoint.init_from_noise=0.5", "--budget.tokens=504", "--run.name=noisy"]
    good(train(taught, *DPO, *options))
    first = read_rows(taught / "runs/noisy")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_what_doesnt_fit_the_objective(taught: Path) -> None:
    for options, expected in (
        ((*SFT, "--objective.kind=pretrain"), 'holds conversations, which objective.kind = "sft"'),
        (("--objective.kind=sft",), "all sources hold text"),
        ((*SFT, "--data.mask_documents=false"), "must not see each other"),
        ((*SFT, "--objective.beta=0.2"), 'only objective.kind = "dpo" reads it'),
        ((*DPO, CHATS), "holds conversations"),
        ((*DPO, '--eval.sets=[{"name": "a", "path": "data/train"}]'), "data/train holds text"),
        ((*DPO[:-1],), "begins with a model that answers"),
    ):
        ended = triax(taught, "check", "run.toml", *options)
        assert ended.code == 2 and expected in " ".join(ended.text.split()), ended.text
