"""Tasks of choosing among continuations, scored by the engine that trains, in every layout.

Each choice is a row: the question's context, then the choice. Rows are short beside a training
sequence, so several are packed into one, each a document of its own that counts its positions
from 0.

Shape letters: B rows of a batch, T tokens, N rows of all questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from triax.common.tokens import IGNORE_INDEX
from triax.data.read.packing import best_fit
from triax.models.batch import Batch
from triax.parallel.engine import Engine


@dataclass(frozen=True)
class Question:
    """One of a task's examples, in tokens."""

    context: tuple[int, ...]
    """At least one."""
    choices: tuple[tuple[int, ...], ...]
    """Continuations of at least one token each."""
    answer: int
    """The right one's place among them."""
    lengths: tuple[int, ...]
    """What each choice's log-probability is divided by for the normalised accuracy: characters, as
    in lm-eval, or tokens."""


@dataclass(frozen=True)
class Task:
    """Questions that are scored together."""

    name: str
    questions: tuple[Question, ...]


class Score(NamedTuple):
    """What a model reaches in a task."""

    accuracy: float
    """Share of the questions whose right choice is the likeliest."""
    normalised_accuracy: float
    """The same by log-probability over the choice's length: lm-eval's `acc_norm`."""
    loss: float
    """Mean over the questions of the right choice's mean cross entropy, in nats a token: it moves
    long before accuracies do."""
    num_questions: int

    @property
    def standard_error(self) -> float:
        """Of the accuracy: of a mean of so many draws, as lm-eval has it."""
        count = self.num_questions
        if count < 2:
            return math.nan
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (count - 1))

    def describe(self) -> str:
        """In words."""
        return f"accuracy {self.accuracy:.3f} ± {self.standard_error:.3f}, loss {self.loss:.4f}"


class _Place(NamedTuple):
    """Where a row's choice is predicted in this process's batches."""

    row: int
    batch: int
    sequence: int
    targets: slice


class Choices:
    """The rows of all tasks in batches, and their scores.

    Args:
        tasks: alike on every process.
        seq_len: of the engine's sequences: a row keeps its last so many tokens.
        micro_batch_size: sequences of a batch.
        dp_rank, dp_size: which part of the batches is this process's.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seq_len: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
    ) -> None:
        self._tasks = tasks
        rows = [
            ([*question.context, *choice][-(seq_len + 1) :], len(choice))
            for task in tasks
            for question in task.questions
            for choice in question.choices
        ]
        self._num_rows = len(rows)
        lengths = np.array([len(tokens) - 1 for tokens, _ in rows], np.int64)
        packed = best_fit(lengths, seq_len)
        bins = [packed[number].tolist() for number in range(len(packed))]
        num_batches = -(-len(bins) // (dp_size * micro_batch_size))
        per_rank = num_batches * micro_batch_size
        own = bins[dp_rank * per_rank : (dp_rank + 1) * per_rank]
        own += [[] for _ in range(per_rank - len(own))]
        parts = [
            own[start : start + micro_batch_size] for start in range(0, per_rank, micro_batch_size)
        ]
        self._places: list[_Place] = []
        self._batches = [
            self._batch(number, part, rows, seq_len) for number, part in enumerate(parts)
        ]

    def score(self, engine: Engine) -> dict[str, Score]:
        """Every task's score; the same on every process. Collective."""
        if not self._num_rows:
            return {}
        log_probs = engine.log_probs(self._batches)
        own_N = torch.zeros(self._num_rows, dtype=torch.float64, device=engine.device)
        for place in self._places:
            own_N[place.row] = log_probs[place.batch][place.sequence, place.targets].double().sum()
        left = iter(engine.sum_over_data(own_N).tolist())
        return {task.name: _score(task, left) for task in self._tasks}

    def _batch(
        self, number: int, bins: Sequence[Sequence[int]], rows: Sequence[tuple[list[int], int]],
        seq_len: int,
    ) -> Batch:  # fmt: skip
        shape = (len(bins), seq_len)
        tokens_BT = torch.zeros(shape, dtype=torch.int64)
        targets_BT = torch.full(shape, IGNORE_INDEX)
        documents_BT = torch.zeros(shape, dtype=torch.int32)
        positions_BT = torch.zeros(shape, dtype=torch.int64)
        for sequence, members in enumerate(bins):
            start = 0
            for document, row in enumerate(members, start=1):
                tokens, num_choice = rows[row]
                stop = start + len(tokens) - 1
                tokens_BT[sequence, start:stop] = torch.tensor(tokens[:-1])
                scored = slice(max(start, stop - num_choice), stop)
                targets_BT[sequence, scored] = torch.tensor(tokens[1:])[scored.start - stop :]
                documents_BT[sequence, start:stop] = document
                positions_BT[sequence, start:stop] = torch.arange(stop - start)
                self._places.append(_Place(row, number, sequence, scored))
                start = stop
            # What fills the sequence up is a document too, which nothing is asked of.
            positions_BT[sequence, start:] = torch.arange(seq_len - start)
        return Batch(tokens_BT, targets_BT, documents_BT, positions_BT)


def _score(task: Task, log_probs: Iterator[float]) -> Score:
    """Takes as many values as the task has choices."""
    hits = normalised_hits = 0
    loss = 0.0
    for question in task.questions:
        found = [next(log_probs) for _ in question.choices]
        hits += _likeliest(found) == question.answer
        by_length = [value / size for value, size in zip(found, question.lengths, strict=True)]
        normalised_hits += _likeliest(by_length) == question.answer
        loss -= found[question.answer] / len(question.choices[question.answer])
    count = len(task.questions)
    return Score(hits / count, normalised_hits / count, loss / count, count)


def _likeliest(values: Sequence[float]) -> int:
    """The first of the highest, as numpy's argmax takes it; NaN is never it."""
    return max(
        range(len(values)), key=lambda place: (values[place] == values[place], values[place])
    )


def scalars(scores: Mapping[str, Score]) -> dict[str, float]:
    """Each task's figures by name, for boards."""
    return {
        f"tasks/{name}/{figure}": value
        for name, score in scores.items()
        for figure, value in score._asdict().items()
        if figure != "num_questions"
    }
