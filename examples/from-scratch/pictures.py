"""Draw what the cleaning left and what the three trainings learned.

python pictures.py --output pictures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

import triax

matplotlib.use("agg")
import matplotlib.pyplot as plt

RUNS = {"base": "pretraining", "sft": "SFT", "dpo": "DPO"}
BLUE, GREY, RED = "#1f6fb4", "#b8c4cf", "#c23b22"


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    draw_cleaning(Path("cleaned/report.json"), args.output / "cleaning.png")
    draw_losses(args.output / "losses.png")


def draw_cleaning(report: Path, path: Path) -> None:
    """What each step took away, as a waterfall of characters."""
    found = json.loads(report.read_text("utf-8"))
    names, left = ["read"], [found["read"]["characters"] / 1e6]
    for name, step in found["steps"].items():
        names.append(name.replace("_", "\n"))
        left.append(step["characters_out"] / 1e6)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.bar(names, left, color=[GREY, *[BLUE] * (len(left) - 1)], width=0.7)
    for place in range(1, len(left)):
        lost = left[place - 1] - left[place]
        axes.bar(place, lost, bottom=left[place], color=RED, alpha=0.35, width=0.7)
        if lost > 0:
            axes.text(place, left[place - 1], f"-{lost:.2f}", ha="center", va="bottom", fontsize=8)
    axes.set_ylabel("million characters")
    axes.set_ylim(0, left[0] * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


def draw_losses(path: Path) -> None:
    """Each training's loss, and its validation's."""
    figure, panels = plt.subplots(1, len(RUNS), figsize=(9, 3))
    for panel, (name, title) in zip(panels, RUNS.items(), strict=True):
        run = triax.Run(f"runs/{name}")
        loss = run.metrics["loss"]
        panel.plot(loss.index, loss, color=GREY, linewidth=0.8, label="each step")
        smooth = loss.ewm(span=max(2, len(loss) // 20)).mean()
        panel.plot(smooth.index, smooth, color=BLUE, linewidth=1.6, label="training")
        validation = run.evaluations["loss"]
        panel.plot(validation.index, validation, "o-", color=RED, markersize=3, label="validation")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
