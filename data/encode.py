"""Documents to token ids on all cores, in order, with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.data.shards import Array, token_dtype
from triax.data.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size

_BATCH_CHARACTERS = 1 << 18
_BATCHES_PER_WORKER = 3
"""In flight: one being worked on, one waiting, one being written."""


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_documents(
    documents: Iterator[str], tokenizer: Path, num_workers: int
) -> Generator[Array, None, None]:
    """Encode each document and end it with the end-of-text token, in the given order.

    Text that spells a special token is encoded as plain text, so that no document can end
    itself. The result does not depend on `num_workers`.

    Yields:
        [num_tokens] of `token_dtype(vocabulary_size)`.

    Raises:
        UserError: the tokenizer is of no use, or a worker process died.
    """
    end_of_text_id(load_tokenizer(tokenizer))
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    in_flight: deque[Future[list[Array]]] = deque()
    try:
        for texts in _batches(documents):
            in_flight.append(pool.submit(_encode, str(tokenizer), texts))
            if len(in_flight) > _BATCHES_PER_WORKER * num_workers:
                yield from in_flight.popleft().result()
        while in_flight:
            yield from in_flight.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a tokenizing process died, most likely for want of memory; run the same command "
            f"again to go on behind the finished shards, with fewer workers than {num_workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _begin_worker() -> None:
    # One process per core is parallel enough, and the parent handles the interrupt.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, workers of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache(maxsize=1)
def _encoder(path: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer_path: str, texts: list[str]) -> list[Array]:
    tokenizer = _encoder(tokenizer_path)
    ending = [end_of_text_id(tokenizer)]
    dtype = token_dtype(vocabulary_size(tokenizer))
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.fromiter(chain(encoding.ids, ending), dtype) for encoding in encodings]
