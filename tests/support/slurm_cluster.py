"""A real SLURM cluster of two nodes for tests, made by an outside tool, and what tests do on it.

The tool is the program that $TRIAX_SLURMCI names, or `shared/tools/slurmci` beside the repository.
It takes `up`, `down`, `crash NODE`, `boot NODE` and `env`, needs root, and gives each node a
network of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from small_run import command

TOOL = Path(
    os.environ.get(
        "TRIAX_SLURMCI", Path(__file__).resolve().parents[3] / "shared" / "tools" / "slurmci"
    )
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def why_not() -> str | None:
    """Why there can be no cluster here, if so."""
    if not os.access(TOOL, os.X_OK):
        return f"no tool that makes a SLURM cluster: {TOOL} (set TRIAX_SLURMCI)"
    if os.geteuid() != 0:
        return "making a SLURM cluster needs root"
    return None


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Poll until it is so; fails with the words."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """Commands on a cluster that is up."""

    folder: Path
    variables: dict[str, str]

    @staticmethod
    def up() -> Cluster:
        """Make it; other users of the tool on this machine are waited for."""
        folder = Path(tempfile.mkdtemp(prefix="triax-slurm-"))
        folder.chmod(0o755)  # munge's socket is for everyone
        variables = {**os.environ, "SLURMCI_DIR": str(folder), "OMP_NUM_THREADS": "1"}
        free = Path("/sys/class/net/slurmci0")
        wait_for("another cluster on this machine to end", lambda: not free.exists(), 600)
        made = subprocess.run(
            [str(TOOL), "up"],
            env=variables, stdout=subprocess.DEVNULL, timeout=400, check=False,
        )  # fmt: skip
        cluster = Cluster(folder, {**variables, "SLURM_CONF": str(folder / "etc" / "slurm.conf")})
        if made.returncode != 0:
            cluster.down()
        assert made.returncode == 0, f"{TOOL} up failed; see {folder}/log"
        return cluster

    def down(self) -> None:
        """End it with all of its jobs."""
        subprocess.run(
            [str(TOOL), "down"],
            env=self.variables, timeout=100, check=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        """One command; returns what it printed."""
        done = subprocess.run(
            arguments,
            env=self.variables, cwd=cwd, timeout=60, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, folder: Path, *arguments: str) -> list[str]:
        """`triax submit` on both nodes with one process each; returns the jobs' ids."""
        said = self.run(
            command("triax"), "submit", "run.toml", "--nodes", "2", "--gpus-per-node", "0",
            "--processes-per-node", "1", "--grace", "30", *arguments,
            cwd=folder,
        )  # fmt: skip
        return re.findall(r"\d+", said.partition(";")[0])

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED ..."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "-o", "%T").strip()

    def crash(self, node: str) -> None:
        """Kill everything on a node at once."""
        subprocess.run([str(TOOL), "crash", node], env=self.variables, timeout=60, check=True)

    def repair(self) -> None:
        """Boot what has crashed, and wait until both nodes are free."""
        for node in ("node1", "node2"):
            if not (self.folder / "run" / f"{node}.pid").exists():
                subprocess.run(
                    [str(TOOL), "boot", node], env=self.variables, timeout=60, check=True
                )

        def all_idle() -> bool:
            subprocess.run(
                ["scontrol", "update", "NodeName=node[1-2]", "State=RESUME"],
                env=self.variables, check=False, timeout=30, capture_output=True,
            )  # fmt: skip
            idle = self.run("sinfo", "--noheader", "-p", "low", "-t", "idle", "-o", "%D %T")
            return idle.split() == ["2", "idle"]

        wait_for("both nodes to be idle", all_idle, 90)


def log_of(run_dir: Path, job: str) -> str:
    """What a job has said so far, without the progress bar's colours."""
    path = run_dir / "logs" / f"slurm-{job}.log"
    return _ANSI.sub("", path.read_text(errors="replace")) if path.exists() else ""


def num_rows(run_dir: Path) -> int:
    """How many steps the run has logged."""
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0
