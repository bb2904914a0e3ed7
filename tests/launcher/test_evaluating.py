"""What a run evaluates beside its validation loss: tasks and further sets, in any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import curve, make_job, read_events, train, triax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triax.data.prepare.tokenizer import decode, load_tokenizer
from triax.data.read.source import Source
from triax.inference.generate import generate
from triax.inference.load import find_model
from triax.inference.sampling import Sampling
from triax.inference.scoring import score
from triax.launcher.checks.sections import load_checked
from triax.launcher.config.problems import ConfigError
from triax.training.evaluation.builtin import cloze, continuation
from triax.training.evaluation.choices import Task

PROMPTS = ["the cat sat on", "mat", " ".join(["a red house and a blue tree"] * 9)]
"""The last one is longer than the model's context."""
EVALUATIONS = (
    '--eval.tasks=["continuation","cloze"]',
    "--eval.questions=12",
    '--eval.sets=[{"name": "seen", "path": "data/train"}]',
    "--eval.batches=1",
    f"--eval.prompts={json.dumps(PROMPTS)}",
    "--eval.sample_tokens=9",
    "--model.num_kv_heads=2",
)


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run with evaluations has ended."""
    folder = make_job(corpus, tmp_path_factory.mktemp("evaluating"))
    ended = train(folder, *EVALUATIONS, "--run.name=alone")
    assert ended.code == 0, ended.text
    assert "\n  seen          loss " in ended.out and "\n  cloze         accuracy " in ended.out
    assert "\n  sample        the cat sat on | " in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    return folder


def found(folder: Path, run: str) -> list[dict[str, Any]]:
    return read_events(folder / "runs" / run, "evaluation")


def samples(folder: Path, run: str) -> list[tuple[str, str]]:
    return [
        (event["prompt"], event["text"]) for event in read_events(folder / "runs" / run, "sample")
    ]


def test_training_is_the_same_to_the_bit_with_and_without(folder: Path) -> None:
    assert train(folder, "--run.name=bare", "--data.validation=none", EVALUATIONS[-1]).code == 0
    assert curve(folder / "runs/alone") == curve(folder / "runs/bare")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tensor", ["--parallel.tensor=2"]),
        ("pipeline", ["--parallel.pipeline=2", "--eval.every=8 steps"]),
        ("shards", ["--parallel.zero_stage=3"]),
        ("context", ["--parallel.context=2", "--parallel.context_method=ring"]),
    ],
)
def test_every_layout_finds_the_same(folder: Path, name: str, overrides: list[str]) -> None:
    ended = train(folder, *EVALUATIONS, *overrides, f"--run.name={name}", num_processes=2)
    assert ended.code == 0, ended.text
    for mine, alone in zip(
        (found(folder, name)[0], found(folder, name)[-1]),
        (found(folder, "alone")[0], found(folder, "alone")[-1]),
        strict=True,
    ):
        assert mine["loss"] == pytest.approx(alone["loss"], rel=2e-5)
        assert mine["sets"]["seen"] == pytest.approx(alone["sets"]["seen"], rel=1e-4)
        for task, figures in alone["tasks"].items():
            assert mine["tasks"][task] == pytest.approx(figures, rel=1e-4), task
    written, expected = samples(folder, name), samples(folder, "alone")
    assert (written[:3], written[-3:]) == (expected[:3], expected[-3:])


def questions(folder: Path) -> list[Task]:
    source = Source.open(folder / "data/validation", 32, 304)
    tokenizer = load_tokenizer(folder / "tokenizer")
    return [continuation(source, 12), cloze(source, tokenizer, 12)]


def test_scores_are_those_of_the_plain_model_on_each_row_alone(folder: Path) -> None:
    model = find_model(str(folder / "runs/alone")).load()
    scores = found(folder, "alone")[-1]["tasks"]
    for task in questions(folder):
        hits, losses = 0, []
        for question in task.questions:
            pairs = [(question.context, choice) for choice in question.choices]
            values = [one.log_prob for one in score(model, pairs, max_length=32, batch_size=4)]
            hits += values.index(max(values)) == question.answer
            losses.append(-values[question.answer] / len(question.choices[question.answer]))
        count = len(task.questions)
        assert scores[task.name]["num_questions"] == count >= 4
        assert scores[task.name]["accuracy"] == pytest.approx(hits / count)
        assert scores[task.name]["loss"] == pytest.approx(sum(losses) / count, rel=1e-5)


def test_questions_have_one_right_answer_in_every_place(folder: Path) -> None:
    for task in questions(folder):
        for question in task.questions:
            assert len(set(question.choices)) > 1
            assert 0 <= question.answer < len(question.choices) == len(question.lengths) == 4
        assert {question.answer for question in task.questions} == {0, 1, 2, 3}
    assert questions(folder) == questions(folder)


def test_samples_are_what_the_checkpoint_writes(folder: Path) -> None:
    """Told to the files of events and to TensorBoard."""
    found = find_model(str(folder / "runs/alone"))
    tokenizer = found.tokenizer()
    written = samples(folder, "alone")
    assert len(written) == 3 * len(
        steps := [event["step"] for event in read_events(folder / "runs/alone", "evaluation")]
    )
    assert len(set(written)) > 3, "after all steps as after none"
    for prompt, (begun, text) in zip(PROMPTS, written[-3:], strict=True):
        tokens = found.document_tokens().begun(tokenizer.encode(prompt).ids)[-(32 - 9) :]
        new = generate(
            found.load(), tokens, max_new_tokens=9, context=32, sampling=Sampling(temperature=0),
            stop_tokens=[found.document_tokens().end.id],
        )  # fmt: skip
        assert begun == decode(tokenizer, tokens)
        assert begun + text == decode(tokenizer, [*tokens, *new])
    board = EventAccumulator(str(folder / "runs/alone/tensorboard")).Reload()
    assert [one.step for one in board.Tensors("samples/0/text_summary")] == steps


def test_evaluations_wait_until_their_share_of_the_time_allows_them(
    folder: Path, corpus: Path
) -> None:
    """And where no prompts are given, samples go on with the validation text's beginnings."""
    ended = train(
        folder, "--run.name=thrifty", "--eval.every=1 steps", "--eval.budget=0.001%",
        "--eval.prompts=none",
    )  # fmt: skip
    assert ended.code == 0, ended.text
    assert [event["step"] for event in found(folder, "thrifty")] == [0, 24]
    begun = [prompt for prompt, _ in samples(folder, "thrifty")]
    assert len(begun) == 4 and begun[:2] == begun[2:] and begun[0] != begun[1]
    text = (corpus / "corpus.jsonl").read_text()
    assert all(prompt in text for prompt in begun)


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (['eval.sets=[{"name": "a", "path": "gone"}]'], "eval.sets.0.path", "no such dataset"),
        (['eval.sets=[{"name": "validation", "path": "data/train"}]'], "eval.sets.0.name", "taken"),
        (['eval.tasks=["cloze", "cloze"]'], "eval.tasks", "given twice"),
        (['eval.tasks=["cloze"]', "data.validation=none"], "data.validation", "eval.tasks needs"),
        (['eval.prompts=["a"]', "data.tokenizer=none"], "data.tokenizer", "eval.prompts needs"),
        (["eval.budget=2"], "eval.budget", "above 0 and up to"),
        (["eval.budget=two"], "eval.budget", 'such as "2%"'),
    ],
)
def test_what_can_not_be_evaluated_is_refused_before_it_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], path: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as caught:
        load_checked("run.toml", overrides)
    [problem] = caught.value.problems
    assert problem.path == path and words in problem.message, problem


def test_too_little_text_to_ask_about_is_told(folder: Path) -> None:
    (folder / "short.jsonl").write_text(json.dumps({"text": "one two " * 40}) + "\n")

    made = "data prepare short.jsonl --tokenizer tokenizer --output short --validation-fraction 0"
    assert triax(folder, *made.split()).code == 0
    ended = train(
        folder, "--run.name=few", '--eval.tasks=["cloze"]', "--data.validation=short/train",
        num_processes=2,
    )  # fmt: skip
    assert ended.code == 2 and "cloze finds only" in ended.error, ended.text
    assert "Traceback" not in ended.text
