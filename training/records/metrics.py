"""Figures of a step, as rows for files and writers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

from torch import Tensor

from triax.training.step.readback import StepFigures
from triax.training.step.step import StepResult

log = logging.getLogger("triax.metrics")

Row = dict[str, float | int | None]


class Shown(NamedTuple):
    """A number of a step's line that is made of one of its extras (`StepResult.extra`)."""

    name: str
    """In metrics.jsonl, and for the writers."""
    of: str
    """The extra; steps without it have no such number."""
    value: Callable[[Tensor, StepResult[float]], float]
    """The number, from the extra on the host and the step's other figures."""
    console: str | None = None
    """Shows it on the console, as "balance {:.3f}"; None leaves it out."""


class ShownByLayer(NamedTuple):
    """A number of each layer that an extra has a row of, as `NAME/LAYER` in metrics.jsonl and for
    the writers."""

    name: str
    of: str
    values: Callable[[Tensor], list[float | None]]
    """A number a layer, from the extra on the host; None where the layer has none."""


def _by_token(value_L: Tensor, step: StepResult[float]) -> float:
    """The mean over target tokens and the layers that have told something; L layers."""
    num_layers = int((value_L != 0).sum())
    return float(value_L.sum()) / (max(num_layers, 1) * (step.total_weight or 1.0))


def _loads(tokens_LE: Tensor) -> list[float | None]:
    """The tokens of each layer's busiest expert over the mean of its experts; None where no token
    has chosen; L layers, E experts."""
    loads_L = tokens_LE.amax(1) / tokens_LE.mean(1)
    return [None if load != load else load for load in loads_L.tolist()]


def _highest_load(tokens_LE: Tensor, _step: StepResult[float]) -> float:
    """The highest of the layers' loads."""
    return max((load for load in _loads(tokens_LE) if load is not None), default=0.0)


def _num_dead(tokens_LE: Tensor, _step: StepResult[float]) -> float:
    """Experts that no token has chosen."""
    has_experts = tokens_LE.sum(1) > 0
    return float((tokens_LE[has_experts] == 0).sum())


def _by_pair(value: Tensor, step: StepResult[float]) -> float:
    """The mean over the step's pairs."""
    return float(value) / (float(step.extra["dpo_pairs"]) or 1.0)


def _margin(chosen: Tensor, step: StepResult[float]) -> float:
    """The mean over pairs of the difference between the rewards of both answers."""
    return _by_pair(chosen - step.extra["dpo_rejected"], step)


SHOWN = (
    Shown("z_loss", "z_loss", lambda value, step: float(value) / (step.total_weight or 1.0)),
    Shown("expert_load_max", "expert_tokens", _highest_load, console="load {:.2f}"),
    Shown("dead_experts", "expert_tokens", _num_dead),
    Shown("balance_loss", "expert_balance", _by_token),
    Shown("router_entropy", "router_entropy", _by_token),
    Shown("dropped_tokens", "expert_dropped", lambda value, _step: float(value.sum())),
    Shown("reward_accuracy", "dpo_accuracies", _by_pair, console="right {:.2f}"),
    Shown("reward_margin", "dpo_chosen", _margin, console="margin {:.3f}"),
    Shown("reward_chosen", "dpo_chosen", _by_pair),
    Shown("reward_rejected", "dpo_rejected", _by_pair),
    Shown("kl", "dpo_kl", lambda value, step: float(value / step.extra["dpo_tokens"])),
)
SHOWN_BY_LAYER = (ShownByLayer("expert_load", "expert_tokens", _loads),)
"""Extras are shown where a line here says so, and nowhere else."""


def metrics_row(
    figures: StepFigures,
    *,
    tokens_per_step: int,
    flops_per_token: int,
    peak_flops: float | None,
    memory_gib: float,
    loss_scaled: bool,
) -> Row:
    """One line of metrics.jsonl.

    Args:
        figures: of the step.
        tokens_per_step: sequences x seq_len.
        flops_per_token: from `models.counts`.
        peak_flops: FLOP/s of all devices together; None where unknown.
        memory_gib: the most memory this process has used.
        loss_scaled: whether the loss scale is worth telling.
    """
    rate, result = tokens_per_step / max(figures.seconds, 1e-9), figures.result
    row: Row = {
        "step": figures.state.step,
        "tokens": figures.state.tokens,
        "cursor": figures.state.cursor,
        "loss": result.loss if result.total_weight > 0 else None,
        "grad_norm": result.grad_norm,
        "lr": figures.lr,
        "tokens_per_second": rate,
        "mfu": None if peak_flops is None else rate * flops_per_token / peak_flops,
        "memory_gib": memory_gib,
        "num_targets": int(result.num_targets),
        "skipped": int(result.skipped),
        "loss_score": result.loss_score,
        "norm_score": result.norm_score,
    }
    if loss_scaled:
        row["loss_scale"] = result.loss_scale
    row |= {
        shown.name: shown.value(result.extra[shown.of], result)
        for shown in SHOWN
        if shown.of in result.extra
    }
    return row | {
        f"{by_layer.name}/{number}": value
        for by_layer in SHOWN_BY_LAYER
        if by_layer.of in result.extra
        for number, value in enumerate(by_layer.values(result.extra[by_layer.of]))
        if value is not None
    }


class MetricsWriter(Protocol):
    """Somewhere that shows scalars while the run goes on."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Show scalars by name at a step."""

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        """Show texts by name at a step."""

    def rewind(self, next_step: int) -> None:
        """What was shown of this step and later ones is given up: the run has gone back."""

    def close(self) -> None:
        """Write what is buffered."""


class MetricsWriters:
    """All writers of a run as one; a context manager that closes them."""

    def __init__(self, writers: list[MetricsWriter]) -> None:
        self._writers = writers

    def log_row(self, row: Row) -> None:
        """Show a step's row."""
        scalars = {
            f"train/{name}": float(value)
            for name, value in row.items()
            if value is not None and name not in ("step", "cursor")
        }
        self._log(int(row["step"] or 0), scalars)

    def log_evaluation(self, step: int, scalars: dict[str, float]) -> None:
        """Show what an evaluation found."""
        self._log(step, scalars)

    def log_samples(self, step: int, texts: Sequence[str]) -> None:
        """Show what the model wrote."""
        by_name = {f"samples/{number}": text for number, text in enumerate(texts)}
        for writer in self._writers if by_name else ():
            writer.log_texts(step, by_name)

    def rewind(self, next_step: int) -> None:
        """The run has gone back to before this step."""
        for writer in self._writers:
            writer.rewind(next_step)

    def _log(self, step: int, scalars: dict[str, float]) -> None:
        for writer in self._writers:
            writer.log(step, scalars)

    def __enter__(self) -> MetricsWriters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            try:
                writer.close()
            except Exception:  # whatever its package raises; the run has ended as it has
                log.warning("a writer could not be closed", exc_info=True)
