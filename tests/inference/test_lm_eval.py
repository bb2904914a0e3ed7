"""lm-eval finds in a checkpoint what it finds in the folder exported from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import CONTEXT, TASKS, export_random, make_tasks

from triax.common.errors import ExitCode, UserError
from triax.inference import lm_eval as harness
from triax.inference.lm_eval import TaskOptions, run_tasks, task_table
from triax.inference.lm_eval_questions import read_questions
from triax.inference.load import ModelFolder, find_model
from triax.inference.scoring import score
from triax.launcher.cli import main

simple_evaluate = pytest.importorskip(
    "lm_eval", reason='needs the lm-eval package (pip install "triax[eval]")'
).simple_evaluate
for needed in ("transformers", "accelerate", "peft"):
    pytest.importorskip(needed, reason=f"lm-eval's own model, to compare with, needs {needed}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, an exported random model, and task files with their data."""
    root = tmp_path_factory.mktemp("tasks")
    make_tasks(root)
    export_random(root)
    return root


@pytest.fixture(scope="module")
def loaded(folder: Path) -> ModelFolder:
    return find_model(str(folder / "hf"))


def test_the_figures_are_those_of_the_exported_folder(
    folder: Path, loaded: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts below and beyond the context, choices of several tokens, rolling texts, writing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    monkeypatch.setattr(harness, "find_model", lambda _: loaded)
    output = folder / "results.json"
    options = TaskOptions(
        list(TASKS), include_path=folder / "own", batch_size=3, output=output, log_samples=True
    )
    ours = run_tasks("unused", options)
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs: Any = simple_evaluate(
        model=HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=2),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder / "own")),
    )
    for name in TASKS:
        for own, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert own["doc"] == other["doc"]
            for left, right in zip(own["resps"], other["resps"], strict=True):
                compare(left[0], right[0])
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["choose"][metric] == theirs["results"]["choose"][metric]
    assert json.loads(output.read_text())["results"] == ours["results"]
    table = task_table(ours)
    assert all(len(line) <= 80 for line in table) and any("acc_norm" in line for line in table)


def test_the_command_shows_a_table_and_names_unknown_tasks(
    folder: Path,
    loaded: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(harness, "find_model", lambda _: loaded)
    command = ["eval", "unused", "--include-path", str(folder / "own"), "--limit", "2"]
    assert main([*command, "--tasks", "choose", "--num-fewshot", "0"]) == ExitCode.DONE
    assert "acc_norm" in capsys.readouterr().out
    assert main([*command, "--tasks", "choose,nothing"]) == ExitCode.BAD_INPUT
    assert "nothing: no such task" in capsys.readouterr().err


def test_a_run_asks_the_questions_that_lm_eval_asks(
    folder: Path, loaded: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same log-likelihoods for the same choices, so the same accuracies."""
    monkeypatch.setattr(harness, "find_model", lambda _: loaded)
    own = str(folder / "own")
    options = TaskOptions(["choose"], include_path=folder / "own", log_samples=True)
    results = run_tasks("unused", options)
    tokenizer = str(folder / "tokenizer")
    asked = read_questions("choose", tokenizer, loaded.document_tokens(), 100, own)
    hits = normalised_hits = 0
    for question, sample in zip(asked, results["samples"]["choose"], strict=True):
        pairs = [(question.context, choice) for choice in question.choices]
        scored = score(loaded.load(), pairs, max_length=CONTEXT, batch_size=4)
        found = [one.log_prob for one in scored]
        assert found == pytest.approx([reply[0][0] for reply in sample["resps"]], rel=1e-6)
        hits += found.index(max(found)) == question.answer
        divided = [x / size for x, size in zip(found, question.lengths, strict=True)]
        normalised_hits += divided.index(max(divided)) == question.answer
    figures = results["results"]["choose"]
    assert (figures["acc,none"], figures["acc_norm,none"]) == pytest.approx(
        (hits / len(asked), normalised_hits / len(asked))
    )
    for name, words in (("write", "choosing among answers"), ("nothing", "no such task")):
        with pytest.raises(UserError, match=words):
            read_questions(name, tokenizer, loaded.document_tokens(), 100, own)


def compare(own: Any, other: Any) -> None:
    """Texts and decisions are equal, log-likelihoods nearly."""
    if isinstance(own, str):
        assert own == other
    elif isinstance(own, list | tuple):
        assert own[0] == pytest.approx(other[0], rel=1e-5) and bool(own[1]) == bool(other[1])
    else:
        assert own == pytest.approx(other, rel=1e-5)
