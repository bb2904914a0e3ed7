"""docs/extending.md followed to the letter: its code, put into a copy of triax, trains."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ports import free_port

from triax.data.read.inspection import inspect
from triax.data.read.shards import Shard

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "extending.md"
FOLDERS = [path.name for path in (ROOT / ".typing" / "triax").iterdir() if path.is_dir()]
CONFIG = """\
[run]
name = "extended"
[model]
family = "mine"
num_layers = 2
hidden_size = 32
num_heads = 2
ffn_hidden_size = 64
vocab_size = 304
[data]
sources = [{ path = "corpus/train" }]
tokenizer = "corpus/tokenizer"
seq_len = 32
[data.prepare]
inputs = ["corpus.sqlite"]
output = "corpus"
vocab_size = 300
text_field = "body"
[parallel]
zero_stage = 3
[budget]
tokens = "1536"
[precision]
compute = "fp32"
[batch]
global_batch_size = 8
[optimizer]
name = "lion"
lr = 1e-3
betas = [0.9, 0.99]
[checkpoint]
every = "3 steps"
[metrics]
tensorboard = false
"""


def blocks() -> dict[str, str]:
    """The page's code by the first comment of each block."""
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    for indented in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.M | re.S):
        first, _, code = textwrap.dedent(indented).partition("\n")
        if first.startswith("# "):
            found[first.removeprefix("# ")] = code
    return found


def put_in(source: str, name: str, code: str) -> str:
    """The source of a module with lines added to a table, or a field of a class replaced."""
    imports = "".join(line + "\n" for line in code.splitlines() if line.startswith("from "))
    rest = "".join(line + "\n" for line in code.splitlines() if not line.startswith("from "))
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            field = rest.partition(":")[0]
            [old] = [
                each for each in node.body
                if isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == field
            ]  # fmt: skip
            lines[old.lineno - 1 : old.end_lineno] = textwrap.indent(rest, "    ")
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            assert node.value is not None
            at, column = node.value.lineno - 1, node.value.col_offset + 1
            lines[at] = f"{lines[at][:column]}\n{rest}{lines[at][column:]}"
    marker = "from __future__ import annotations\n"
    return "".join(lines).replace(marker, marker + imports, 1)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of triax with all that the page adds, and text for it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "api", folder / "triax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / "triax" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for title, code in blocks().items():
        name, is_table, path = title.removeprefix("in ").partition(" of ")
        place = folder / "triax" / (path or title) if "/" in title else folder / title
        if is_table:
            place.write_text(put_in(place.read_text(), name, code))
        else:
            assert not place.exists()
            place.write_text(code)
    with closing(sqlite3.connect(folder / "corpus.sqlite")) as connection:
        connection.execute("CREATE TABLE documents (title TEXT, body TEXT)")
        rows = [
            (str(n), f"document {n} says what others say {n % 7} times. " * 6) for n in range(90)
        ]
        connection.executemany("INSERT INTO documents VALUES (?, ?)", rows)
        connection.commit()
    (folder / "run.toml").write_text(CONFIG)
    np.save(folder / "tokens.npy", np.arange(300).reshape(30, 10))
    return folder


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Python with the copy as its triax."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


def train(folder: Path, num_processes: int, *overrides: str) -> list[dict[str, Any]]:
    """The run's metrics after a start of mpiexec's processes."""
    port = str(free_port())
    processes = [
        start(
            folder, "-m", "triax.launcher.train", "run.toml", *overrides,
            PMI_RANK=str(rank), PMI_SIZE=str(num_processes),
            MPI_LOCALRANKID=str(rank), MPI_LOCALNRANKS=str(num_processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(num_processes)
    ]  # fmt: skip
    shown = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), shown
    lines = (folder / "runs/extended/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_family_an_optimizer_a_source_and_a_launcher_train(extended: Path) -> None:
    """On two processes, sharded; and one goes on from there."""
    rows = train(extended, 2)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    log = (extended / "runs/extended/logs/node-0.log").read_text()
    assert "mpiexec: 2 processes on 1 node" in log
    assert [row["step"] for row in train(extended, 1, "--budget.tokens=2048")][6:] == [7, 8]


def test_tokens_from_elsewhere_become_shards(extended: Path) -> None:
    process = start(extended, "write_shards.py")
    assert process.wait(60) == 0, process.communicate()
    contents = inspect([Shard.open(extended / "tokens" / "train")])
    assert (contents.num_documents, contents.num_tokens) == (30, 300)
