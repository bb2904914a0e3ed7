"""Conversations to shards: tokens by the chat template, and how much each counts as a target.

In the folder lie shards as of text, each with a `.weights` beside it, `data.json`, and a copy of
the tokenizer with the template that was used. Nothing of it is there before all of it: what an
interrupt leaves is made anew.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.common.files import exclusive, make_folder, write_atomically, write_errors
from triax.data.prepare.answers import LossOn, Taught, taught
from triax.data.prepare.chat_rows import conversation, preference
from triax.data.prepare.chat_template import TEMPLATE_FILE, ChatTemplate
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.inputs import inputs_fingerprint
from triax.data.prepare.split import TRAIN, VALIDATION, is_for_validation, plan_whole
from triax.data.prepare.text import iter_rows
from triax.data.prepare.tokenizer import (
    library_errors,
    load_tokenizer,
    tokenizer_file,
    tokenizer_fingerprint,
    vocabulary_size,
)
from triax.data.read.shard_index import Array
from triax.data.read.shards import ShardWriter, shard_prefix, token_dtype
from triax.data.read.token_weights import WeightsWriter
from triax.data.record import (
    ChatSettings,
    PreparedData,
    Settings,
    SplitCounts,
    SplitPlan,
    check_same,
    load_prepared,
    save_prepared,
)

T = TypeVar("T")
Kind = Literal["conversations", "pairs"]
_AT_ONCE = 512
"""Rows whose texts are encoded together, on all cores."""
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True)
class ChatRules:
    """How conversations become tokens."""

    kind: Kind
    loss_on: LossOn
    template: ChatTemplate

    @property
    def settings(self) -> ChatSettings:
        """As `data.json` keeps it."""
        digest = hashlib.sha256(self.template.source.encode()).hexdigest()[:16]
        return ChatSettings(kind=self.kind, loss_on=self.loss_on, template_fingerprint=digest)

    @property
    def group_size(self) -> int:
        """Conversations that a row gives."""
        return 1 if self.kind == "conversations" else 2


def prepare_conversations(
    inputs: Sequence[str],
    tokenizer: Path,
    output: Path,
    rules: ChatRules,
    *,
    validation_fraction: float = 0.01,
    tokens_per_shard: int = 1_000_000_000,
    progress: Callable[[int, int], None] = lambda _documents, _tokens: None,
) -> PreparedData:
    """Write a training and a validation split; a finished preparation returns at once.

    Args:
        inputs: JSON lines, parquet or `datasets` names; see `chat_rows` for what rows may hold.
        tokenizer: its folder or `tokenizer.json`.
        output: the folder of the shards, made if need be.
        rules: how.
        validation_fraction: share of the rows; at least 0 and below 1.
        tokens_per_shard: a set of shards ends with the row that reaches this many tokens.
        progress: called with the conversations and tokens done so far.

    Raises:
        UserError: a row holds no conversation, the template can't write one, nothing is left to
            learn from, or the folder holds other data; names file and line.
    """
    settings = _settings(inputs, tokenizer, rules, validation_fraction, tokens_per_shard)
    make_folder(output)
    with exclusive(output, f"{output}: another process is writing there; wait for it"):
        finished = load_prepared(output)
        if finished is not None:
            check_same(output, finished.settings, settings)
            return finished
        loaded = load_tokenizer(tokenizer)
        end_of_text, size = document_tokens(tokenizer).end, vocabulary_size(loaded)
        split = plan_whole(iter_rows(inputs), validation_fraction)
        written = _write(_rows(inputs, rules, loaded), output, split, settings, loaded, progress)
        _keep_tokenizer(tokenizer, rules.template, output / "tokenizer")
        data = PreparedData(
            settings=settings,
            vocab_size=size,
            end_of_text_id=end_of_text.id,
            dtype=token_dtype(size).name,
            split=split,
            train=written.counts[TRAIN],
            validation=written.counts[VALIDATION],
            checksums=written.checksums,
            num_left_out=written.num_left_out,
        )
        save_prepared(output, data)
        return data


def _settings(
    inputs: Sequence[str],
    tokenizer: Path,
    rules: ChatRules,
    validation_fraction: float,
    tokens_per_shard: int,
) -> Settings:
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation_fraction: {validation_fraction}, expected at least 0 and below 1"
        )
    return Settings(
        inputs=tuple(inputs),
        inputs_fingerprint=inputs_fingerprint(inputs),
        text_field="messages",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        validation_fraction=validation_fraction,
        tokens_per_shard=tokens_per_shard,
        chat=rules.settings,
    )


@dataclass(frozen=True)
class _Row:
    """What a row gives: one conversation, or two."""

    tokens: list[Array]
    weights: list[Array]

    @property
    def teaches(self) -> bool:
        """Whether each of them has something to learn from."""
        return all(weights.any() for weights in self.weights)


def _rows(inputs: Sequence[str], rules: ChatRules, tokenizer: Tokenizer) -> Iterator[_Row]:
    dtype = token_dtype(vocabulary_size(tokenizer))
    for rows in _groups(iter_rows(inputs), _AT_ONCE):
        written = list(chain.from_iterable(_texts(row, where, rules) for where, row in rows))
        with library_errors("the tokenizer"):
            encodings = tokenizer.encode_batch(
                [each.text for each in written], add_special_tokens=False
            )
        pairs = [
            (np.array(encoding.ids, dtype), each.weights(encoding))
            for each, encoding in zip(written, encodings, strict=True)
        ]
        for group in _groups(pairs, rules.group_size):
            yield _Row([tokens for tokens, _ in group], [weights for _, weights in group])


def _groups(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Neighbours together; the last group may be smaller."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def _texts(row: dict[str, object], where: str, rules: ChatRules) -> list[Taught]:
    found = preference(row, where) if rules.kind == "pairs" else (conversation(row, where),)
    try:
        return [taught(rules.template, each, rules.loss_on) for each in found]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@dataclass
class _Written:
    counts: dict[str, SplitCounts] = field(
        default_factory=lambda: {TRAIN: SplitCounts(), VALIDATION: SplitCounts()}
    )
    checksums: dict[str, str] = field(default_factory=dict)
    num_left_out: int = 0
    num_rows: int = 0
    is_at_end: bool = False


def _write(
    rows: Iterator[_Row],
    output: Path,
    split: SplitPlan,
    settings: Settings,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None],
) -> _Written:
    """Write set after set of shards."""
    assert settings.chat is not None
    group_size = 1 if settings.chat.kind == "conversations" else 2
    dtype = token_dtype(vocabulary_size(tokenizer))
    written = _Written()
    while not written.is_at_end:
        _write_set(rows, written, output, split, settings.tokens_per_shard, dtype, group_size)
        counts = written.counts.values()
        progress(sum(each.documents for each in counts), sum(each.tokens for each in counts))
    if not written.counts[TRAIN].documents:
        raise UserError(
            f"{', '.join(settings.inputs)}: nothing to learn from: {written.num_rows:,} rows, of "
            f"which {written.num_left_out:,} have no assistant's words"
        )
    return written


def _write_set(
    rows: Iterator[_Row],
    written: _Written,
    output: Path,
    split: SplitPlan,
    tokens_per_shard: int,
    dtype: np.dtype[np.generic],
    group_size: int,
) -> None:
    writers: dict[str, tuple[ShardWriter, WeightsWriter]] = {}
    with ExitStack() as stack:
        written.is_at_end = True
        for row in rows:
            name = VALIDATION if is_for_validation(written.num_rows, split) else TRAIN
            written.num_rows += 1
            if not row.teaches:
                written.num_left_out += 1
                continue
            if name not in writers:
                prefix = shard_prefix(output / name, written.counts[name].shards)
                shard = stack.enter_context(ShardWriter(prefix, dtype))
                writers[name] = shard, WeightsWriter(prefix, group_size)
            shard, weights = writers[name]
            for tokens, each in zip(row.tokens, row.weights, strict=True):
                shard.add_document(tokens)
                weights.add(each)
            if sum(shard.num_tokens for shard, _ in writers.values()) >= tokens_per_shard:
                written.is_at_end = False
                break
        # They stand before the index, which vouches for them.
        for _, weights in writers.values():
            with write_errors(weights.prefix):
                written.checksums.update([weights.write()])
    for name, (shard, _) in writers.items():
        old = written.counts[name]
        written.checksums |= shard.checksums
        written.counts[name] = SplitCounts(
            shards=old.shards + 1,
            documents=old.documents + shard.num_documents,
            tokens=old.tokens + shard.num_tokens,
        )


def _keep_tokenizer(tokenizer: Path, template: ChatTemplate, folder: Path) -> None:
    """A copy of the tokenizer that has the template: chat and export find it there."""
    make_folder(folder)
    file = tokenizer_file(tokenizer)
    with write_errors(folder):
        for source in (file, *(file.with_name(name) for name in _TOKENIZER_FILES)):
            if source.is_file():
                shutil.copyfile(source, folder / source.name)
    write_atomically(folder / TEMPLATE_FILE, template.source)
