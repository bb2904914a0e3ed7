"""Where the processes of one node write their log, stacks and heartbeats. Imports no torch.

A node's processes share one file of each kind. With `run.local_dir` these lie on the node's own
drive, and what is new in them is copied into the run directory when something fails.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import open_own, read_regular, write_errors
from triax.training.records.run_directory import RunDirectory

_MOST_BYTES = 1 << 24
"""Of heartbeats, and of what is copied of a log at a time."""


@dataclass(frozen=True)
class LocalFiles:
    """One process's share of its node's files."""

    directory: RunDirectory
    """Of the run, which all nodes see."""
    folder: Path
    """Where this node writes: on a drive of its own, or in the run directory."""
    rank: int
    name: str
    """`node-3`, or `rank-27` where each process has its own files."""
    num_names: int
    """How many such there are in the job."""
    slot: int
    """This process's place among those that share the files."""
    num_slots: int

    @staticmethod
    def of(
        directory: RunDirectory,
        *,
        rank: int,
        local_rank: int,
        node_rank: int,
        world_size: int,
        local_world_size: int,
        local_dir: str | None = None,
        per_rank: bool = False,
    ) -> LocalFiles:
        """The files of a process by its place in the job.

        Args:
            local_dir: a folder on each node's own drive; None: the run directory.
            per_rank: each process has files of its own.
        """
        folder = directory.path
        if local_dir is not None:
            number = hashlib.sha256(os.fsencode(directory.path.absolute())).hexdigest()[:8]
            folder = Path(local_dir) / f"{directory.path.name}-{number}"
        if per_rank:
            return LocalFiles(directory, folder, rank, f"rank-{rank}", world_size, 0, 1)
        num_nodes = -(-world_size // local_world_size)
        return LocalFiles(
            directory, folder, rank, f"node-{node_rank}", max(num_nodes, node_rank + 1),
            local_rank, local_world_size,
        )  # fmt: skip

    @property
    def speaks(self) -> bool:
        """Whether this is the process that logs what all of the node's would say alike."""
        return self.slot == 0

    @property
    def are_shared(self) -> bool:
        """Whether they lie in the run directory, where all nodes see them at once."""
        return self.folder == self.directory.path

    @property
    def log(self) -> Path:
        """Of all the node's processes, each line after its rank."""
        return self.folder / f"logs/{self.name}.log"

    @property
    def stacks(self) -> Path:
        """Where all threads were at a hang."""
        return self.folder / f"logs/{self.name}.stacks"

    @property
    def heartbeats(self) -> Path:
        """A line for each of the node's processes."""
        return self.folder / f"heartbeats/{self.name}.jsonl"

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: they can't be made, or somebody else has made them.
        """
        with write_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("logs", "heartbeats"):
                (self.folder / name).mkdir(exist_ok=True)
            owner = self.folder.lstat().st_uid
        if not self.are_shared and owner != os.getuid():
            raise UserError(
                f"run.local_dir: {self.folder} is another user's; choose another folder"
            )

    def gather(self) -> None:
        """Copy what is new here into the run directory, as far as that can be written."""
        if self.are_shared:
            return
        shared = self.directory.path
        with suppress(OSError):
            for path in (self.log, self.stacks):
                _append_news(path, shared / path.relative_to(self.folder))
            self.gather_heartbeats()

    def gather_heartbeats(self) -> None:
        """Copy the node's heartbeats into the run directory.

        Raises:
            OSError: it can't be written.
        """
        if not self.are_shared:
            target = self.directory.path / self.heartbeats.relative_to(self.folder)
            target.parent.mkdir(exist_ok=True)
            descriptor = open_own(target, os.O_WRONLY)
            try:
                # In place: any of the node's processes may do so, and all bring the same.
                content = read_regular(self.heartbeats, _MOST_BYTES)
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
            finally:
                os.close(descriptor)


def _append_news(local: Path, shared: Path) -> None:
    """Append to a file what another has had appended since the last call, by any process."""
    marker = open_own(local.with_name(f"{local.name}.copied"), os.O_RDWR)
    try:
        fcntl.flock(marker, fcntl.LOCK_EX)
        copied = int(os.pread(marker, 32, 0) or b"0")
        with local.open("rb") as file:
            file.seek(copied)
            target = open_own(shared, os.O_WRONLY | os.O_APPEND)
            try:
                while news := file.read(_MOST_BYTES):
                    os.write(target, news)
            finally:
                os.close(target)
            os.pwrite(marker, f"{file.tell():<31}\n".encode(), 0)
    except FileNotFoundError:
        pass  # nothing was said here
    finally:
        os.close(marker)
