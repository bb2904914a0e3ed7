"""Small tasks made from a run's own validation text, without any download.

They tell models of ten million parameters apart after minutes, where public benchmarks still give
what guessing gives. The same data gives the same questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.data.prepare.tokenizer import decode
from triax.data.read.source import Source, Window
from triax.training.evaluation.choices import Question, Task

NUM_CHOICES = 4
MOST_CONTINUED = 16
"""Tokens of a continuation that is asked for."""
MOST_CONTEXT = 128
"""Tokens before it: more would make the questions long without making them much easier."""
MOST_BEGUN = 16
"""Tokens of a beginning."""
_WORD = re.compile(r"[^\W\d_]{3,}(?=\W)")
"""A whole word, which something follows."""


def continuation(source: Source, num_questions: int) -> Task:
    """Which of four pieces of text goes on here? One does; three come from other places.

    Raises:
        UserError: the data has too few places to ask about.
    """
    places = []
    for window in _spread(source, num_questions):
        tokens = _longest_document(window)
        size = min(MOST_CONTINUED, len(tokens) // 2)
        if size >= 2:
            places.append((tokens[-(size + MOST_CONTEXT) : -size], tokens[-size:]))
    _refuse_few(places, "continuation")
    questions = []
    for number, (context, right) in enumerate(places):
        others = [places[other][1] for other in _others(number, len(places))]
        choices = [*others[: number % NUM_CHOICES], right, *others[number % NUM_CHOICES :]]
        size = min(map(len, choices))
        questions.append(
            Question(
                tuple(context),
                tuple(tuple(choice[:size]) for choice in choices),
                number % NUM_CHOICES,
                (size,) * NUM_CHOICES,
            )
        )
    return Task("continuation", tuple(questions))


def cloze(source: Source, tokenizer: Tokenizer, num_questions: int) -> Task:
    """Which of four words comes last in this text? The others come last in other ones.

    Raises:
        UserError: the data has too few places to ask about.
    """
    places: list[tuple[list[int], str]] = []
    for window in _spread(source, num_questions):
        text = decode(tokenizer, _longest_document(window))
        words = [match for match in _WORD.finditer(text) if match.start() > len(text) // 4]
        if not words:
            continue
        match = words[-1]
        before = tokenizer.encode(text[: match.start()].rstrip(), add_special_tokens=False).ids
        if before:
            places.append((before[-MOST_CONTEXT:], match[0]))
    _refuse_few(places, "cloze")
    by_length = sorted({word for _, word in places}, key=lambda word: (len(word), word))
    questions = []
    for number, (context, word) in enumerate(places):
        choices = _similar(word, by_length, number)
        if len(choices) < NUM_CHOICES - 1:
            continue
        choices.insert(number % NUM_CHOICES, word)
        questions.append(
            Question(
                tuple(context),
                tuple(_as_tokens(tokenizer, f" {choice}") for choice in choices),
                number % NUM_CHOICES,
                tuple(len(choice) + 1 for choice in choices),
            )
        )
    _refuse_few(questions, "cloze")
    return Task("cloze", tuple(questions))


def beginnings(source: Source, count: int) -> list[list[int]]:
    """The first tokens of so many texts, or of fewer where there are fewer windows."""
    return [_longest_document(window)[:MOST_BEGUN] for window in _spread(source, count)]


def _as_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def _spread(source: Source, count: int) -> Iterator[Window]:
    """Windows from all over the data."""
    count = min(count, source.num_windows)
    for number in range(count):
        yield source.window(number * source.num_windows // count)


def _longest_document(window: Window) -> list[int]:
    """The tokens of the document that fills most of a window."""
    tokens, ids = (x[: window.num_tokens] for x in (window.tokens, window.document_ids))
    documents, counts = np.unique(ids, return_counts=True)
    found: list[int] = tokens[ids == documents[counts.argmax()]].tolist()
    return found


def _others(number: int, count: int) -> list[int]:
    """Three places far from this one."""
    step = max(1, count // NUM_CHOICES)
    return [(number + step * other) % count for other in range(1, NUM_CHOICES)]


def _similar(word: str, by_length: Sequence[str], number: int) -> list[str]:
    """Three other words of about the length, not the same three for every question."""
    others = [other for other in by_length if other.lower() != word.lower()]
    near = sorted(others, key=lambda other: abs(len(other) - len(word)))[: 4 * NUM_CHOICES]
    start = number * (NUM_CHOICES - 1)
    return [near[(start + k) % len(near)] for k in range(min(NUM_CHOICES - 1, len(near)))]


def _refuse_few(places: Sequence[object], task: str) -> None:
    if len(places) < NUM_CHOICES:
        raise UserError(
            f"eval.tasks: {task} finds only {len(places)} places in data.validation to ask about, "
            f"and needs {NUM_CHOICES}: prepare more validation text, or leave the task out"
        )
