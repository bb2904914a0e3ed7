"""Gopher's quality and repetition rules (Rae et al. 2021, appendix A.1.1 and table A1).

Where the paper leaves room, the reading is that of datatrove 0.10, by which FineWeb was made:
punctuation marks are words of their own, but don't count towards the number of words and their
mean length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from triax.data.clean.config import GopherConfig, RepetitionConfig
from triax.data.clean.document import Document
from triax.data.clean.words import split_words

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_ALPHA = re.compile(r"[^\W\d_]")
_NOT_WORD = re.compile(r"(?:[^\w•]|_)+")
"""Punctuation; a bullet counts as a word, as in datatrove, whose list also lacks rare symbols."""


@lru_cache(maxsize=4)
def document_words(text: str) -> list[str]:
    """`split_words`, which several steps ask of one text."""
    return split_words(text)


class Gopher:
    """Drops what the quality rules refuse; the reason is the rule's name."""

    def __init__(self, config: GopherConfig) -> None:
        self._config = config
        self._off = frozenset(config.off)

    def __call__(self, document: Document) -> str | None:
        words = document_words(document.text)
        return self._words(words) or self._symbols(document.text, words) or self._alpha(words)

    def _words(self, words: Sequence[str]) -> str | None:
        config, off = self._config, self._off
        proper = [word for word in words if not _NOT_WORD.fullmatch(word)]
        if "words" not in off and not config.min_words <= len(proper) <= config.max_words:
            return "words"
        mean = sum(map(len, proper)) / len(proper) if proper else 0.0
        low, high = config.min_mean_word_length, config.max_mean_word_length
        return "word_length" if "word_length" not in off and not low <= mean <= high else None

    def _symbols(self, text: str, words: Sequence[str]) -> str | None:
        config, off = self._config, self._off
        most, num_words = config.max_symbols_per_word, max(len(words), 1)
        if "hashes" not in off and text.count("#") / num_words > most:
            return "hashes"
        num_ellipses = text.count("...") + text.count("…")
        if "ellipses" not in off and num_ellipses / num_words > most:
            return "ellipses"
        lines = text.splitlines()
        num_lines = max(len(lines), 1)
        num_bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
        if "bullet_lines" not in off and num_bullets / num_lines > config.max_bullet_lines:
            return "bullet_lines"
        num_cut = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        if "ellipsis_lines" not in off and num_cut / num_lines > config.max_ellipsis_lines:
            return "ellipsis_lines"
        return None

    def _alpha(self, words: Sequence[str]) -> str | None:
        config, off = self._config, self._off
        num_alpha = sum(_ALPHA.search(word) is not None for word in words)
        if "alpha_words" not in off and num_alpha / max(len(words), 1) < config.min_alpha_words:
            return "alpha_words"
        found = STOP_WORDS.intersection(words)
        if "stop_words" not in off and len(found) < config.min_stop_words:
            return "stop_words"
        return None


class GopherRepetition:
    """Drops what repeats itself; the reason is the rule's name, with n for n-grams."""

    def __init__(self, config: RepetitionConfig) -> None:
        self._config = config
        self._off = frozenset(config.off)

    def __call__(self, document: Document) -> str | None:
        return self._lines(document.text) or self._ngrams(document.text)

    def _lines(self, text: str) -> str | None:
        config = self._config
        paragraphs = _PARAGRAPHS.split(text.strip())
        lines = _LINES.split(text)
        for kind, parts, most, most_characters in (
            (
                "paragraph",
                paragraphs,
                config.max_duplicate_paragraphs,
                config.max_duplicate_paragraph_characters,
            ),
            ("line", lines, config.max_duplicate_lines, config.max_duplicate_line_characters),
        ):
            num_parts, num_characters = duplicates(parts)
            name = f"duplicate_{kind}s"
            if name not in self._off and num_parts / len(parts) > most:
                return name
            name = f"duplicate_{kind}_characters"
            if name not in self._off and num_characters / len(text) > most_characters:
                return name
        return None

    def _ngrams(self, text: str) -> str | None:
        config, words = self._config, document_words(text)
        if "top_ngrams" not in self._off:
            for n, most in enumerate(config.top_ngrams, start=2):
                if _top_characters(words, n) / len(text) > most:
                    return f"top_ngrams_{n}"
        if "duplicate_ngrams" not in self._off:
            for n, most in enumerate(config.duplicate_ngrams, start=5):
                if _repeated_characters(words, n) / len(text) > most:
                    return f"duplicate_ngrams_{n}"
        return None


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood before, and their characters."""
    once = set(parts)
    if len(once) == len(parts):
        return 0, 0
    return len(parts) - len(once), sum(map(len, parts)) - sum(map(len, once))


def _top_characters(words: Sequence[str], n: int) -> int:
    """Characters of the most frequent n-gram, spaces included, times its occurrences; among
    equally frequent ones of the first."""
    if len(words) < n:
        return 0
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    ngram, count = max(counts.items(), key=lambda entry: entry[1])
    return (sum(map(len, ngram)) + n - 1) * count


def _repeated_characters(words: Sequence[str], n: int) -> int:
    """Characters in n-grams that stood before, counted without overlap."""
    ngrams = list(map("".join, zip(*(words[start:] for start in range(n)), strict=False)))
    if len(set(ngrams)) == len(ngrams):
        return 0
    seen: set[str] = set()
    total = index = 0
    while index < len(ngrams):
        ngram = ngrams[index]
        if ngram in seen:
            total += len(ngram)
            index += n
        else:
            seen.add(ngram)
            index += 1
    return total
