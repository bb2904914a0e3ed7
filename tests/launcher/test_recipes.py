"""Recipes: each step once, going on where one failed; and the guide's own, made short."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest

from triax.common.errors import UserError
from triax.launcher.cli import main
from triax.launcher.config.problems import ConfigError
from triax.launcher.recipes.recipe import Step, read_recipe
from triax.launcher.recipes.steps import set_out, take_steps

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "examples/from-scratch"
SMALL = """\
says = "A small one."
[[steps]]
name = "first"
says = "Write down what is typed."
run = ["python", "-c", "open('typed', 'a').write(input() + input())"]
types = ["one", "two"]
[[steps]]
name = "second"
says = "Fail until there is a file."
run = ["python", "-c", "import sys; open('asked', 'a').write(sys.argv[-1]); open('wanted')"]
short = ["short"]
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the work of a small recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples/small").mkdir(parents=True)
    (tmp_path / "examples/small/recipe.toml").write_text(SMALL)
    return tmp_path / "small"


def test_a_recipe_goes_on_where_a_step_failed(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "small"]) == 1
    assert (
        "[2/2] second: ended with code 1; the same command goes on here" in capsys.readouterr().out
    )
    (small / "wanted").touch()
    assert main(["recipe", "small"]) == 0
    assert "[1/2] first: done before" in capsys.readouterr().out
    assert (small / "typed").read_text() == "onetwo"
    assert main(["recipe", "small"]) == 0
    assert len((small / "asked").read_text().split("-c")) == 3, "asked twice, not a third time"
    assert main(["recipe", "small", "--from", "first"]) == 0
    assert (small / "typed").read_text() == "onetwoonetwo"


def test_a_short_recipe_works_in_a_folder_of_its_own(small: Path) -> None:
    short = small.with_name("small-short")
    assert main(["recipe", "examples/small", "--short"]) == 1
    assert (short / "asked").read_text() == "short" and not small.exists()


def test_what_the_learner_changed_stays_and_counts(small: Path) -> None:
    small.mkdir()
    (small / "recipe.toml").write_text(SMALL.split('[[steps]]\nname = "second"')[0])
    assert main(["recipe", "small"]) == 0
    changed = SMALL.replace("input() + input()", "'changed'").split('[[steps]]\nname = "second"')[0]
    (small / "recipe.toml").write_text(changed)
    assert main(["recipe", "small"]) == 0
    assert (small / "typed").read_text() == "onetwochanged", "another command is another step"


def test_listing_does_nothing(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "small", "--list"]) == 0
    assert "\nsecond: Fail until there is a file.\n$ python -c" in capsys.readouterr().out
    assert not small.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["big"], "in examples/ there are small"),
        (["small", "--from", "third"], "there are first, second"),
    ],
)
def test_what_is_not_there_is_said(
    small: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (small / "typed").exists()


def test_a_missing_program_and_a_damaged_record_are_said(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.mkdir()
    (small / "recipe.toml").write_text(SMALL.replace('"python", "-c"', '"no-such-program"'))
    assert main(["recipe", "small"]) == 2
    assert "step first: no-such-program: No such file" in capsys.readouterr().err
    (small / ".recipe.json").write_text("[")
    assert main(["recipe", "small"]) == 2
    assert "delete it to begin at the first step" in " ".join(capsys.readouterr().err.split())


def test_every_mistake_of_a_recipe_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('says = "x"\n[[steps]]\nname = "a"\nsays = "a"\nrun = []\nshell = true\n')
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path)
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (5, "steps.0.run"),
        (6, "steps.0.shell"),
    ]
    step = '[[steps]]\nname = "a"\nsays = "a"\nrun = ["a"]\n'
    path.write_text('says = "x"\n' + 2 * step)
    with pytest.raises(UserError, match="two steps are called a"):
        read_recipe(tmp_path)


# The guide


def test_the_guide_says_the_commands_that_the_recipe_runs() -> None:
    text = (ROOT / "docs/from-scratch.md").read_text(encoding="utf-8")
    steps = text[text.index("\n## 1") : text.index("\n## All of it")].replace("\\\n", "")
    lines = re.findall(r"^ {4}((?:triax|python) .*)$", steps, flags=re.MULTILINE)
    assert [shlex.split(line) for line in lines] == [
        step.arguments(short=False) for step in read_recipe(GUIDE).steps
    ]


def start_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a step's command in this process, which has imported torch; a training in a fork."""

    def start(step: Step, arguments: list[str], folder: Path) -> int:
        program, *rest = arguments
        if rest[0] == "train":
            ended = jobs.train(folder, *rest[2:], config=rest[1])
            print(ended.text)
            return ended.code
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in step.types)))
            if program == "triax":
                return main(rest)
            patch.setattr(sys, "argv", rest)
            runpy.run_path(rest[0], run_name="__main__")
        return 0

    return start


def test_the_guide_made_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rensa")
    set_out(GUIDE, tmp_path)
    recipe, said = read_recipe(tmp_path), list[str]()
    start = start_here(monkeypatch)
    code = take_steps(recipe, tmp_path, short=True, begin_at=None, say=said.append, start=start)
    assert code == 0, capsys.readouterr()
    rows = json.loads((tmp_path / "answers/answers.json").read_text())
    assert [row["set"] for row in rows] == ["in other words"] * 5 + ["held out"] * 5
    assert all(list(row["answers"]) == ["base", "sft", "dpo"] for row in rows)
    table = (tmp_path / "answers/answers.md").read_text()
    assert all(row["question"] in table for row in rows)
    for name in ("pictures/cleaning.png", "pictures/losses.png", "answers/answers.png",
                 "tokenizers.png", "exported/model.safetensors"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 1000, name
    losses = [row["loss"] for row in jobs.read_rows(tmp_path / "runs/sft")]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scripts make, with one order of Python's sets and with another."""
    folder = tmp_path_factory.mktemp("made")
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(GUIDE / script),
                "--output",
                str(folder / seed / script),
                *rest,
            ],
            env={"PYTHONHASHSEED": seed, "SECRET": "from the environment"},
        )
        for seed in ("1", "2")
        for script, *rest in (["texts.py", "--short"], ["conversations.py"])
    ]
    assert [process.wait(60) for process in started] == [0] * 4
    return folder


@pytest.mark.parametrize(
    "name",
    ["texts.py/python.jsonl", "texts.py/system.jsonl", "conversations.py/chats.jsonl",
     "conversations.py/pairs.jsonl", "conversations.py/questions.jsonl"],
)  # fmt: skip
def test_the_scripts_always_make_the_same(made: Path, name: str) -> None:
    content = (made / "1" / name).read_bytes()
    assert content == (made / "2" / name).read_bytes()
    assert b"from the environment" not in content


def test_no_held_out_question_is_taught(made: Path) -> None:
    """In none of its wordings, and its answer is never one to learn; a question in other words is
    taught in others."""
    chats, pairs, questions = (
        [json.loads(line) for line in (made / f"1/conversations.py/{name}.jsonl").open()]
        for name in ("chats", "pairs", "questions")
    )
    taught = {(chat["messages"][0]["content"], chat["messages"][1]["content"]) for chat in chats}
    asked = {question for question, _ in taught} | {pair["prompt"] for pair in pairs}
    answers = {answer for _, answer in taught} | {pair["chosen"] for pair in pairs}
    assert len(questions) == 200 and len(chats) > 3000
    for row in questions:
        assert row["question"] not in asked
        assert (row["answer"] in answers) == (row["set"] == "in other words"), row
    assert {(pair["prompt"], pair["chosen"]) for pair in pairs} <= taught
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
