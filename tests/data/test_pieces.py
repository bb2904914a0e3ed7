"""Long texts in pieces: the tokens are those of the whole text, whatever it holds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from triax.data.prepare.pieces import Sizes, encode_in_pieces

SMALL = Sizes(piece=60, margin=40, longest=100_000)
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THOUSANDS = r"\d{1,3}(?=(?:\d{3})*\b)|\s+|[^\s\d]+"
"""Looks ahead to the end of a run of digits."""
CORPUS = [
    "The quick brown fox's 12345 tails,\n\n  didn't jump; it'll  wait...\t\t(x == 10)\r\n",
    "schöne Größe, déjà vu, 漢字かな交じり文。 🙂👩‍👩‍👧 한국어 ",
] * 9


def trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    added: Sequence[str] = (),
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.encode_special_tokens = True
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigrams() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS = {
    "gpt-2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "space put before": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt-4": lambda: trained(split(GPT4), normalizers.NFC()),
    "thousands": lambda: trained(split(THOUSANDS)),
    "added white space": lambda: trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False), None, ["  ", "    ", "\n\n", "<tag>"]
    ),
    "metaspace": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "strips": lambda: trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizers.Sequence([normalizers.NFD(), normalizers.Strip()]),
    ),
    "word pieces": word_pieces,
    "unigrams": unigrams,
}
ATOMS = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "a", "word", "fox's", "'", "'ll", "I'", "1",
    "12", "12345", ",", "...", "<|end|>", "<tag>", "<", "|>", "é", "e\u0301", "\u0327", "\u0301",
    "漢字", "。", "かな", "🙂", "👩‍👩‍👧", "\u200d", "한", "\u1112", "\u1161", "\u11ab", "_", "==",
    "\u0000", "\ufeff", "ﬁ", "İ", "Σ",
]  # fmt: skip


@st.composite
def hostile(draw: st.DrawFn) -> str:
    """Runs of hostile characters, some longer than a window."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    few = rng.sample(ATOMS, rng.randint(1, 8))
    lengths = [1, 1, 1, 1, 2, 3, 7, 30, 90, 250]
    parts = (
        rng.choice(few if rng.random() < 0.8 else ATOMS) * rng.choice(lengths)
        for _ in range(rng.randint(1, 60))
    )
    return "".join(parts)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


@settings(deadline=None, max_examples=25)
@given(text=hostile())
@example(text="a" + "\u0301" * 300 + "\u0327 b" * 40)
@example(text="word \n" + " " * 500 + "\n" + "word " * 50)
@example(text="word " * 20 + "1" * 500 + " word" * 50)
def test_pieces_have_the_tokens_of_the_whole(tokenizer: Tokenizer, text: str) -> None:
    pieces = list(encode_in_pieces(tokenizer, text, SMALL))
    assert list(chain(*pieces)) == tokenizer.encode(text, add_special_tokens=False).ids


def test_ordinary_text_is_cut_often(tokenizer: Tokenizer) -> None:
    text = "".join(CORPUS) * 3
    pieces = list(encode_in_pieces(tokenizer, text, SMALL))
    assert list(chain(*pieces)) == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(pieces) > len(text) // 400


def test_without_a_boundary_the_text_is_cut_at_the_stated_length() -> None:
    tokenizer = TOKENIZERS["gpt-2"]()
    pieces = list(encode_in_pieces(tokenizer, "x" * 1000, Sizes(piece=60, margin=40, longest=300)))
    assert len(pieces) == 4
    assert tokenizer.decode(list(chain(*pieces))) == "x" * 1000
