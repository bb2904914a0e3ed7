"""What a run's evaluation is made of, and what one finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triax.common.showing import printable
from triax.models.batch import Batch
from triax.parallel.engine import Engine
from triax.parallel.evaluation import Evaluation, evaluate
from triax.training.config import MAIN_SET
from triax.training.evaluation.choices import Choices, Score, scalars
from triax.training.evaluation.samples import Sample, Samples

_SHOWN_BEFORE, _SHOWN = 20, 38
"""Characters of a sample's prompt, from its end, and of what the model adds, in a line."""


@dataclass(frozen=True)
class ValidationSet:
    """Sequences whose loss is told."""

    batches: Sequence[Batch]
    """This process's."""
    num_bytes: int | None = None
    """Of all processes' targets' text; None where it isn't known."""


@dataclass(frozen=True)
class Findings:
    """What an evaluation found; the same on every process, but for bytes and samples, which the
    first one knows."""

    sets: Mapping[str, Evaluation] = field(default_factory=dict)
    tasks: Mapping[str, Score] = field(default_factory=dict)
    samples: Sequence[Sample] = ()

    @property
    def main(self) -> Evaluation | None:
        """That of `data.validation`."""
        return self.sets.get(MAIN_SET)

    def describe(self) -> Iterator[str]:
        """The main loss, then a line for each other set and each task."""
        yield "" if self.main is None else self.main.describe()
        for name, evaluation in self.sets.items():
            if name != MAIN_SET:
                yield f"  {name:<13} {evaluation.describe()}"
        for name, score in self.tasks.items():
            yield f"  {name:<13} {score.describe()}"

    def show_samples(self) -> Iterator[str]:
        """A line for each."""
        for sample in self.samples:
            before, added = printable(sample.prompt), printable(sample.text)
            yield f"  {'sample':<13} {before[-_SHOWN_BEFORE:]} | {added[:_SHOWN]}".rstrip()

    def record(self) -> dict[str, Any]:
        """For events.jsonl: the main set's figures, the others' under `sets`, `tasks`."""
        found = {} if self.main is None else _record(self.main)
        others = {name: _record(each) for name, each in self.sets.items() if name != MAIN_SET}
        if others:
            found["sets"] = others
        if self.tasks:
            found["tasks"] = {
                name: {figure: _finite(value) for figure, value in score._asdict().items()}
                for name, score in self.tasks.items()
            }
        return found

    def scalars(self) -> dict[str, float]:
        """For boards, by name."""
        found = {}
        for name, evaluation in self.sets.items():
            prefix = MAIN_SET if name == MAIN_SET else f"{MAIN_SET}/{name}"
            for figure, value in _record(evaluation).items():
                if figure != "num_targets" and value is not None:
                    found[f"{prefix}/{figure}"] = value
        return found | scalars(self.tasks)


@dataclass(frozen=True)
class Evaluator:
    """Finds the losses of validation sets and scores in tasks, and lets the model write."""

    sets: Mapping[str, ValidationSet] = field(default_factory=dict)
    choices: Choices | None = None
    samples: Samples | None = None
    measure: Callable[[Engine, Sequence[Batch]], Evaluation] = evaluate
    """What is told of a set: the run's own objective."""

    def __bool__(self) -> bool:
        return bool(self.sets) or self.choices is not None or self.samples is not None

    def evaluate(self, engine: Engine) -> Findings:
        """Run the model over all of it. Collective."""
        return Findings(
            {
                name: self.measure(engine, each.batches)._replace(num_bytes=each.num_bytes)
                for name, each in self.sets.items()
            },
            {} if self.choices is None else self.choices.score(engine),
            () if self.samples is None else self.samples.write(engine),
        )


def _record(evaluation: Evaluation) -> dict[str, Any]:
    has_targets = evaluation.num_targets > 0
    has_perplexity = has_targets and evaluation.is_cross_entropy
    return {
        "loss": evaluation.loss if has_targets else None,
        "perplexity": evaluation.perplexity if has_perplexity else None,
        "bits_per_byte": evaluation.bits_per_byte,
        "num_targets": evaluation.num_targets,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
