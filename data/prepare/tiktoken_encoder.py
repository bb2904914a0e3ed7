"""The same ids several times as fast: byte-level BPE through `tiktoken`, where that is provable.

Both libraries split a text into words by a pattern and merge a word's bytes pair by pair, the pair
of the lowest rank first, the leftmost of equals. They differ in which pairs may merge: for
`tokenizers` those in its list, for `tiktoken` any two that together are a token. So:

- A token is *reachable* if its own bytes, encoded as a word, end as this one token. The merges
  within a stretch of a word, up to the first that crosses its border, are those of the stretch
  alone; so a token that isn't reachable alone never arises in any word, and a reachable one only
  from the two parts that it has when it stands alone. With the reachable tokens in the order of
  the list, `tiktoken` makes the same merges.
- With `ignore_merges` a word that is a token as a whole becomes it at once, reachable or not, which
  `tiktoken` does always. Unreachable tokens are then kept for this, unless they end as two parts,
  which `tiktoken` would merge.

Splitting patterns are taken from a list, since `tiktoken` drops what a pattern leaves over; a text
is compared at load, since the libraries' knowledge of Unicode depends on their versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer, models

from triax.data.prepare.split_patterns import GPT2_AS_PUBLISHED, PATTERNS, byte_of_character
from triax.data.read.shard_index import Array

_PATTERNS = {*PATTERNS.values(), GPT2_AS_PUBLISHED}
_PROBED_CODE_POINTS = range(0x80, 0x30000, 61)


class TiktokenEncoder:
    """Encodes text as a `tokenizers` tokenizer does."""

    def __init__(
        self, encoding: tiktoken.Encoding, ids: Array, normalizer: Any, added: Sequence[str]
    ) -> None:
        """Args:
        encoding: whose tokens are ranks.
        ids: [num_ranks] the vocabulary's id of each.
        normalizer: of `tokenizers`, or None.
        added: words that `tokenizers` finds in a text before it is split.
        """
        self._encoding = encoding
        self._ids = ids
        self._normalizer = normalizer
        self._added = added

    def encode(self, text: str) -> Array | None:
        """The text's token ids; None where only `tokenizers` can tell.

        That is a text that spells an added token, or one that is too much for the pattern, such as
        a million spaces.
        """
        normal = text if self._normalizer is None else self._normalizer.normalize_str(text)
        if any(word in text or word in normal for word in self._added):
            return None
        try:
            ranks = self._encoding.encode_to_numpy(normal, disallowed_special=())
        except ValueError:
            return None
        return self._ids[ranks]


def tiktoken_encoder(tokenizer: Tokenizer, dtype: np.dtype[Any]) -> TiktokenEncoder | None:
    """Make an encoder of the same ids; None where that isn't certain.

    Args:
        tokenizer: one of `document_encoder`, for which special tokens in a text are plain text.
        dtype: of the ids.
    """
    raw = json.loads(tokenizer.to_str())
    pattern = _pattern(raw["pre_tokenizer"])
    if pattern is None or not _is_plain(raw["model"]):
        return None
    tokens = _ranked_tokens(raw["model"])
    if tokens is None:
        return None
    encoder = TiktokenEncoder(
        tiktoken.Encoding(
            "triax",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        ),
        np.array(list(tokens.values()), dtype),
        tokenizer.normalizer,
        [token["content"] for token in raw["added_tokens"] if not token["special"]],
    )
    return encoder if _agree(encoder, tokenizer) else None


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The pattern that splits a text into words, if it is one of the known ones."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    *splits, last = steps
    if last is None or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last.get("use_regex", True):
        return None if splits else PATTERNS["gpt2"]
    if len(splits) != 1 or splits[0]["type"] != "Split":
        return None
    (split,) = splits
    pattern = split["pattern"].get("Regex")
    known = pattern in _PATTERNS and split["behavior"] == "Isolated" and not split["invert"]
    return pattern if known else None


def _is_plain(model: dict[str, Any]) -> bool:
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return model["type"] == "BPE" and not any(model.get(key) for key in odd)


def _ranked_tokens(model: dict[str, Any]) -> dict[bytes, int] | None:
    """Each token's bytes and id in the order of the ranks; None where `tiktoken` would differ."""
    vocab: dict[str, int] = model["vocab"]
    to_byte = byte_of_character()
    if not vocab.keys() >= to_byte.keys():
        return None
    words = _merged_words(model["merges"])
    if words is None:
        return None
    alone = models.BPE(vocab, _pairs(model["merges"]))
    ranked = {bytes([byte]): vocab[character] for character, byte in to_byte.items()}
    for word in words:
        if len(alone.tokenize(word)) == 1:
            ranked[bytes(to_byte[character] for character in word)] = vocab[word]
    if not model.get("ignore_merges"):
        return ranked
    for word, number in vocab.items():
        if word and all(character in to_byte for character in word):
            token = bytes(to_byte[character] for character in word)
            if token not in ranked and len(alone.tokenize(word)) == 2:
                return None
            ranked.setdefault(token, number)
    return ranked


def _merged_words(merges: Iterable[Any]) -> list[str] | None:
    """What the merges make, in their order; None where two ways to one word aren't neighbours."""
    made = [first + second for first, second in _pairs(merges)]
    distinct = [word for before, word in pairwise(["", *made]) if word != before]
    return distinct if len(set(distinct)) == len(distinct) else None


def _pairs(merges: Iterable[Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in pairs]


def _agree(encoder: TiktokenEncoder, tokenizer: Tokenizer) -> bool:
    """Whether both give the same ids for a text of all scripts, kinds of space and cases."""
    scattered = "".join(f"a{chr(point)}A 1{chr(point)} '{chr(point)}" for point in _probed())
    odd = "It'S we'LL 12345 ½\r\n\t \u00a0\u3000 x\n\n  y 'ſ 'K ß\u0085\u180e\u200b"
    for text in (scattered, odd):
        ids = encoder.encode(text)
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        if ids is not None and ids.tolist() != expected:
            return False
    return True


def _probed() -> list[int]:
    return [point for point in _PROBED_CODE_POINTS if not 0xD800 <= point < 0xE000]
