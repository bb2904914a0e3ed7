"""Joins this process to the job's others, and chooses its device."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from triax.common.errors import UserError
from triax.common.files import open_own, write_errors
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.rendezvous import Job, meet
from triax.training.records.local_files import LocalFiles

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Processes:
    """This process among the job's others.

    The gloo groups are None for a single process. Each is for one user alone, since two threads
    may not interleave collectives on one group.
    """

    environment: Environment
    device: torch.device
    control_group: dist.ProcessGroup | None
    checkpoint_group: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which talks and writes."""
        return self.environment.rank == 0


@contextmanager
def joined(
    environment: Environment, *, timeout_seconds: float, save_seconds: float, run_dir: Path
) -> Iterator[Processes]:
    """Initialise torch.distributed, for one process too, and leave it at the end.

    Args:
        environment: which process this is.
        timeout_seconds: how long a collective may take.
        save_seconds: how long a checkpoint may take.
        run_dir: by which the processes know that they are of one job.

    Raises:
        UserError: this machine has fewer GPUs than processes, or there is no way to rank 0, or
            it is another job's.
        RuntimeError: some processes didn't come in time.
    """
    device = _choose_device(environment)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Each process connects to those that it talks with: all to all would be N² sockets.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    timeout = timedelta(seconds=timeout_seconds)
    save_timeout = timedelta(seconds=max(timeout_seconds, save_seconds))
    dist.init_process_group(
        backend,
        store=meet(environment, timeout_seconds, Job.of(run_dir)),
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timeout,
    )
    try:
        is_single = environment.world_size == 1
        yield Processes(
            environment,
            device,
            None if is_single else dist.new_group(backend="gloo", timeout=timeout),
            None if is_single else dist.new_group(backend="gloo", timeout=save_timeout),
        )
    finally:
        dist.destroy_process_group()


def end_with_launcher() -> None:
    """Ask for SIGTERM when the launcher dies (Linux): nobody else would stop this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def make_deterministic(device: torch.device) -> None:
    """Only kernels that give the same bits every time; slower on a GPU, the default on a CPU."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


class _LogFile(logging.Handler):
    """A file that the node's processes share: each record is one write, each line has its rank.

    What can't be written, on a full disk, is lost without a word.
    """

    def __init__(self, files: LocalFiles) -> None:
        super().__init__(logging.INFO if files.speaks else logging.WARNING)
        self._path, self._prefix = files.log, f"rank {files.rank} | "
        self._descriptor: int | None = None

    def open(self) -> int:
        """The file's descriptor; opened when first asked for.

        Raises:
            OSError: it can't be.
        """
        if self._descriptor is None:
            self._descriptor = open_own(self._path, os.O_WRONLY | os.O_APPEND)
        return self._descriptor

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            text = self.format(record).replace("\n", f"\n{self._prefix}")
            os.write(self.open(), f"{self._prefix}{text}\n".encode(errors="backslashreplace"))


def log_to_file(files: LocalFiles) -> None:
    """Send this process's log records to its node's file.

    Of all that the node's processes would log alike, one logs; warnings and errors are each one's.

    Raises:
        UserError: it can't be written.
    """
    handler = _LogFile(files)
    if files.speaks:
        files.create()
        with write_errors(files.log):
            handler.open()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("triax")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


_SHOW_ALL_GPUS = ("torchrun", "deepspeed", "triax")
"""The launchers whose processes all see all of their machine's GPUs."""


def _choose_device(environment: Environment) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    if num_devices == 1 and environment.launcher not in _SHOW_ALL_GPUS:
        # Others can show each process its own GPU alone (srun: `--gpus-per-task 1`).
        return torch.device("cuda", 0)
    if environment.local_world_size > num_devices:
        raise UserError(
            f"{environment.hostname} has {num_devices} GPUs but was given "
            f"{environment.local_world_size} processes: start one process a GPU"
        )
    device = torch.device("cuda", environment.local_rank)
    torch.cuda.set_device(device)
    return device
