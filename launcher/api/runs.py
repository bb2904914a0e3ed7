"""A run's directory as tables. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triax.launcher.report.build import build_page
from triax.launcher.report.records import RunRecord, read_run

if TYPE_CHECKING:
    from pandas import DataFrame


class Run:
    """What a run has left in its directory, as it is now; `reload` looks again.

    Args:
        path: the run's folder, such as `runs/NAME`.

    Raises:
        UserError: it holds no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._record: RunRecord = read_run(self.path)

    def reload(self) -> Run:
        """The run as it is now."""
        return Run(self.path)

    @cached_property
    def metrics(self) -> DataFrame:
        """A row a step, a column a figure of metrics.jsonl; the index is the step."""
        from pandas import DataFrame  # slow to import

        columns = {name: values for name, values in self._record.columns.items() if name != "step"}
        return DataFrame(columns, index=self._index())

    @cached_property
    def evaluations(self) -> DataFrame:
        """A row an evaluation, by step: `loss`, `perplexity`, tasks as `task/figure`."""
        from pandas import DataFrame  # slow to import

        return DataFrame(self._record.evaluations or {"step": []}).set_index("step")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl, oldest first."""
        return self._record.events

    @property
    def config(self) -> Mapping[str, Any]:
        """The tables of config.toml."""
        return self._record.config

    @property
    def ending(self) -> Mapping[str, Any] | None:
        """`code` and `reason` of the last start's end; None while it goes on or after a kill."""
        return self._record.ending

    def report(self, *others: str | Path) -> str:
        """The page of `triax report` as HTML, with other runs drawn over this one."""
        return build_page([self.path, *map(Path, others)])

    def _index(self) -> Any:
        from pandas import Index  # slow to import

        return Index(self._record.columns["step"].astype(int), name="step")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self._record.num_rows} rows)"
