"""The rules for web pages of C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024).

C4's bad words need its list, which is nobody's to ship: give it as a block list.
"""

from __future__ import annotations

import re

from triax.data.clean.config import C4Config, FineWebConfig
from triax.data.clean.document import Document
from triax.data.clean.gopher import document_words, duplicates
from triax.data.clean.words import count_sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICY = re.compile(
    "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
)
_TERMINAL = tuple(".?!。！？．｡؟۔।॥‼⁇⁈⁉‽։؞܀።፧፨၊။។៕᠃᠉")
"""What ends sentences (Unicode's Sentence_Terminal) in scripts of today."""


class C4:
    """Keeps the good lines of a page, and drops pages; the reason is the rule's name."""

    def __init__(self, config: C4Config) -> None:
        self._config = config
        self._off = frozenset(config.off)

    def __call__(self, document: Document) -> str | None:
        kept: list[str] = []
        num_sentences = 0
        for line in document.text.splitlines():
            good = self._line(line.strip())
            if good is None:
                continue
            lower = good.lower()
            if "lorem_ipsum" not in self._off and "lorem ipsum" in lower:
                return "lorem_ipsum"
            if "javascript" not in self._off and "javascript" in lower:
                continue
            if "curly_bracket" not in self._off and "{" in good:
                return "curly_bracket"
            if "policy" not in self._off and _POLICY.search(lower):
                continue
            num_sentences += count_sentences(good)
            kept.append(good)
        if "sentences" not in self._off and num_sentences < self._config.min_sentences:
            return "sentences"
        document.text = "\n".join(kept).strip()
        return None if document.text else "sentences"

    def _line(self, line: str) -> str | None:
        """The line without citations; None if it is left out."""
        config, off = self._config, self._off
        words = line.split()
        longest = config.max_word_length
        if "long_words" not in off and len(line) > longest and max(map(len, words)) > longest:
            return None
        if "citations" not in off:
            line = _CITATION.sub("", line)
        ends = line.endswith(_LINE_ENDS) and not line.endswith("...")
        if "terminal_punctuation" not in off and not ends:
            return None
        if "short_lines" not in off and len(words) < config.min_words_per_line:
            return None
        return line


class FineWeb:
    """Drops pages of lists, menus and repeated lines; the reason is the rule's name."""

    def __init__(self, config: FineWebConfig) -> None:
        self._config = config
        self._off = frozenset(config.off)

    def __call__(self, document: Document) -> str | None:
        config, off, text = self._config, self._off, document.text
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty"
        num_ended = sum(line.endswith(_TERMINAL) for line in lines)
        if "line_punctuation" not in off and num_ended / len(lines) < config.min_line_punctuation:
            return "line_punctuation"
        num_short = sum(len(line) <= config.short_line_length for line in lines)
        if "short_lines" not in off and num_short / len(lines) > config.max_short_lines:
            return "short_lines"
        num_newlines = text.count("\n")
        share = duplicates(lines)[1] / (len(text) - num_newlines)
        name = "duplicate_line_characters"
        if name not in off and share > config.max_duplicate_line_characters:
            return name
        words = document_words(text)
        if "newlines" not in off and num_newlines / len(words) > config.max_newlines_per_word:
            return "newlines"
        return None
