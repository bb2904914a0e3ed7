"""`triax init`: run files that `triax check` accepts, and examples that state today's forecasts."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from pathlib import Path

import pytest
from jobs import make_job, train

from triax.launcher.cli import main
from triax.launcher.init.edit import remove_key, replace_table, set_value
from triax.launcher.init.recipes import RECIPES
from triax.launcher.init.run_file import make_run_file

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("recipes", ROOT / "benchmarks" / "recipes.py")
assert _SPEC is not None and _SPEC.loader is not None
recipes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipes)
OTHER_COUNTS = {"gpt2-124m": 3, "llama-8b": 24, "sft": 6, "laptop-50m": 2}
"""Numbers of GPUs that a recipe isn't written for, and that do."""
CASES = [
    (name, gpus)
    for name, recipe in RECIPES.items()
    for gpus in (*recipe.gpus, *([OTHER_COUNTS[name]] if name in OTHER_COUNTS else ()))
]
CLOSE = 0.11
"""Two figures of two digits that are one apart in the last."""


@pytest.fixture(scope="module")
def place(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of text, conversations and pairs, and a run to begin with."""
    folder = make_job(corpus, tmp_path_factory.mktemp("init"))
    said = [f"the dog {n % 3}" for n in range(60)]
    chats = [{"prompt": f"the cat {n}", "completion": each} for n, each in enumerate(said)]
    pairs = [
        {"prompt": f"the cat {n}", "chosen": each, "rejected": "a tree"}
        for n, each in enumerate(said)
    ]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chance = random.Random(3)
    words = ["a", "cat", "sat", "on", "the", "mat", "and", "ran"]
    lines = [" ".join(chance.choices(words, k=900)) for _ in range(1000)]
    (folder / "long.txt").write_text("\n".join(lines))
    tokenizer = ["--tokenizer", str(folder / "tokenizer"), "--output"]
    for verb, *rest in (
        ["conversations", str(folder / "chats.jsonl"), *tokenizer, str(folder / "chats")],
        ["conversations", str(folder / "pairs.jsonl"), "--pairs", *tokenizer,
         str(folder / "pairs")],
        ["prepare", str(folder / "long.txt"), "--workers", "1", "--validation-fraction", "0.4",
         *tokenizer, str(folder / "text")],
    ):  # fmt: skip
        assert main(["data", verb, *rest]) == 0
    ended = train(folder, "--budget.tokens=1024", "--metrics.tensorboard=false")
    assert ended.code == 0, ended.text
    return folder


@pytest.mark.parametrize(("name", "gpus"), CASES)
def test_check_accepts_what_init_writes(
    name: str,
    gpus: int,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[name]
    data = {"conversations": "chats", "pairs": "pairs", "text": "text"}[recipe.takes]
    options = ["--data", "python-stdlib"]
    if recipe.has_start:
        options = ["--data", str(place / data), "--from", str(place / "runs/job")]
        options += ["--tokenizer", str(place / "tokenizer")] if data == "text" else []
    assert main(["init", "mine", "--recipe", name, "--gpus", str(gpus), *options]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert main(["check", "mine.toml", "--nproc", str(max(1, gpus))]) == 0
    text = (tmp_path / "mine.toml").read_text()
    assert 'name = "mine"' in text and text.count("\n#") >= 3


def test_shards_bring_their_vocabulary(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small.toml"
    arguments = ["--recipe", "laptop-10m", "--data", str(place / "text")]
    arguments += ["--tokenizer", str(place / "tokenizer"), "--output", str(output)]
    assert main(["init", "small", *arguments]) == 0
    text = output.read_text()
    assert "vocab_size = 300" in text and "[data.prepare]" not in text
    assert main(["check", str(output)]) == 0
    assert main(["init", "small", *arguments]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "NAME, --recipe, --data is missing"),
        ("mine --recipe laptop-10 --data python-stdlib", "did you mean laptop-10m?"),
        ("mine --recipe laptop-10m --data nowhere.txt", "no such file or folder"),
        ("mine --recipe laptop-10m --data python-stdlib --gpus -1", "whole number of at least 0"),
        ("mine --recipe laptop-10m --data python-stdlib --gpus 1 --gpu h1000", "not in the table"),
        ("mine --recipe llama-70b --data python-stdlib --gpus 8", "won't do on 8 x H100"),
        ("mine --recipe llama-8b --data python-stdlib --from PLACE/runs/job", "of its own"),
        ("mine --recipe sft --data PLACE/chats", "give --from DIR"),
        ("mine --recipe sft --data PLACE/chats --from PLACE/nothing", "no such checkpoint"),
        ("mine --recipe sft --data PLACE/text --from PLACE/runs/job", "holds text"),
        ("mine --recipe dpo --data PLACE/chats --from PLACE/runs/job", "holds conversations"),
        ("mine --recipe sft --data PLACE/chats.jsonl --from PLACE/runs/job", "data conversations"),
        ("mine --recipe continued-pretraining --data PLACE/text --from PLACE/runs/job",
         "which tokenizer made it?"),
        ("mine --recipe continued-pretraining --data PLACE/long.txt --from PLACE/runs/job",
         "a tokenizer is there already"),
        ("a/b --recipe laptop-10m --data python-stdlib", "one folder's name"),
    ],
)  # fmt: skip
def test_bad_values_are_told(
    arguments: str,
    words: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *arguments.replace("PLACE", str(place)).split()]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.toml"))


def test_list_tells_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if not line.startswith(" ")] == list(RECIPES)


def same(stated: str, today: str) -> bool:
    """Whether two texts have the same words, and numbers that are close."""
    number = re.compile(r"\d[\d,.]*\d|\d")
    if number.sub("", stated) != number.sub("", today):
        return False
    pairs = zip(number.findall(stated), number.findall(today), strict=True)
    return all(a == b or abs(value(a) - value(b)) <= CLOSE * value(b) for a, b in pairs)


def value(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("name", RECIPES)
def test_the_example_is_what_init_writes_today(name: str) -> None:
    wanted = recipes.wanted(name, RECIPES[name].gpus[0])
    stated = (recipes.EXAMPLES / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert same(stated, make_run_file(wanted).text), "run: python benchmarks/recipes.py"


def test_the_page_states_today_s_forecasts() -> None:
    stated = (recipes.EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert same(stated, "\n".join(recipes.page()) + "\n"), "run: python benchmarks/recipes.py"
    assert not same("20 GiB", "23 GiB") and same("20 GiB", "21 GiB")
    listed = set(re.findall(r"\]\(([\w./-]+)\)", stated))
    assert not [path for path in listed if not (recipes.EXAMPLES / path).exists()]
    files = {path.name for path in recipes.EXAMPLES.iterdir()} - {"README.md", "recipes"}
    assert not [name for name in files if name not in stated]


def test_values_change_and_comments_stay() -> None:
    text = '# of it\n[a]\n# why\nb = 1\n\n# of c\n[c]\nd = "x"\n'
    assert set_value(text, "a", "b", [{"path": 'q"'}]) == text.replace(
        "b = 1", 'b = [{ path = "q\\"" }]'
    )
    assert set_value(text, "a", "e", True).splitlines()[3:5] == ["b = 1", "e = true"]
    assert set_value(text, "z", "e", 1.5).endswith("\n\n[z]\ne = 1.5\n")
    assert remove_key(text, "c", "d") == text.replace('d = "x"\n', "")
    assert replace_table(text, "a", "[a]\nf = 2\n").splitlines()[:3] == ["# of it", "[a]", "f = 2"]
