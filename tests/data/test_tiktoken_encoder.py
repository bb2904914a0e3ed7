"""Ids through `tiktoken` are those of `tokenizers`, or there are none."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.encode import encode_documents
from triax.data.prepare.tiktoken_encoder import _PATTERNS, TiktokenEncoder, tiktoken_encoder

TEXTS = [
    "def find(self, name):\n    return [name for name in self.names if name == 'it''s']\n\n" * 3,
    "We'll see what they've said; I'm sure it's 12345 or 0.5 that he'd like.\r\n\r\n" * 3,
    "L'été, cafe\u0301, Ünïcödé, 東京で何を食べますか, Привет, мир! مرحبا 👩‍👩‍👧 \t\t x" * 3,
    "aaaa aaaaa aaaaaaaa !!!! ==== ---- ........ 11111111" * 3,
]
ATOMS = [
    *("a", "aa", "b", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'ſ", "K", "1", "12", "½", "é"),
    *(
        "e\u0301",
        "漢",
        "한",
        "ᄀ",
        "\u200d",
        "👩",
        "\u00a0",
        "\u3000",
        "\u0085",
        "\u2028",
        "İ",
        "ǅ",
    ),
    *("<|endoftext|>", "<|", "|>", "_", "(", "!!", "====", "\x00", "\ufeff", "word", "def ", "/"),
    *("\U000e0001", "\U0001f1e6", "ⅷ", "٣", "\u1680", "\u180e", "\U0003ffff"),
]
HOSTILE = st.lists(st.one_of(st.sampled_from(ATOMS), st.text(max_size=3)), max_size=60).map("".join)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def splitting(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer, **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def merging(*pairs: tuple[str, str], ignore_merges: bool = False) -> Tokenizer:
    """A tokenizer of the bytes and what these pairs make."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in pairs)]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab, list(pairs), ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = BYTE_LEVEL
    return tokenizer


def encoder_of(tokenizer: Tokenizer) -> TiktokenEncoder | None:
    return tiktoken_encoder(tokenizer, np.dtype(np.uint32))


@cache
def pairs_of_encoders() -> list[tuple[TiktokenEncoder, Tokenizer]]:
    tokenizers = [trained(BYTE_LEVEL)]
    tokenizers += [trained(splitting(pattern)) for pattern in sorted(_PATTERNS)]
    tokenizers.append(trained(splitting(sorted(_PATTERNS)[0]), ignore_merges=True))
    normalizing = trained(BYTE_LEVEL)
    normalizing.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizers.append(normalizing)
    found = [(encoder_of(tokenizer), tokenizer) for tokenizer in tokenizers]
    return [(encoder, tokenizer) for encoder, tokenizer in found if encoder is not None]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_every_known_kind_of_tokenizer_has_a_fast_encoder() -> None:
    assert len(pairs_of_encoders()) == len(_PATTERNS) + 3


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_the_ids_are_those_of_the_tokenizer(text: str) -> None:
    for encoder, tokenizer in pairs_of_encoders():
        found = encoder.encode(text)
        assert found is not None
        assert found.tolist() == ids(tokenizer, text)


@pytest.mark.parametrize("run", [" ", "\n", "a", "1", "!", "aé", "漢"])
def test_long_runs_are_right_or_left_to_the_tokenizer(run: str) -> None:
    for encoder, tokenizer in pairs_of_encoders():
        found = encoder.encode(run * 3000)
        assert found is not None
        assert found.tolist() == ids(tokenizer, run * 3000)
    assert pairs_of_encoders()[0][0].encode(" " * 3_000_000) is None


def test_a_token_that_never_arises_is_never_made() -> None:
    """aa|aa is no pair of the list, though "aaaa" is a token: `tiktoken` by itself merges it."""
    tokenizer = merging(("a", "a"), ("aa", "a"), ("aaa", "a"))
    assert [tokenizer.id_to_token(number) for number in ids(tokenizer, "aaaa")] == ["aa", "aa"]
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"aa": 256, b"aaa": 257, b"aaaa": 258}
    naive = tiktoken.Encoding("naive", pat_str="a+", mergeable_ranks=ranks, special_tokens={})
    assert len(naive.encode_ordinary("aaaa")) == 1
    encoder = encoder_of(tokenizer)
    assert encoder is not None
    for length in range(20):
        found = encoder.encode("a" * length)
        assert found is not None
        assert found.tolist() == ids(tokenizer, "a" * length)


def test_a_whole_word_that_merges_never_make() -> None:
    """With `ignore_merges` it is one token alone and several within others."""
    tokenizer = merging(("a", "b"), ("b", "c"), ("a", "bc"), ("abc", "d"), ignore_merges=True)
    encoder = encoder_of(tokenizer)
    assert encoder is None  # "abc" alone ends as ab|c, which tiktoken would merge
    tokenizer = merging(("a", "b"), ("c", "d"), ("b", "c"), ("bc", "d"), ("a", "bcd"))
    encoder = encoder_of(tokenizer)
    assert encoder is not None
    for text in ("abcd", "bcd", "xabcd", "abcdbc", "bc"):
        found = encoder.encode(text)
        assert found is not None
        assert found.tolist() == ids(tokenizer, text)


def test_what_only_the_tokenizer_can_tell_is_left_to_it() -> None:
    prefixed = trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    unknown = trained(splitting(r"\w+|\W+"))
    digits = trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])
    )
    no_bytes = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    no_bytes.pre_tokenizer = BYTE_LEVEL
    two_ways = merging(("a", "b"), ("b", "c"), ("ab", "c"), ("x", "y"), ("a", "bc"))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    for tokenizer in (prefixed, unknown, digits, no_bytes, two_ways, words):
        assert encoder_of(tokenizer) is None


def test_text_that_spells_an_added_word_is_left_to_the_tokenizer() -> None:
    tokenizer = trained(BYTE_LEVEL)
    tokenizer.add_tokens([AddedToken("Tokyo", special=False)])
    encoder = encoder_of(tokenizer)
    assert encoder is not None
    assert encoder.encode("in Tokyo") is None
    assert encoder.encode("in Kyoto") is not None


def test_documents_are_the_same_with_and_without(tmp_path: Path) -> None:
    """Also those of which only a part goes the fast way, in the order in which they came."""
    tokenizer = trained(BYTE_LEVEL)
    tokenizer.add_tokens([AddedToken("Tokyo", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents = ["in Tokyo", *TEXTS, "Tokyo", "<|endoftext|> is text", " " * 1_100_000 + "x"]
    tokens = document_tokens(tmp_path)
    found = list(encode_documents(iter(documents), tmp_path, tokens, num_workers=1))
    for document, array in zip(documents, found, strict=True):
        assert array.tolist() == [*ids(tokenizer, document), tokens.end.id]
