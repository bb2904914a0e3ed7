"""The comparison of speeds runs small on a CPU, and compares loops that do the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.num_kv_heads=1",
    "model.head_dim=16", "model.ffn_hidden_size=64", "model.vocab_size=304",
    "model.tie_embeddings=false", "model.qk_norm=false", "optimizer.lr=1e-2",
)  # fmt: skip


def test_all_loops_are_in_the_table_and_learn_alike(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "compare_speed.py"
    arguments = "--preset mini-10m --seq-len 32 --micro-batch-size 2 --steps 2 --output table.md"
    ended = subprocess.run(
        [sys.executable, script, *arguments.split(), "--overrides", *TINY],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.strip() == ended.stdout.strip()
    for fact in ("date: ", "device: cpu", "torch ", "compare_speed.py --preset mini-10m", "limit"):
        assert fact in table
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    header, by_name = rows[0], {row[0]: row[1:] for row in rows[2:]}
    assert list(by_name) == ["triax", "bare", "transformers", "torchtitan"]
    assert {len(row) for row in rows} == {len(header)}
    first, last = header.index("first loss") - 1, header.index("last loss") - 1
    compared = ["bare", "transformers"] if importlib.util.find_spec("transformers") else ["bare"]
    for name in compared:
        for column in (first, last):
            assert float(by_name[name][column]) == pytest.approx(
                float(by_name["triax"][column]), abs=2e-4
            )
    assert float(by_name["triax"][last]) != float(by_name["triax"][first])
    if importlib.util.find_spec("torchtitan") is None:
        assert by_name["torchtitan"][0] == "not installed (torchtitan)"
