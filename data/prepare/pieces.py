"""Long texts to token ids in pieces that give the tokens of the whole.

`tokenizers` encodes word by word, as its pre-tokenizer splits a text from left to right, so a
text may be cut where a word begins. Where that is, a window of the text says, which reaches past
the cut: its last characters aren't trusted, since what follows may change their words. The next
window begins some words before the cut, so that neither a space that is put before a text nor a
pattern that looks back can be felt at it, and has to agree with the first one on the tokens
behind the cut. No cut is made between characters of a kind (letters, digits, white space, ...),
whose words may depend on a run's far end, nor before a character that may melt into the one
before it when Unicode is normalized.

Where no such cut is found within `LONGEST_PIECE` characters (a tokenizer that splits nothing, or
text without a boundary), the text is cut there, in the midst of its tokens.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Encoding, Tokenizer

LONGEST_PIECE = 1 << 20
"""Characters that are encoded at once at most, in some 130 MB; shorter texts need no pieces, which
take three times as long."""
_PIECE = 1 << 16
_MARGIN = 1 << 12
"""Characters at a window's end that may belong to other words than they seem to."""
_CONTEXT_WORDS = 8
"""Words before a cut that the next window reads again."""
_CUTS_TRIED = 4


@dataclass(frozen=True)
class Sizes:
    """In characters; tests make them small."""

    piece: int = _PIECE
    margin: int = _MARGIN
    longest: int = LONGEST_PIECE


_USUAL = Sizes()


@dataclass(frozen=True)
class _Window:
    """The encoding of a stretch of the text. Positions count the text's characters."""

    begin: int
    end: int
    start: int
    """Where the text begins that is still to be given out; before it is context."""
    encoding: Encoding
    starts: list[int]
    """Of each token's characters; not falling."""
    words: list[int | None]
    """Each token's word; None for an added token."""
    ids: list[int]

    @staticmethod
    def of(tokenizer: Tokenizer, text: str, begin: int, start: int, end: int) -> _Window:
        encoding = tokenizer.encode(text[begin:end], add_special_tokens=False)
        starts = [begin + first for first, _ in encoding.offsets]
        return _Window(
            begin, min(end, len(text)), start, encoding, starts, encoding.word_ids, encoding.ids
        )

    def index(self, position: int) -> int | None:
        """The token at which a word begins at a position, if one does."""
        if position == self.begin:
            return 0
        index = bisect_left(self.starts, position)
        if index == len(self.starts) or self.starts[index] != position:
            return None
        return index if self._begins_word(index) else None

    def _begins_word(self, index: int) -> bool:
        if index == 0:
            return True
        new = self.words[index] is None or self.words[index] != self.words[index - 1]
        return new and self.begin + self.encoding.offsets[index - 1][1] <= self.starts[index]

    def cuts(self, text: str, sizes: Sizes) -> Iterator[int]:
        """Indices of tokens before which the text may be cut, the last first."""
        index = bisect_left(self.starts, self.end - sizes.margin)
        while index > 0 and self.starts[index - 1] > self.start:
            index -= 1
            if self._begins_word(index) and _parts_kinds(text, self.starts[index]):
                yield index

    def context(self, cut: int) -> int:
        """A position some words before a token."""
        index = cut
        for _ in range(_CONTEXT_WORDS):
            index = max(0, index - 1)
            while not self._begins_word(index):
                index -= 1
        return self.starts[index] if index > 0 else self.begin

    def agrees(self, cut: int, other: _Window, sizes: Sizes) -> bool:
        """Whether a later window has the same tokens from a cut to this one's trusted end."""
        index = other.index(self.starts[cut])
        if index is None:
            return False
        until = bisect_left(self.starts, self.end - sizes.margin // 2)
        return self.ids[cut:until] == other.ids[index : index + until - cut]


def encode_in_pieces(tokenizer: Tokenizer, text: str, sizes: Sizes = _USUAL) -> Iterator[list[int]]:
    """Encode a text piece by piece, without special tokens around it.

    Args:
        tokenizer: without truncation, padding and post-processor.

    Yields:
        The token ids of a piece; together they are those of the whole text, unless a stretch of
        `sizes.longest` characters has no place to cut it.
    """
    window = _Window.of(tokenizer, text, 0, 0, sizes.piece + sizes.margin)
    while window.end < len(text):
        found = _next(tokenizer, text, window, sizes)
        if found is not None:
            cut, following = found
            yield window.ids[_first(window) : cut]
            window = following
        elif window.end - window.start < sizes.longest:
            end = min(window.start + sizes.longest, 2 * window.end - window.start)
            window = _Window.of(tokenizer, text, window.begin, window.start, end)
            if window.index(window.start) is None:
                window = _Window.of(tokenizer, text, window.start, window.start, end)
        else:
            yield window.ids[_first(window) :]
            end = window.end + sizes.piece + sizes.margin
            window = _Window.of(tokenizer, text, window.end, window.end, end)
    yield window.ids[_first(window) :]


def _first(window: _Window) -> int:
    index = window.index(window.start)
    assert index is not None
    return index


def _next(
    tokenizer: Tokenizer, text: str, window: _Window, sizes: Sizes
) -> tuple[int, _Window] | None:
    """The last good cut of a window, and the window that begins there."""
    for cut in islice(window.cuts(text, sizes), _CUTS_TRIED):
        start = window.starts[cut]
        end = start + sizes.piece + sizes.margin
        following = _Window.of(tokenizer, text, window.context(cut), start, end)
        if window.agrees(cut, following, sizes):
            return cut, following
    return None


def _parts_kinds(text: str, position: int) -> bool:
    """Whether two neighbours are of different kinds, the second not melting into the first."""
    kind = _kind(text[position])
    melts = kind == "M" or "\u1160" <= text[position] <= "\u11ff"  # marks; jamo within a syllable
    return not melts and kind != _kind(text[position - 1])


def _kind(character: str) -> str:
    """The character's class in Unicode: letter, mark, number, punctuation, symbol, other; or a
    space of any kind."""
    return " " if character.isspace() else unicodedata.category(character)[0]
