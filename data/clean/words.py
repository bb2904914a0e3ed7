"""Words, lines and sentences as the quality rules count them, without a language's models."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:['’.]\w+)*|\.{2,}|[^\w\s]")
"""A run of letters and digits with single apostrophes and dots inside, an ellipsis, or one other
character. spaCy's English rules also part contractions (`do` `n't`) and units."""
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’»)\]]*(?=\s|$)")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in their order."""
    return _WORD.findall(text)


def count_sentences(line: str) -> int:
    """Sentences in a text that is not empty: ends of sentences, and a rest without one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    rest = line[ends[-1] :].strip() if ends else line.strip()
    return len(ends) + bool(rest)
