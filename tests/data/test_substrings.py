"""Stretches that stood before are cut out, whatever the pieces; tokens are counted on the way."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from triax.common.errors import UserError
from triax.data.clean.clean import clean
from triax.data.clean.config import (
    ExactConfig,
    OutputConfig,
    Recipe,
    StepConfig,
    SubstringsConfig,
)
from triax.data.clean.document import Document
from triax.data.clean.shingles import token_hashes
from triax.data.clean.substrings import RepeatedSubstrings
from triax.data.prepare.text import iter_records
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer

STEP = SubstringsConfig(step="repeated_substrings", tokens=6)


def cleaned(
    texts: list[str], folder: Path, *steps: StepConfig, workers: int = 1, **output: object
) -> list[str]:
    """What is left of texts by their numbers, and the output folder written."""
    rows = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(rows))
    settings = OutputConfig.model_validate({"piece_characters": 1000, "memory_mib": 1, **output})
    recipe = Recipe.model_construct(output=settings, steps=steps)
    clean([str(folder / "rows.jsonl")], recipe, folder / "out", num_workers=workers)
    return [r.text for r in iter_records([str(folder / "out/documents")], with_fields=True)]


def expected(texts: list[str], length: int) -> list[str]:
    """The definition, by sets of windows."""
    seen: set[tuple[str, ...]] = set()
    left = []
    for text in texts:
        words = text.split(" ")
        windows = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        cut = {i + k for i, window in enumerate(windows) if window in seen for k in range(length)}
        seen.update(windows)
        left.append(" ".join(w for i, w in enumerate(words) if i not in cut))
    return [text for text in left if text]


def test_what_stood_before_is_cut_out_as_by_definition(tmp_path: Path) -> None:
    chance = random.Random(4)
    texts = [" ".join(f"w{chance.randrange(4000)}" for _ in range(60)) for _ in range(80)]
    for number in range(0, 80, 3):  # stretches of 4 to 12 words of other texts, in their midst
        words, other = texts[number].split(" "), texts[chance.randrange(80)].split(" ")
        length = chance.randrange(4, 13)
        words[20:20] = other[10 : 10 + length]
        texts[number] = " ".join(words)
    texts += [texts[5], f"{texts[7]} and more", "short text"]
    wanted = expected(texts, 6)
    assert [len(t) for t in wanted] != [len(t) for t in texts]
    assert cleaned(texts, tmp_path / "1", STEP) == wanted
    assert cleaned(texts, tmp_path / "2", STEP, workers=2, piece_characters=3000) == wanted
    assert cleaned(texts, tmp_path / "3", STEP, piece_characters=1_000_000) == wanted


def test_a_phrase_that_repeats_itself_keeps_its_beginning(tmp_path: Path) -> None:
    assert cleaned(["hey ho " * 10], tmp_path, STEP) == ["hey ho hey ho hey ho"]


def test_scripts_without_spaces_are_cut_by_characters(tmp_path: Path) -> None:
    sentence = "私たちは毎日新しい本を読みます"
    left = cleaned([f"一{sentence}二", f"三{sentence}四 ende"], tmp_path, STEP)
    assert left == [f"一{sentence}二", "三四 ende"]


def test_tokens_are_told_by_bytes_wherever_they_lie() -> None:
    hashes, starts = token_hashes("só  weit, 漢字x\nsó".encode())
    assert starts.tolist() == [0, 5, 11, 14, 19]
    assert hashes[0] == hashes[-1] and len(np.unique(hashes)) == 4
    assert len(token_hashes(b"")[0]) == len(token_hashes(b" \n ")[0]) == 0
    long = b"word " * 200_000
    assert len(np.unique(token_hashes(long)[0])) == 1


def test_against_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("the former text went on and on for a while")
    step = STEP.model_copy(update={"against": (str(tmp_path / "old.txt"),)})
    left = cleaned(["now the former text went on and on again"], tmp_path / "new", step)
    assert left == ["now again"]


def test_a_document_without_a_window_has_no_keys() -> None:
    step = RepeatedSubstrings(STEP)
    assert len(step.keys([Document("a few words", "", "", "")]).keys) == 0
    assert len(step.keys([]).keys) == 0


def test_tokens_are_counted_by_step(tmp_path: Path) -> None:
    texts = [f"the text number {number} says something else, {number}" for number in range(30)]
    texts += texts[:5]
    (tmp_path / "t.txt").write_text(" ".join(texts))
    train_tokenizer([str(tmp_path / "t.txt")], 300, tmp_path / "tok")
    steps = (ExactConfig(step="exact_duplicates"), STEP)
    left = cleaned(texts, tmp_path / "c", *steps, tokenizer=str(tmp_path / "tok"))
    record = json.loads((tmp_path / "c/out/report.json").read_text())
    tokenizer = load_tokenizer(tmp_path / "tok")
    sizes = [sum(len(tokenizer.encode(text).ids) for text in each) for each in (texts, left)]
    assert [record["read"]["tokens"], record["written"]["tokens"]] == sizes
    first, second = record["steps"].values()
    assert first["tokens_in"] == sizes[0] and second["tokens_out"] == sizes[1] < sizes[0]
    assert first["tokens_out"] == second["tokens_in"]
    page = (tmp_path / "c/out/report.html").read_text()
    assert "left of all tokens" in page and f"of {sizes[0]:,} tokens" in page
    with pytest.raises(UserError, match="no such tokenizer"):
        cleaned(texts, tmp_path / "d", *steps, tokenizer=str(tmp_path / "none"))
