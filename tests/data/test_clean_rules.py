"""Each quality rule beside datatrove's on the same words, and the parts of MinHash."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.data.clean.config import C4Config, FineWebConfig, GopherConfig, RepetitionConfig
from triax.data.clean.document import Document
from triax.data.clean.gopher import Gopher, GopherRepetition
from triax.data.clean.groups import KEY, Components, later_items
from triax.data.clean.passes import LocalStep
from triax.data.clean.shingles import plain, shingle_hashes, word_hashes
from triax.data.clean.web import C4, FineWeb
from triax.data.clean.words import count_sentences, split_words

LINES = st.sampled_from(
    [
        "The cat and the dog have been to the house of that man.",
        "The cat and the dog have been to the house of that man.",
        "- item one",
        "• item two of the list...",
        "## head # # #",
        "Read our Privacy Policy and terms of use.",
        "This needs JavaScript to be shown.",
        "It was the best of times, with [12] citations [edit].",
        "x" * 1200 + " is a long word here.",
        "1 2 3 4 5 6 7 8 9 0 $ % & * ( )",
        'He said: "be that as it may"',
        "one {curly} line with words.",
        "Lorem ipsum dolor sit amet.",
        "word " * 30,
        "a",
        "",
        "Wait... what…",
        "日本語の文。",
    ]
)
TEXTS = st.lists(LINES, min_size=1, max_size=25).map("\n".join).filter(str.strip)
GOPHER = {
    "gopher_short_doc": "words",
    "gopher_long_doc": "words",
    "gopher_below_avg_threshold": "word_length",
    "gopher_above_avg_threshold": "word_length",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "alpha_words",
    "gopher_enough_stop_words": "stop_words",
}
REPETITION = {
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_ngrams_{n}" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_ngrams_{n}" for n in range(5, 11)},
}
C4_NAMES = {
    "lorem_ipsum": "lorem_ipsum",
    "curly_bracket": "curly_bracket",
    "too_few_sentences": "sentences",
}
FINEWEB = {
    "empty": "empty",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_characters",
    "list_ratio": "newlines",
}


@pytest.fixture(scope="module")
def theirs() -> list[tuple[Any, dict[str, str]]]:
    """datatrove's filters, given triax's words and sentences, which spaCy parts a little finer."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    patch = pytest.MonkeyPatch()
    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        patch.setattr(module, "split_into_words", lambda text, _language: split_words(text))
    patch.setattr(
        c4_filters,
        "split_into_sentences",
        lambda line, _language: range(count_sentences(line)),
    )
    return [
        (filters.GopherQualityFilter(min_doc_words=10), GOPHER),
        (filters.GopherRepetitionFilter(), REPETITION),
        (filters.C4QualityFilter(), C4_NAMES),
        (filters.FineWebQualityFilter(), FINEWEB),
    ]


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_the_rules_decide_as_datatrove_does(text: str, theirs: Any) -> None:
    from datatrove.data import Document as TheirDocument

    ours: tuple[LocalStep, ...] = (
        Gopher(GopherConfig(step="gopher", min_words=10)),
        GopherRepetition(RepetitionConfig(step="gopher_repetition")),
        C4(C4Config(step="c4")),
        FineWeb(FineWebConfig(step="fineweb")),
    )
    for step, (their_filter, names) in zip(ours, theirs, strict=True):
        document = Document(text, "", "", "")
        other = TheirDocument(text=text, id="")
        verdict = their_filter.filter(other)
        assert step(document) == (None if verdict is True else names[verdict[1]])
        if verdict is True:
            assert document.text == other.text


WORDS = st.text("abzAZ09é-. \n漢字", max_size=60)


@given(texts=st.lists(WORDS, max_size=5), ngram=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_equal_ngrams_have_equal_hashes_and_others_dont(texts: list[str], ngram: int) -> None:
    """Beside plain Python; digits only where they are whole words."""
    texts = ["".join(char for char in text if not char.isdigit()) for text in texts]
    hashes, offsets = shingle_hashes(texts, ngram)
    by_hash: dict[int, tuple[str, ...]] = {}
    for text, begin, end in zip(texts, offsets, offsets[1:], strict=False):
        words = "".join(c if c.isalnum() else " " for c in plain(text).decode().lower()).split()
        ngrams = list(zip(*(words[n:] for n in range(ngram)), strict=False))
        assert end - begin == len(ngrams)
        for value, expected in zip(hashes[begin:end].tolist(), ngrams, strict=True):
            assert by_hash.setdefault(value, expected) == expected
    assert len(set(by_hash.values())) == len(by_hash)


def test_a_word_has_one_hash_wherever_it_stands() -> None:
    far = b"word " + b"filler " * 100_000 + b"word 12 345 WORD"
    hashes, _ = word_hashes(far)
    assert hashes[0] == hashes[-4] == hashes[-1]
    assert hashes[-2] == hashes[-3]
    assert len(np.unique(hashes)) == 3


@pytest.mark.parametrize("memory", [1 << 30, 4000])
def test_later_items_of_a_key_are_found_in_any_memory(memory: int, tmp_path: Path) -> None:
    chance = np.random.Generator(np.random.PCG64(3))
    keys = np.zeros(600, KEY)
    keys["high"] = chance.integers(0, 90, 600, np.uint64) * np.uint64((1 << 64) // 91)
    keys["low"] = chance.integers(0, 2, 600)
    keys["item"] = np.arange(600)
    for number in range(6):
        keys[number * 100 : number * 100 + 100].tofile(tmp_path / f"{number}")
    first: dict[tuple[int, int], int] = {}
    expected = {}
    for high, low, item in keys.tolist():
        if first.setdefault((high, low), item) != item:
            expected[item] = first[high, low]
    files = [tmp_path / f"{number}" for number in range(6)]
    found = list(later_items(files, tmp_path / "sort", memory))
    assert (len(found) > 1) == (memory == 4000)
    pairs = {
        int(item): int(one) for items, ones in found for item, one in zip(items, ones, strict=True)
    }
    assert pairs == expected
    assert not (tmp_path / "sort").exists()


@given(edges=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_called_by_their_smallest_member(edges: list[tuple[int, int]]) -> None:
    labels = list(range(20))
    for _ in range(20):
        for one, other in edges:
            labels[one] = labels[other] = min(labels[one], labels[other])
    chance = random.Random(1)
    components = Components(20)
    chance.shuffle(edges)
    for part in (edges[:7], edges[7:]):
        ones, others = np.array(part, np.int64).reshape(-1, 2).T
        components.connect(ones, others)
    assert components.labels().tolist() == labels
