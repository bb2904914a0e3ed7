"""What other users of this machine could talk to: the listening sockets of processes (Linux)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import torch.distributed as dist

_LISTENING = "0A"


def family_of(pid: int) -> list[int]:
    """A process and all that it has started, and they."""
    try:
        children = [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(each for child in children for each in family_of(child))]


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket at which one of the processes listens."""
    inodes: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(entry))  # noqa: PTH115
    found: set[tuple[str, int]] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENING and f"socket:[{words[9]}]" in inodes:
                digits, _, port = words[1].partition(":")
                found.add((_address(digits), int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def note_stores(ports: Sequence[int], note: Path) -> None:
    """Write down the ports of this machine at which one of torch's stores answers."""
    found: list[int] = []
    threads = [Thread(target=_visit, args=(port, found), daemon=True) for port in ports]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 3  # torch waits without end for who takes a connection and is silent
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    note.write_text(" ".join(map(str, found)))
    os._exit(0)


def _visit(port: int, found: list[int]) -> None:
    with contextlib.suppress(dist.DistError, RuntimeError, ValueError):
        dist.TCPStore("127.0.0.1", port)  # type: ignore[attr-defined]
        found.append(port)


def _address(digits: str) -> str:
    """The kernel writes addresses as words in the machine's byte order."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))
