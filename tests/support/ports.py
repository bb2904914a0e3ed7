"""Ports for jobs to meet at."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A TCP port that nobody has.

    Not one of those that the kernel hands out by itself: some connection could get it before the
    job binds it.
    """
    for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("a hundred ports are taken")
