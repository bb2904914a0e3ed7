"""The example notebook runs: its cells as they stand, and in a kernel where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "two-runs.ipynb"
CHECKS = """
assert first.ending["code"] == 0 and len(first.metrics) == 20
assert seen and second.ending["code"] == 0 and len(second.metrics) == 20
assert page.exists()
"""


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in found), "outputs are left out of the repository"
    return [cell["source"] for cell in found if cell["cell_type"] == "code"]


def test_its_cells_run_in_one_process(tmp_path: Path) -> None:
    code = "\n".join([*cells(), CHECKS])
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not result.stdout, "quiet runs print nothing"


def test_it_runs_in_a_kernel(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("tokens_per_second" in str(output) for output in shown)
