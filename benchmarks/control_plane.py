"""What a job of N processes costs besides its tensors: sockets, packets, bytes, files, memory.

The processes are forked from one warm parent and run the code of a run's start, agreements,
heartbeats, saves, restart and end, without a model: a rank holds a few tiny tensors. Counts come
from the kernel (TCP_INFO of each socket, /proc) and from wrapped calls of `os`, not from the code
that is counted. Times are of N processes on the cores that there are: ratios at best.

    python benchmarks/control_plane.py --ranks 2 8 16 32
    python benchmarks/control_plane.py --ranks 16 --lose 5 --how hang --phase save
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import math
import multiprocessing
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from triax.checkpoint.store import CheckpointStore
from triax.common.quantities import Duration, Unit
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.preflight import common_facts, refuse_differences
from triax.launcher.cluster.process_group import joined, log_to_file
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.run import local_files
from triax.parallel.agreement import agreed
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.control import ControlLine, Requests
from triax.training.stability.watchdog import Watchdog
from triax.training.stability_config import StabilityConfig

NUM_TENSORS = 8
PHASES = ("start", "agree", "steps", "save", "save again", "restart")
_NUM_STEPS = 10
_CALLS = (
    "open", "stat", "lstat", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "scandir",
    "listdir", "fsync", "statvfs", "link",
)  # fmt: skip
_TCP_INFO_BYTES = 160
_BEFORE_DATA_SEGMENTS = 156
_SENT_BYTES = 120


class FileCalls:
    """Counts this process's file-system calls below a folder, by kind, from when it is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.counts: Counter[str] = Counter()
        for name in _CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        io.open = builtins.open = self._counted("open", builtins.open)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            place = args[0] if args else ""
            if isinstance(place, int) or str(place).startswith(self._folder):
                self.counts[name] += name != "open" or not isinstance(place, int)
            return call(*args, **kwargs)

        return wrapper


def network() -> dict[str, int]:
    """Sockets that this process has open, and what went out through them."""
    counts = {"sockets": 0, "packets": 0, "bytes": 0}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            number = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as peer:
                if peer.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                counts["sockets"] += 1
                info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            continue
        if len(info) == _TCP_INFO_BYTES:
            counts["packets"] += struct.unpack_from("I", info, _BEFORE_DATA_SEGMENTS)[0]
            counts["bytes"] += struct.unpack_from("Q", info, _SENT_BYTES)[0]
    return counts


def memory_mib() -> float:
    """Of this process alone, beyond what it shares with its parent."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = [int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")]
    return sum(private) / 1024


class Rank:
    """One process: its phases, and what each has cost."""

    def __init__(self, rank: int, args: argparse.Namespace, size: int, folder: Path) -> None:
        local = min(args.per_node, size)
        self.rank, self.size, self.args, self.folder = rank, size, args, folder
        self.environment = Environment(
            rank, rank % local, size, local, rank // local, "127.0.0.1", "torchrun",
            math.ceil(size / local), "127.0.0.1", args.port, agent_listens=True,
        )  # fmt: skip
        self.files = FileCalls(folder)
        self.rows: dict[str, dict[str, Any]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.args.lose == self.rank and self.args.phase == name:
            self._be_lost()
        before, calls, began = network(), Counter(self.files.counts), time.monotonic()
        yield
        after = network()
        self.rows[name] = {
            "seconds": time.monotonic() - began,
            "sockets": after["sockets"],
            "packets": after["packets"] - before["packets"],
            "bytes": after["bytes"] - before["bytes"],
            "files": dict(self.files.counts - calls),
            "memory_mib": memory_mib(),
        }

    def _be_lost(self) -> None:
        if self.args.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.args.how == "hang":
            threading.Event().wait()
        raise OSError("rehearsed: this rank lies about nothing, it fails")

    def run(self) -> dict[str, Any]:
        directory = RunDirectory(self.folder / "run")
        config = RunConfig.model_validate_json(self.args.config)
        with (
            self.phase("start"),
        ):
            files = local_files(config, directory, self.environment)
            log_to_file(files)
            context = joined(
                self.environment,
                timeout_seconds=self.args.timeout,
                save_seconds=self.args.timeout,
                run_dir=directory.path,
            )
            processes = context.__enter__()
            stability = StabilityConfig(hang_after=Duration(60, Unit.SECONDS))
            watchdog = Watchdog(files, stability, world_size=self.size)
            watchdog.__enter__()
            refuse_differences(common_facts(config), processes, config)
        with self.phase("agree"):
            agreed(lambda: None, processes.control_group)
        line = ControlLine(processes.control_group)
        with self.phase("steps"):
            for step in range(_NUM_STEPS):
                watchdog.beat("in the step", step)
                line.exchange(Requests())
            line.exchange(Requests())
        tensors = {f"model.{self.rank}.{n}": torch.zeros(4) for n in range(NUM_TENSORS)}
        store = CheckpointStore(
            directory.checkpoints, keep=1, asynchronous=False,
            deadline_seconds=self.args.timeout, group=processes.checkpoint_group,
        )  # fmt: skip
        for step, name in enumerate(("save", "save again"), 1):
            with self.phase(name):
                store.save(step, tensors, {"step": step})
                outcome = store.wait()
                assert outcome is not None and outcome.error is None, outcome
        with self.phase("restart"):
            info = store.newest_good()
            assert info is not None
            store.load(info, tensors)
        watchdog.__exit__(None, None, None)
        dist.destroy_process_group()
        return self.rows


def _enter(rank: int, args: argparse.Namespace, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    sys.stderr = (folder / f"stderr-{rank}").open("w")
    try:
        rows: Any = Rank(rank, args, size, folder).run()
    except BaseException as error:
        rows = f"{type(error).__name__}: {error}"
    (folder / f"rank-{rank}.json").write_text(json.dumps(rows))
    os._exit(0)  # a lost rank's peers have threads that wait for it


def count(args: argparse.Namespace, size: int) -> list[Any]:
    """Each rank's rows by phase, its last words where it failed, or None where it was lost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        RunDirectory(folder / "run").create()
        listener = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        args.port = listener.port
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=_enter, args=(r, args, size, folder)) for r in range(size)]
        for worker in workers:
            worker.start()
        end = time.monotonic() + args.timeout * 2
        for worker in workers:
            worker.join(max(0.1, end - time.monotonic()))
            if worker.is_alive():
                worker.kill()
        paths = [folder / f"rank-{rank}.json" for rank in range(size)]
        return [json.loads(p.read_text()) if p.exists() else None for p in paths]


def count_apart(args: argparse.Namespace, size: int) -> list[Any]:
    """As `count`, from a fork: a parent that has kept a store has threads, and forks badly."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    parent = fork.Process(target=lambda: sender.send(count(args, size)))
    parent.start()
    found: list[Any] = receiver.recv()
    parent.join()
    return found


def figures(found: Sequence[dict[str, dict[str, Any]]], phase: str) -> dict[str, float]:
    """A phase's figures: of the median rank, of rank 0, and of the file system."""
    rows = [rank[phase] for rank in found]
    middle = len(rows) // 2
    named: dict[str, float] = {}
    for kind in ("sockets", "packets", "bytes"):
        named[f"{kind} a rank"] = sorted(row[kind] for row in rows)[middle]
        named[f"{kind} rank 0"] = rows[0][kind]
    named["file calls, all"] = sum(sum(row["files"].values()) for row in rows)
    named["file calls, rank 0"] = sum(rows[0]["files"].values())
    named["listings, all"] = sum(
        row["files"].get("scandir", 0) + row["files"].get("listdir", 0) for row in rows
    )
    named["MiB a rank"] = round(sorted(row["memory_mib"] for row in rows)[middle], 1)
    named["MiB rank 0"] = round(rows[0]["memory_mib"], 1)
    named["seconds"] = round(max(row["seconds"] for row in rows), 2)
    return named


GROWTHS: dict[str, Callable[[float], float]] = {
    "1": lambda _n: 0.0,
    "log N": lambda n: math.log2(n),
    "N": lambda n: n,
    "N log N": lambda n: n * math.log2(n),
    "N²": lambda n: n * n,
}


def fit(sizes: Sequence[int], values: Sequence[float]) -> tuple[str, Callable[[float], float]]:
    """The slowest growth a + b g(N), of least squares, that explains the values to 10%."""
    best: tuple[float, str, Callable[[float], float]] | None = None
    for name, growth in GROWTHS.items():
        xs = [growth(n) for n in sizes]
        mean_x, mean_y = sum(xs) / len(xs), sum(values) / len(values)
        spread = sum((x - mean_x) ** 2 for x in xs)
        slope = (
            sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, values, strict=True)) / spread
            if spread
            else 0.0
        )
        level = mean_y - slope * mean_x

        def at(n: float, g: Any = growth, a: float = level, b: float = slope) -> float:
            return a + b * float(g(n))

        error = max(abs(at(n) - y) / max(abs(y), 1.0) for n, y in zip(sizes, values, strict=True))
        if error < 0.1:
            return name, at
        if best is None or error < best[0]:
            best = (error, name, at)
    assert best is not None
    return best[1], best[2]


def table(sizes: Sequence[int], by_size: dict[int, list[Any]]) -> str:
    """All phases as Markdown, with each quantity's growth and where it leads."""
    far = (1024, 4096, 16384)
    heads = [*(str(size) for size in sizes), "growth", *(f"→ {size:,}" for size in far)]
    lines = []
    for phase in PHASES:
        lines += [f"\n### {phase}\n", "| ranks | " + " | ".join(heads) + " |"]
        lines.append("|---|" + "---|" * len(heads))
        rows = [figures(by_size[size], phase) for size in sizes]
        for name in rows[0]:
            values = [row[name] for row in rows]
            growth, at = fit(sizes, values) if len(sizes) > 2 else ("", lambda _n: math.nan)
            cells = [f"{value:,}" for value in values]
            if name == "seconds":
                cells += ["shared cores", *[""] * len(far)]
            else:
                cells += [growth, *(f"{max(0.0, at(size)):,.0f}" for size in far)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Count for each number of ranks, or lose one and print what the others say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 16, 32])
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--lose", type=int, help="a rank")
    parser.add_argument("--how", choices=("die", "hang", "fail"), default="die")
    parser.add_argument("--phase", choices=PHASES, default="save")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = {"sources": [{"path": "nowhere"}], "seq_len": 16}
    args.config = json.dumps({
        "run": {"name": "count"}, "model": {"preset": "mini-10m"}, "data": data,
        "batch": {"global_batch_size": max(args.ranks)}, "budget": {"tokens": "1M"},
    })  # fmt: skip
    by_size = {size: count_apart(args, size) for size in args.ranks}
    for size, found in by_size.items():
        words = Counter(str(row) for row in found if not isinstance(row, dict))
        for text, number in words.most_common(4):
            print(f"{size} ranks: {number} say {text[:200]}")
        if words:
            return 1
    if args.json:
        print(json.dumps({n: [figures(f, p) for p in PHASES] for n, f in by_size.items()}))
    else:
        print(table(args.ranks, by_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
