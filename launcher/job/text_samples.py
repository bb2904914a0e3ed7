"""The texts that a run's model writes at each evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tokenizers import Tokenizer

from triax.data.prepare.document_tokens import document_tokens, tokens_of_run
from triax.data.prepare.tokenizer import decode
from triax.data.read.source import Source
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.job import Job
from triax.parallel.agreement import on_first
from triax.training.evaluation.builtin import beginnings
from triax.training.evaluation.samples import Samples

_NUM_BEGINNINGS = 2
"""Of the validation text, where no prompts are given."""
_ROW_UNIT = 32
"""Rows are as many tokens as a multiple of this has, times the processes that divide them."""


class _Asked(NamedTuple):
    prompts: list[list[int]]
    end: int


def make_samples(
    job: Job, validation: Source | None, tokenizer: Callable[[], Tokenizer]
) -> Samples | None:
    """None where nothing is to be written. Collective.

    Args:
        validation: of `data.validation`.
        tokenizer: gives the run's, which the first process reads.

    Raises:
        UserError: a prompt can't be made tokens.
    """
    config, layout = job.config, job.layout
    if not _are_wanted(config):
        return None
    asked = on_first(lambda: _ask(config, validation, tokenizer), job.processes.control_group)
    if asked is None:
        return None
    num_tokens = min(config.eval.sample_tokens, config.data.seq_len // 2)
    show = partial(decode, tokenizer()) if job.processes.is_main else None
    return Samples(
        asked.prompts,
        num_tokens=num_tokens,
        row_length=_row_length(config, max(map(len, asked.prompts)) + num_tokens),
        end=asked.end,
        decode=show,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=layout.data_rank(job.processes.environment.rank),
        dp_size=layout.data_parallel,
    )


def _are_wanted(config: RunConfig) -> bool:
    if config.data.tokenizer is None or config.data.seq_len < 2:
        return False
    if config.eval.prompts is None:
        return config.data.validation is not None
    return bool(config.eval.prompts)


def _ask(
    config: RunConfig, validation: Source | None, tokenizer: Callable[[], Tokenizer]
) -> _Asked | None:
    """None where nobody has asked, and the tokenizer or the data lacks what is needed."""
    data, prompts = config.data, config.eval.prompts
    assert data.tokenizer is not None
    if prompts is None:
        known = tokens_of_run(data)
        begun = [] if validation is None else beginnings(validation, _NUM_BEGINNINGS)
        return None if known is None or not begun else _Asked(begun, known.end.id)
    documents = document_tokens(data.tokenizer, data.end_of_text, data.begin_of_text)
    written = [tokenizer().encode(text, add_special_tokens=False).ids for text in prompts]
    return _Asked([documents.begun(tokens) for tokens in written], documents.end.id)


def _row_length(config: RunConfig, longest: int) -> int:
    """Compiled blocks keep the training's, or they would be compiled once more."""
    seq_len = config.data.seq_len
    if config.parallel.compile:
        return seq_len
    unit = _ROW_UNIT * config.parallel.tensor * config.parallel.context
    return min(seq_len, -(-longest // unit) * unit)
