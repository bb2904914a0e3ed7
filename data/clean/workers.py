"""Pieces of work on several processes, with no more of them in memory than are being worked on."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from triax.common.errors import UserError
from triax.data.prepare.encode import begin_worker

Job = tuple[Any, ...]


def run_jobs(function: Callable[..., None], jobs: Iterator[Job], num_workers: int) -> Iterator[int]:
    """Call a function with each job's arguments; on this process if one worker is enough.

    Yields:
        The number of jobs done, after each.

    Raises:
        UserError: of the function; or a worker process died.
    """
    if num_workers == 1:
        for count, job in enumerate(jobs, start=1):
            function(*job)
            yield count
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_begin)
    in_flight: deque[Future[None]] = deque()
    count = 0
    try:
        for job in jobs:
            in_flight.append(pool.submit(function, *job))
            if len(in_flight) > num_workers:
                in_flight.popleft().result()
                yield (count := count + 1)
        while in_flight:
            in_flight.popleft().result()
            yield (count := count + 1)
    except BrokenProcessPool:
        raise UserError(
            "a cleaning process died, most likely for want of memory; run the same command again "
            "to go on behind the finished pieces, with fewer workers; or begin anew with a smaller "
            "output.piece_characters"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    # A process a core is parallel enough; rensa would start a thread a core in each.
    os.environ["RAYON_NUM_THREADS"] = "1"
    begin_worker()
