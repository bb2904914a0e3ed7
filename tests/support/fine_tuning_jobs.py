"""Conversations and preferences for jobs: their data, and the options of runs over them."""

from __future__ import annotations

import json
from pathlib import Path

from jobs import Ended, make_job, triax

CHATS = '--data.sources=[{"path": "chats/train"}]'
SFT = (
    "--run.name=sft", "--objective.kind=sft", CHATS, "--data.validation=chats/validation",
    "--data.tokenizer=chats/tokenizer", "--data.seq_len=63", "--budget.tokens=4032",
)  # fmt: skip
DPO = (
    "--run.name=dpo", "--objective.kind=dpo", '--data.sources=[{"path": "pairs/train"}]',
    "--data.validation=pairs/validation", "--data.tokenizer=chats/tokenizer", "--data.seq_len=63",
    "--budget.tokens=4032", "--optimizer.lr=1e-3", "--checkpoint.init_from=runs/sft",
)  # fmt: skip


def write_rows(folder: Path) -> None:
    """Conversations and pairs from the job's own words."""
    chats = [
        {"prompt": f"the cat {n}", "completion": f"and the dog {n % 3}", "tools": None}
        for n in range(60)
    ]
    pairs = [
        {"prompt": f"the cat {n}", "chosen": f"the dog {n % 3}", "rejected": f"a tree {n % 5}"}
        for n in range(60)
    ]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def good(ended: Ended) -> Ended:
    assert ended.code == 0, ended.text
    return ended


def make_taught(corpus: Path, folder: Path) -> Path:
    """A folder with the corpus's data, conversations and pairs."""
    make_job(corpus, folder)
    write_rows(folder)
    for command in ("chats.jsonl --output chats", "pairs.jsonl --pairs --output pairs"):
        good(triax(
            folder, "data", "conversations", *command.split(),
            "--tokenizer", "tokenizer", "--validation-fraction", "0.1",
        ))  # fmt: skip
    return folder
