"""Where a run's figures go. What can't be written is lost, and training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from triax.common.files import replace_text
from triax.training.evaluation.evaluator import Findings
from triax.training.records.console import Console
from triax.training.records.metrics import MetricsWriters, Row
from triax.training.records.run_directory import Cut, RunDirectory
from triax.training.step.readback import StepFigures

log = logging.getLogger("triax.metrics_logger")


class MetricsLogger:
    """Where the loop's figures go; on rank 0 only, the others' are silent."""

    def __init__(
        self,
        is_main: bool,
        directory: RunDirectory,
        writers: MetricsWriters,
        console: Console,
        make_row: Callable[[StepFigures], Row],
    ) -> None:
        self.is_main = is_main
        self.directory = directory
        self.writers = writers
        self.console = console
        self.make_row = make_row
        self._has_lost = False

    def step(self, figures: StepFigures) -> None:
        """Log one step."""
        if self.is_main:
            row = self.make_row(figures)
            with self._losing_at_most_a_line():
                self.directory.append_metrics(row)
            with self._losing_at_most_a_line():
                self.writers.log_row(row)
            self.console.show(row)

    def evaluation(self, step: int, findings: Findings, seconds: float) -> None:
        """Log one evaluation.

        Args:
            seconds: what the session's evaluations took so far.
        """
        self.event("evaluation", step=step, seconds=round(seconds, 3), **findings.record())
        for sample in findings.samples:
            self.event("sample", step=step, **sample._asdict())
        if self.is_main:
            with self._losing_at_most_a_line():
                self.writers.log_evaluation(step, findings.scalars())
            with self._losing_at_most_a_line():
                self.writers.log_samples(step, [x.prompt + x.text for x in findings.samples])
        main, *others = findings.describe()
        lines = (f"validation after step {step}: {main}".rstrip(), *others)
        self.console.say("\n".join((*lines, *findings.show_samples())))

    def event(self, name: str, **fields: Any) -> None:
        """Add a line to events.jsonl."""
        if self.is_main:
            with self._losing_at_most_a_line():
                self.directory.append_event(name, **fields)

    def abandon(self, step: int) -> None:
        """Move what was said of later steps out of the way."""
        if self.is_main:
            with self._losing_at_most_a_line():
                self._tell_unreadable(self.directory.abandon_metrics(step))
            with self._losing_at_most_a_line():
                self.writers.rewind(step + 1)

    def report(self, text: str) -> None:
        """Write and show the report of a run that stops by itself."""
        if self.is_main:
            with self._losing_at_most_a_line():
                replace_text(self.directory.stop_report, text)
        self.console.say(text)

    def started(
        self, step: int, layout: Mapping[str, int], environment: Mapping[str, str | int]
    ) -> None:
        """A session begins after this step: what was said of later ones in another is dropped.

        Args:
            environment: where and on what it runs, for people.
        """
        if not self.is_main:
            return
        cut = Cut(0, 0)
        with self._losing_at_most_a_line():
            cut = self.directory.cut_metrics(step)
        self._tell_unreadable(cut)
        num_lost = cut.num_later + cut.num_unreadable
        self.event(
            "start", step=step, layout=layout, environment=environment, num_steps_lost=num_lost
        )

    def _tell_unreadable(self, cut: Cut) -> None:
        if cut.num_unreadable:
            self.console.say(
                f"{self.directory.metrics}: lines that can't be read are left out: "
                f"{cut.num_unreadable}"
            )

    def say(self, message: str) -> None:
        """Print a line on rank 0."""
        self.console.say(message)

    @contextmanager
    def _losing_at_most_a_line(self) -> Iterator[None]:
        """A full disk or a writer that fails takes figures, but not the run."""
        try:
            yield
        except Exception as error:  # a writer raises whatever its package does
            log.warning("a line of figures is lost", exc_info=True)
            if not self._has_lost:
                self.console.say(f"figures can't be written ({error}); training goes on")
            self._has_lost = True
