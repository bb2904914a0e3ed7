"""Text to shards: `train-00000.bin`, `validation-00000.bin`, ... and `data.json` in one folder.

The documents decide everything, by their numbers and lengths: which split one goes to, and where
shards end. So the files depend neither on the number of workers nor on where a run was interrupted.
A set of shards, one of each split, is finished together; `progress.json` counts the finished
ones, and a later call goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np

from triax.common.errors import UserError
from triax.common.files import exclusive, make_folder
from triax.data.prepare.document_tokens import DocumentTokens, document_tokens
from triax.data.prepare.encode import encode_documents, num_cores
from triax.data.prepare.inputs import inputs_fingerprint
from triax.data.prepare.overlap import count_shared
from triax.data.prepare.split import TRAIN, VALIDATION, assign_splits, plan_split
from triax.data.prepare.text import iter_documents
from triax.data.prepare.tokenizer import (
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from triax.data.read.shard_index import Array
from triax.data.read.shards import ShardWriter, shard_prefix, token_dtype
from triax.data.record import (
    PreparedData,
    Progress,
    Settings,
    SplitCounts,
    SplitPlan,
    check_same,
    load_prepared,
    load_progress,
    save_prepared,
    save_progress,
)

TOKENS_PER_SHARD = 1_000_000_000
"""2 GB of uint16: large enough for few files, small enough to lose little to an interrupt."""

ProgressCallback = Callable[[int, int], None]
"""Called with the documents and the tokens done so far."""


def _silent(_num_documents: int, _num_tokens: int) -> None:
    pass


def prepare(
    inputs: Sequence[str],
    tokenizer: Path,
    output: Path,
    *,
    num_workers: int | None = None,
    validation_fraction: float = 0.01,
    text_field: str = "text",
    tokens_per_shard: int = TOKENS_PER_SHARD,
    end_of_text: str | None = None,
    begin_of_text: str | None = None,
    progress: ProgressCallback = _silent,
) -> PreparedData:
    """Tokenise documents into a training and a validation split.

    `plan_split` says which documents go to validation; where they are few one of them is cut.
    Every document ends with the end-of-text token (`document_tokens` says which). A finished
    preparation returns at once, an interrupted one goes on; other settings or inputs than before
    are refused.

    Args:
        inputs: as `iter_documents` takes them.
        tokenizer: its folder or `tokenizer.json`.
        output: the folder of the shards, made if need be.
        num_workers: tokenizing processes; none means one a core. It changes no byte.
        validation_fraction: share of the documents, where they are few of the text; at least 0 and
            below 1; 0 means no split.
        tokens_per_shard: a set of shards ends with the document that reaches this many tokens.
        end_of_text: the token that ends a document; none means the tokenizer's own.
        begin_of_text: the token that begins a document; none means that none does.

    Raises:
        UserError: the inputs hold too little text, something is missing, damaged or full, the
            folder holds other data, or a worker process died.
    """
    _check_arguments(num_workers, validation_fraction, tokens_per_shard)
    tokens = document_tokens(tokenizer, end_of_text, begin_of_text)
    settings = Settings(
        inputs=tuple(inputs),
        inputs_fingerprint=inputs_fingerprint(inputs),
        text_field=text_field,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        validation_fraction=validation_fraction,
        tokens_per_shard=tokens_per_shard,
        end_of_text_id=tokens.end.id,
        begin_of_text_id=None if tokens.begin is None else tokens.begin.id,
    )
    return _prepare(settings, tokenizer, tokens, output, num_workers, progress)


def _prepare(
    settings: Settings,
    tokenizer: Path,
    tokens: DocumentTokens,
    output: Path,
    num_workers: int | None,
    progress: ProgressCallback,
) -> PreparedData:
    """Write what is still missing, in a folder that is ours alone meanwhile."""
    make_folder(output)
    with exclusive(output, f"{output}: another process is writing there; wait for it"):
        finished = load_prepared(output)
        if finished is not None:
            check_same(output, finished.settings, settings)
            return finished
        done = _begin_or_go_on(output, settings)
        vocab_size = vocabulary_size(load_tokenizer(tokenizer))
        dtype = token_dtype(vocab_size)
        texts = _behind(iter_documents(settings.inputs, settings.text_field), done)
        # Closing ends the workers, whatever has happened here.
        encoded = encode_documents(texts, tokenizer, tokens, num_workers or num_cores())
        with closing(encoded) as documents:
            done = _write_shards(documents, done, output, dtype, progress)
        data = PreparedData(
            settings=settings,
            vocab_size=vocab_size,
            end_of_text_id=tokens.end.id,
            dtype=dtype.name,
            split=done.split,
            train=done.train,
            validation=done.validation,
            num_shared=count_shared(
                _prefixes(output, VALIDATION, done), _prefixes(output, TRAIN, done)
            ),
            checksums=done.checksums,
        )
        save_prepared(output, data)
        return data


def _check_arguments(
    num_workers: int | None, validation_fraction: float, tokens_per_shard: int
) -> None:
    if num_workers is not None and num_workers < 1:
        raise UserError(f"workers: {num_workers}, expected at least 1")
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation_fraction: {validation_fraction}, expected at least 0 and below 1"
        )
    if tokens_per_shard < 1:
        raise UserError(f"tokens_per_shard: {tokens_per_shard}, expected at least 1")


def _begin_or_go_on(output: Path, settings: Settings) -> Progress:
    done = load_progress(output)
    if done is not None:
        check_same(output, done.settings, settings)
        return _planned(done)
    strangers = sorted(
        path.name for split in (TRAIN, VALIDATION) for path in output.glob(f"{split}*.idx")
    )
    if strangers:
        raise UserError(
            f"{output}: holds {strangers[0]}, but neither data.json nor progress.json says how "
            "it was made; use another output folder, or delete this one"
        )
    begun = _planned(Progress(settings=settings))
    save_progress(output, begun)
    return begun


def _planned(done: Progress) -> Progress:
    """With the plan of the split; one that an earlier version has begun goes on by its rule."""
    if done.split is not None:
        return done
    settings = done.settings
    if done.documents:
        plan = SplitPlan(below=int(settings.validation_fraction * 2**64))
    else:
        texts = iter_documents(settings.inputs, settings.text_field)
        plan = plan_split(map(len, texts), settings.validation_fraction)
    return done.model_copy(update={"split": plan})


def _behind(documents: Iterator[str], done: Progress) -> Iterator[str]:
    """The documents that are still to be done."""
    num_found = sum(1 for _ in islice(documents, done.documents))
    if num_found < done.documents:
        raise UserError(
            f"{', '.join(done.settings.inputs)}: {num_found:,} documents, but {done.documents:,} "
            "were tokenized before the interrupt; use another output folder, or delete this one"
        )
    return documents


def _write_shards(
    documents: Iterator[Array],
    done: Progress,
    output: Path,
    dtype: np.dtype[np.generic],
    progress: ProgressCallback,
) -> Progress:
    """Write set after set of shards; returns the counts of all."""
    assert done.split is not None
    num_begin = 0 if done.settings.begin_of_text_id is None else 1
    assigned = assign_splits(documents, done.split, done.documents, num_begin)
    while True:
        advanced = _write_shard_set(assigned, done, output, dtype, progress)
        if advanced == done:
            break
        save_progress(output, advanced)
        done = advanced
    title = ", ".join(done.settings.inputs)
    if done.documents == 0:
        raise UserError(f"{title}: no documents, the inputs hold no text")
    if done.train.documents == 0:
        raise UserError(
            f"{title}: too few documents: all are for validation; give more text, or "
            "another output folder and a smaller validation fraction"
        )
    return done


def _write_shard_set(
    assigned: Iterator[dict[str, Array]],
    done: Progress,
    output: Path,
    dtype: np.dtype[np.generic],
    progress: ProgressCallback,
) -> Progress:
    """Write at most one shard of each split; returns the counts with these added."""
    writers: dict[str, ShardWriter] = {}
    num_documents = done.documents
    num_tokens = done.train.tokens + done.validation.tokens
    full_at = num_tokens + done.settings.tokens_per_shard
    with ExitStack() as stack:
        for pieces in assigned:
            for split, tokens in pieces.items():
                if split not in writers:
                    prefix = shard_prefix(output / split, _counts(done, split).shards)
                    writers[split] = stack.enter_context(ShardWriter(prefix, dtype))
                writers[split].add_document(tokens)
                num_tokens += len(tokens)
            num_documents += 1
            progress(num_documents, num_tokens)
            if num_tokens >= full_at:
                break
    return Progress(
        settings=done.settings,
        split=done.split,
        documents=num_documents,
        train=_add(done.train, writers.get(TRAIN)),
        validation=_add(done.validation, writers.get(VALIDATION)),
        checksums=done.checksums
        | {name: sum_ for writer in writers.values() for name, sum_ in writer.checksums.items()},
    )


def _prefixes(output: Path, split: str, done: Progress) -> list[Path]:
    return [shard_prefix(output / split, number) for number in range(_counts(done, split).shards)]


def _counts(done: Progress, split: str) -> SplitCounts:
    return done.train if split == TRAIN else done.validation


def _add(counts: SplitCounts, writer: ShardWriter | None) -> SplitCounts:
    if writer is None:
        return counts
    return SplitCounts(
        shards=counts.shards + 1,
        documents=counts.documents + writer.num_documents,
        tokens=counts.tokens + writer.num_tokens,
    )
