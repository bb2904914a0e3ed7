"""Ask models the same questions, and show what they answer: answers.md, answers.json, answers.png.

    python compare.py base=runs/base sft=runs/sft --questions questions.jsonl --output answers

The likeliest answer is taken, so the same models answer alike each time. A model that was taught
to answer is asked by its chat template; the base model goes on behind the question's line. An
answer is right if it is the documentation's to the letter, and has the form of one if it begins as
the right one does and comes to an end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib

from triax.data.prepare.chat_template import ChatTemplate
from triax.launcher.cli import main as triax_command

matplotlib.use("agg")
import matplotlib.pyplot as plt

MOST_TOKENS = 48
NUM_SHOWN = 5
"""Questions of each set in the table."""
BEGINNINGS = {"purpose": ":", "home": " in ", "call": "(", "search": " "}
"""Up to where a right answer says nothing yet, by what was asked: `os.getcwd:`, `Use `."""
Row = dict[str, Any]


def main() -> None:
    """Ask, count, and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--most", type=int, metavar="N", help="questions of each set (all)")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.questions.read_text("utf-8").splitlines()]
    rows = [row for some in by_set(rows).values() for row in some[: args.most]]
    for given in args.models:
        name, _, run = given.partition("=")
        for row, answer in zip(rows, ask(Path(run), rows), strict=True):
            row.setdefault("answers", {})[name] = answer
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "answers.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    shares = count(rows)
    text = f"{ten_questions(rows)}\n{table_of(shares)}"
    (args.output / "answers.md").write_text(text, "utf-8")
    draw(shares, args.output / "answers.png")
    print(text)


def by_set(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each set, in their order."""
    return {name: [row for row in rows if row["set"] == name] for name in sets(rows)}


def sets(rows: list[Row]) -> list[str]:
    """Their names, in the order of the rows."""
    return list(dict.fromkeys(row["set"] for row in rows))


def ask(run: Path, rows: list[Row]) -> list[Row]:
    """What `triax generate` says to each question: `text` and `finish_reason`."""
    template = ChatTemplate.of(run / "tokenizer")
    prompts = [
        template.render([{"role": "user", "content": row["question"]}])
        if template.is_own
        else row["question"] + "\n"
        for row in rows
    ]
    written = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(written):
        path = Path(folder) / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), "utf-8")
        code = triax_command([
            "generate", str(run), "--json", "--prompts", str(path), "--batch-size", "50",
            "--temperature", "0", "--max-new-tokens", str(MOST_TOKENS),
        ])  # fmt: skip
    if code != 0:
        sys.exit(code)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return [{key: line[key] for key in ("text", "finish_reason")} for line in lines]


def is_right(row: Row, answer: Row) -> bool:
    """Whether it is the documentation's, to the letter."""
    return bool(answer["text"].strip() == row["answer"])


def has_form(row: Row, answer: Row) -> bool:
    """Whether it begins as the right one does, before that says anything, and comes to an end."""
    head, mark, _ = row["answer"].partition(BEGINNINGS[row["kind"]])
    if row["kind"] == "call":
        head, mark = "Call it as ", ""
    return answer["finish_reason"] == "stop" and answer["text"].strip().startswith(head + mark)


def count(rows: list[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """By set and model, which share of the answers has the form of one, and which is right."""
    shares: dict[str, dict[str, tuple[float, float]]] = {}
    for name, some in by_set(rows).items():
        found: Counter[tuple[str, str]] = Counter()
        for row in some:
            for model, answer in row["answers"].items():
                found[model, "form"] += has_form(row, answer)
                found[model, "right"] += is_right(row, answer)
        shares[name] = {
            model: (found[model, "form"] / len(some), found[model, "right"] / len(some))
            for model in rows[0]["answers"]
        }
    return shares


def ten_questions(rows: list[Row]) -> str:
    """The first questions of each set with all answers, as a table in Markdown."""
    models = list(rows[0]["answers"])
    lines = [f"| set | question | {' | '.join(models)} |", "|---" * (len(models) + 2) + "|"]
    for name, some in by_set(rows).items():
        for row in some[:NUM_SHOWN]:
            cells = [cell(row, row["answers"][model]) for model in models]
            lines.append(f"| {name} | {row['question']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: Row, answer: Row) -> str:
    """An answer in a line, with a tick if it is right."""
    text = " ".join(answer["text"].split()).replace("|", "\\|").replace("`", "'")
    text = text if len(text) <= 90 else text[:87] + "..."
    return f"✓ {text}" if is_right(row, answer) else text


def table_of(shares: dict[str, dict[str, tuple[float, float]]]) -> str:
    """The shares as a table in Markdown."""
    lines = ["| questions | model | form of an answer | right |", "|---|---|---:|---:|"]
    lines += [
        f"| {name} | {model} | {form:.0%} | {right:.0%} |"
        for name, by_model in shares.items()
        for model, (form, right) in by_model.items()
    ]
    return "\n".join(lines) + "\n"


def draw(shares: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """The shares as bars, a group for each model."""
    figure, panels = plt.subplots(1, len(shares), figsize=(8, 3), sharey=True, squeeze=False)
    for panel, (name, by_model) in zip(panels[0], shares.items(), strict=True):
        places = range(len(by_model))
        for shift, label, column in ((-0.2, "form of an answer", 0), (0.2, "right", 1)):
            heights = [100 * both[column] for both in by_model.values()]
            bars = panel.bar([x + shift for x in places], heights, 0.38, label=label)
            panel.bar_label(bars, fmt="%.0f")
        panel.set_xticks(places, by_model)
        panel.set_title(f"questions: {name}", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylim(0, 112)
    panels[0][0].set_ylabel("% of answers")
    panels[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
