"""A picture of a run: training and validation loss over tokens."""

from __future__ import annotations

from pathlib import Path

from triax.training.run_directory import RunDirectory


def plot_losses(directory: RunDirectory) -> Path | None:
    """Draw `loss.png` from metrics.jsonl and events.jsonl; None if there is nothing to draw."""
    from matplotlib.figure import Figure  # slow to import, and only the first rank draws

    rows = [row for row in directory.rows(directory.metrics) if row.get("loss") is not None]
    if not rows:
        return None
    tokens = [row["tokens"] for row in rows]
    tokens_of_step = {row["step"]: row["tokens"] for row in rows} | {0: 0}
    validations = {
        tokens_of_step[event["step"]]: event["loss"]
        for event in directory.rows(directory.events)
        if event.get("event") == "evaluation"
        and event.get("loss") is not None
        and event["step"] in tokens_of_step
    }
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(tokens, [row["loss"] for row in rows], color="#9db8d9", linewidth=1, label="training")
    axes.plot(tokens, _smoothed([row["loss"] for row in rows]), color="#1f5fa8", label="smoothed")
    if validations:
        points = sorted(validations.items())
        axes.plot(*zip(*points, strict=True), "o-", color="#d1495b", label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=directory.path.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(directory.plot, dpi=120)
    return directory.plot


def _smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3)."""
    average, smoothed, finite_steps = 0.0, [], 0
    for value in values:
        if value == value and abs(value) != float("inf"):
            finite_steps += 1
            average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**finite_steps) if finite_steps else float("nan"))
    return smoothed
