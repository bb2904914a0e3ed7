"""A picture of a run: training and validation loss over tokens."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from triax.common.files import replace_bytes
from triax.common.quantities import MAX_COUNT
from triax.training.records.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curves(NamedTuple):
    """What there is to draw, as points of tokens and loss."""

    training: list[tuple[float, float]]
    validation: list[tuple[float, float]]
    num_unreadable: int
    """Lines of the files that were left out."""


def read_curves(directory: RunDirectory, tokens_per_step: int) -> Curves:
    """The losses of a run, without the validations that it has gone back behind.

    Args:
        tokens_per_step: validations are known by their steps, of which not all need be logged.
    """
    metrics, events = directory.read(directory.metrics), directory.read(directory.events)
    training = [(row["tokens"], row["loss"]) for row in metrics.rows if _drawn(row, "tokens")]
    validation: dict[int, float] = {}
    for event in events.rows:
        if event["event"] == "evaluation" and _drawn(event, "step"):
            validation[event["step"] * tokens_per_step] = event["loss"]
        back_to = event.get({"start": "step", "rollback": "to_step"}.get(event["event"], ""))
        if isinstance(back_to, int):
            validation = {x: y for x, y in validation.items() if x <= back_to * tokens_per_step}
    num_unreadable = metrics.num_unreadable + events.num_unreadable
    return Curves(training, sorted(validation.items()), num_unreadable)


def plot_losses(path: Path, curves: Curves, title: str) -> None:
    """Draw a picture as PNG, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    from matplotlib.figure import Figure  # slow to import, and only the first rank draws

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    tokens, losses = ([point[axis] for point in curves.training] for axis in (0, 1))
    axes.plot(tokens, losses, color="#9db8d9", linewidth=1, label="training")
    axes.plot(tokens, _smoothed(losses), color="#1f5fa8", label="smoothed")
    if curves.validation:
        points = zip(*curves.validation, strict=True)
        axes.plot(*points, "o-", color="#d1495b", label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    # A name is no formula, whatever dollars are in it.
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the font lacks a letter of the title
        figure.savefig(image, format="png", dpi=120)
    replace_bytes(path, image.getvalue())


def is_number(value: object) -> bool:
    """Whether a value of a row can be drawn."""
    return isinstance(value, int | float) and abs(value) < MAX_COUNT


def _drawn(row: Mapping[str, Any], x: str) -> bool:
    return is_number(row.get(x)) and is_number(row.get("loss"))


def _smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3)."""
    average, smoothed, finite_steps = 0.0, [], 0
    for value in values:
        if value == value and abs(value) != float("inf"):
            finite_steps += 1
            average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**finite_steps) if finite_steps else float("nan"))
    return smoothed
