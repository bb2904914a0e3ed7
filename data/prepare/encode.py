"""Documents to token ids on all cores, in order, with bounded memory.

`tiktoken` encodes where it is certain to give the tokenizer's own ids. Else `tokenizers` does,
which takes some hundred bytes a token before they are ids, so it gets a long document in pieces
(`triax.data.prepare.pieces`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import DocumentTokens, Token
from triax.data.prepare.encoder import document_encoder
from triax.data.prepare.pieces import LONGEST_PIECE, encode_in_pieces
from triax.data.prepare.tiktoken_encoder import TiktokenEncoder, tiktoken_encoder
from triax.data.prepare.tokenizer import library_errors, vocabulary_size
from triax.data.read.shard_index import Array
from triax.data.read.shards import token_dtype

_BATCH_CHARACTERS = 1 << 18
_BATCHES_PER_WORKER = 3
"""In flight: one being worked on, one waiting, one being written."""


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_documents(
    documents: Iterator[str], tokenizer: Path, tokens: DocumentTokens, num_workers: int
) -> Generator[Array, None, None]:
    """Encode each document and put its first and last token around it, in the given order.

    Text that spells a special token is encoded as plain text, and so is text that spells the
    tokens of `tokens`, whatever the tokenizer calls them: no document can end itself. The result
    does not depend on `num_workers`.

    Args:
        tokenizer: its folder or `tokenizer.json`.
        tokens: what stands where a document begins and ends.

    Yields:
        [num_tokens] of `token_dtype(vocabulary_size)`.

    Raises:
        UserError: the tokenizer is of no use, or a worker process died.
    """
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=begin_worker
    )
    in_flight: deque[Future[list[Array]]] = deque()
    try:
        for texts in _batches(documents):
            in_flight.append(pool.submit(_encode, str(tokenizer), tokens, texts))
            if len(in_flight) > _BATCHES_PER_WORKER * num_workers:
                yield from in_flight.popleft().result()
        while in_flight:
            yield from in_flight.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a tokenizing process died, most likely for want of memory; run the same command again "
            f"to go on behind the finished shards, {_with_less_memory(num_workers)}"
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


def begin_worker() -> None:
    """What a process of a pool does first: leave interrupts to its parent, and end with it."""
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


def _with_less_memory(num_workers: int) -> str:
    if num_workers > 1:
        return f"with fewer workers than {num_workers}"
    return "where more memory is free: one process works already, on a piece of text at a time"


@dataclass(frozen=True)
class Encoder:
    """What a worker keeps of the tokenizer."""

    tokenizer: Tokenizer
    fast: TiktokenEncoder | None
    dtype: np.dtype[Any]

    def encode(self, texts: list[str]) -> list[list[Array]]:
        """Each text's token ids, in one or several arrays."""
        found = [None if self.fast is None else self.fast.encode(text) for text in texts]
        left = zip(texts, found, strict=True)
        short = [text for text, ids in left if ids is None and len(text) <= LONGEST_PIECE]
        encodings = iter(self.tokenizer.encode_batch_fast(short, add_special_tokens=False))
        return [
            self._encode_slowly(text, encodings) if ids is None else [ids]
            for text, ids in zip(texts, found, strict=True)
        ]

    def _encode_slowly(self, text: str, short: Iterator[Encoding]) -> list[Array]:
        """By `tokenizers`; a short text's encoding is the next of `short`."""
        if len(text) <= LONGEST_PIECE:
            return [np.array(next(short).ids, self.dtype)]
        return [np.array(ids, self.dtype) for ids in encode_in_pieces(self.tokenizer, text)]


@lru_cache(maxsize=1)
def encoder_of(path: str, reserved: tuple[Token, ...]) -> Encoder:
    """What encodes documents by a tokenizer, in which no text gives the reserved tokens.

    Raises:
        UserError: the tokenizer is of no use.
    """
    tokenizer = document_encoder(Path(path), reserved)
    dtype = token_dtype(vocabulary_size(tokenizer))
    with library_errors(path):
        return Encoder(tokenizer, tiktoken_encoder(tokenizer, dtype), dtype)


def _encode(tokenizer_path: str, tokens: DocumentTokens, texts: list[str]) -> list[Array]:
    first = () if tokens.begin is None else (tokens.begin,)
    encoder = encoder_of(tokenizer_path, (*first, tokens.end))
    begin = np.array([token.id for token in first], encoder.dtype)
    end = np.array([tokens.end.id], encoder.dtype)
    with library_errors(tokenizer_path):
        return [np.concatenate((begin, *ids, end)) for ids in encoder.encode(texts)]
