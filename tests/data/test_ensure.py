"""`[data.prepare]`: what is missing is made, and nothing from what has changed meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.data.config import PrepareConfig
from triax.data.prepare.ensure import ensure_prepared, preparation_problems
from triax.data.prepare.tokenizer import train_tokenizer
from triax.data.record import load_prepared

TEXTS = [f"document {n} " + "words and more words " * (n % 7 * 5) for n in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def config_of(corpus: Path, output: Path, vocab_size: int = 300) -> PrepareConfig:
    return PrepareConfig(
        inputs=(str(corpus),), output=str(output), vocab_size=vocab_size, validation_fraction=0.1
    )


@pytest.fixture
def killed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareConfig:
    """A preparation that was killed after its tokenizer was made."""

    def killed_here(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    config = config_of(corpus, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("triax.data.prepare.ensure.prepare", killed_here)
        ensure_prepared(config)
    assert (tmp_path / "out/tokenizer/tokenizer.json").exists()
    return config


def test_a_killed_preparation_goes_on_with_its_tokenizer(killed: PrepareConfig) -> None:
    assert list(preparation_problems(killed)) == []
    steps: list[str] = []
    ensure_prepared(killed, report=steps.append)
    assert steps[0] == f"using the tokenizer in {killed.output}/tokenizer"
    assert len(steps) == 2


def test_a_tokenizer_is_stale_once_the_inputs_change(killed: PrepareConfig, corpus: Path) -> None:
    corpus.write_text('{"text": "something else"}\n' * 40)
    with pytest.raises(UserError, match=r"data\.prepare\.inputs: their files have changed since"):
        ensure_prepared(killed)
    assert load_prepared(Path(killed.output)) is None
    assert not list(Path(killed.output).glob("*.idx"))
    shutil.rmtree(killed.output)
    ensure_prepared(killed)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 400), ("text_field", "body"), ("inputs", ("python-stdlib",))],
)
def test_a_tokenizer_made_otherwise_is_refused_before_anything_is_tokenized(
    killed: PrepareConfig, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triax.data.prepare.ensure.prepare", pytest.fail)
    changed = killed.model_copy(update={name: value})
    [(path, _)] = preparation_problems(changed)
    assert path == f"data.prepare.{name}"
    with pytest.raises(UserError, match=f"data.prepare.{name}: .* was made with "):
        ensure_prepared(changed)


def test_a_tokenizer_of_another_origin_is_used_and_said(corpus: Path, tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path / "out")
    train_tokenizer([str(corpus)], 300, tmp_path / "out/tokenizer")
    steps: list[str] = []
    ensure_prepared(config, report=steps.append)
    assert "nothing there says what it was made from" in steps[0]
    shutil.rmtree(tmp_path / "out")
    train_tokenizer([str(corpus)], 320, tmp_path / "out/tokenizer")
    with pytest.raises(UserError, match=r"data\.prepare\.vocab_size: 300, but .* with 320"):
        ensure_prepared(config)


@pytest.mark.parametrize("name", ["data.json", "progress.json", "tokenizer/made-from.json"])
def test_a_damaged_record_is_named(killed: PrepareConfig, name: str) -> None:
    (Path(killed.output) / name).write_text('{"settings": 3')
    with pytest.raises(UserError, match=f"{name}: damaged"):
        list(preparation_problems(killed))


def test_what_is_finished_is_not_made_again(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    copy = Path(shutil.copy(corpus, tmp_path / "copy.jsonl"))
    config = config_of(corpus, output)
    steps: list[str] = []
    data = ensure_prepared(config, report=steps.append)
    assert len(steps) == 2
    corpus.unlink()  # what is finished needs the inputs no more
    assert ensure_prepared(config, report=steps.append) == data
    assert len(steps) == 2
    changed = config.model_copy(update={"vocab_size": 301})
    with pytest.raises(UserError, match=r"data\.prepare\.vocab_size: 301, .* prepared with 300"):
        ensure_prepared(changed)
    train_tokenizer([str(copy)], 300, output / "tokenizer", sample_characters=50)
    with pytest.raises(UserError, match="not the tokenizer that made the shards"):
        ensure_prepared(config)
