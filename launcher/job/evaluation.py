"""What a run evaluates now and then: validation sets, and tasks. Alike on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from tokenizers import Tokenizer

from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.token_bytes import text_bytes, token_bytes
from triax.data.prepare.tokenizer import load_tokenizer
from triax.data.read.loader import validation_batches
from triax.data.read.source import Source
from triax.inference.lm_eval_questions import read_questions
from triax.launcher.job.engine import make_objective
from triax.launcher.job.job import Job
from triax.launcher.job.text_samples import make_samples
from triax.models.batch import Batch
from triax.parallel.agreement import on_first, on_first_however_long
from triax.training.config import MAIN_SET
from triax.training.evaluation.builtin import cloze, continuation
from triax.training.evaluation.choices import Choices, Question, Task
from triax.training.evaluation.evaluator import Evaluator, ValidationSet


def make_evaluator(job: Job, validation: Source | None, others: Mapping[str, Source]) -> Evaluator:
    """This process's part of every evaluation. Collective.

    Args:
        validation: of `data.validation`.
        others: of `eval.sets`, by name.

    Raises:
        UserError: a task isn't there or finds nothing to ask, or a prompt can't be made tokens.
    """
    sources = ({} if validation is None else {MAIN_SET: validation}) | dict(others)
    # One after the other: the bytes are counted over all batches, and what is wrong with one is to
    # be told by the process that reads it.
    own = job.together(lambda: {name: _own_batches(job, sources[name]) for name in sources})
    tokenizer = cache(partial(_load_tokenizer, job))
    num_bytes = job.together(lambda: _num_bytes(job, sources, tokenizer))
    sets = {name: ValidationSet(own[name], num_bytes.get(name)) for name in sources}
    measure = make_objective(job.config).evaluate
    samples = make_samples(job, validation, tokenizer)
    if not job.config.eval.tasks:
        return Evaluator(sets, samples=samples, measure=measure)
    tasks = _tasks(job, validation, tokenizer)
    layout = job.layout
    choices = Choices(
        tasks,
        seq_len=job.config.data.seq_len,
        micro_batch_size=job.config.batch.micro_batch_size,
        dp_rank=layout.data_rank(job.processes.environment.rank),
        dp_size=layout.data_parallel,
    )
    return Evaluator(sets, choices, samples, measure)


def _own_batches(job: Job, source: Source) -> list[Batch]:
    """A set's batches on this rank."""
    return list(
        _batches(job, source)(
            dp_rank=job.layout.data_rank(job.processes.environment.rank),
            dp_size=job.layout.data_parallel,
            pin_memory=job.processes.device.type == "cuda",
        )
    )


def _load_tokenizer(job: Job) -> Tokenizer:
    assert job.config.data.tokenizer is not None, "only asked for where there is one"
    return load_tokenizer(Path(job.config.data.tokenizer))


def _num_bytes(
    job: Job, sources: Mapping[str, Source], tokenizer: Callable[[], Tokenizer]
) -> dict[str, int | None]:
    """Of the text of all of each set's targets, on rank 0, which tells; nothing on the others,
    where the tokenizer isn't known, and of pairs, whose loss isn't one of text."""
    data, is_text = job.config.data, job.config.objective.kind != "dpo"
    if data.tokenizer is None or not job.processes.is_main or not is_text:
        return {}
    sizes = token_bytes(tokenizer(), job.config.model.vocab_size)
    return {
        name: text_bytes(sizes, _batches(job, source)(dp_rank=0, dp_size=1))
        for name, source in sources.items()
    }


def _batches(job: Job, source: Source) -> Callable[..., Iterator[Batch]]:
    config = job.config
    return partial(
        validation_batches,
        source,
        config.eval.batches * config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        mask_documents=config.data.mask_documents,
    )


def _tasks(
    job: Job, validation: Source | None, tokenizer: Callable[[], Tokenizer]
) -> Sequence[Task]:
    """Read and cut into tokens on rank 0 alone, however long lm-eval takes."""
    made: list[Task] = []
    group = job.processes.control_group
    on_first_however_long(lambda: made.extend(_read(job, validation, tokenizer)), group)
    return on_first(lambda: made, group)


def _read(job: Job, validation: Source | None, tokenizer: Callable[[], Tokenizer]) -> list[Task]:
    data, asked = job.config.data, job.config.eval
    assert data.tokenizer is not None and validation is not None, "the checks ask for both"
    documents = document_tokens(data.tokenizer, data.end_of_text, data.begin_of_text)
    tasks = []
    for name in asked.tasks:
        if name == "continuation":
            tasks.append(continuation(validation, asked.questions))
        elif name == "cloze":
            tasks.append(cloze(validation, tokenizer(), asked.questions))
        else:
            found = read_questions(
                name, data.tokenizer, documents, asked.questions, asked.task_path
            )
            tasks.append(Task(name, tuple(Question(*question) for question in found)))
    return tasks
