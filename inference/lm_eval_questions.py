"""lm-eval's multiple-choice tasks as questions in tokens, for evaluations within a run."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import DocumentTokens
from triax.data.prepare.tokenizer import load_tokenizer
from triax.inference.lm_eval_tokens import HarnessTokens


class Asked(NamedTuple):
    """A question with its choices, in the order in which lm-eval has them."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int
    lengths: tuple[int, ...]
    """Characters of the choices, by which lm-eval's `acc_norm` divides."""


def require_lm_eval() -> None:
    """Raises:
    UserError: the extra isn't installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            'tasks need the lm-eval package, which isn\'t installed: pip install "triax[eval]"'
        )


def read_questions(
    name: str, tokenizer_folder: str, documents: DocumentTokens, count: int, task_path: str | None
) -> list[Asked]:
    """The first questions of a task, as lm-eval asks them of its `hf` model.

    Args:
        name: the task's; without examples before the question unless the task says so.
        tokenizer_folder, documents: the run's.
        count: how many.
        task_path: a folder with task files of one's own.

    Raises:
        UserError: there is no such task, it is of another kind, or its data can't be had.
    """
    require_lm_eval()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_path)
    if name not in manager.all_tasks:
        raise UserError(
            f"eval.tasks: {name}: no such task in lm-eval"
            f"{f' or {task_path}' if task_path else ''}; `lm-eval ls tasks` lists its own"
        )
    try:
        task = _only_task(manager.load([name])["tasks"], name)
        task.build_all_requests(limit=count, rank=0, world_size=1)
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"eval.tasks: {name}: its data can't be had ({error}): without a network, name local "
            "files in a task of your own (eval.task_path)"
        ) from error
    tokens = HarnessTokens(load_tokenizer(Path(tokenizer_folder)), tokenizer_folder, documents)
    by_document: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        by_document[instance.doc_id].append(instance)
    return [_question(task, instances, tokens) for instances in by_document.values()]


def _only_task(found: Mapping[str, Any], name: str) -> Any:
    task = found.get(name)
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice":
        raise UserError(
            f"eval.tasks: {name} isn't a single task of choosing among answers: within a run only "
            "those are asked; `triax eval RUN --tasks` runs all others"
        )
    return task


def _question(task: Any, instances: Sequence[Any], tokens: HarnessTokens) -> Asked:
    document = instances[0].doc
    texts = task.doc_to_choice(document)
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(answer, str):
        answer = texts.index(answer) if answer in texts else None
    if not isinstance(answer, int) or not 0 <= answer < len(texts):
        raise UserError(
            f"eval.tasks: {task.config.task} has questions without exactly one right answer: run "
            "it by `triax eval RUN --tasks`"
        )
    pairs = [_encode(tokens, *instance.args) for instance in instances[: len(texts)]]
    contexts = {context for context, _ in pairs}
    if len(contexts) > 1:
        raise UserError(
            f"eval.tasks: {task.config.task} asks each answer after another text: run it by "
            "`triax eval RUN --tasks`"
        )
    lengths = tuple(max(1, len(text)) for text in texts)
    return Asked(contexts.pop(), tuple(choice for _, choice in pairs), answer, lengths)


def _encode(
    tokens: HarnessTokens, context: str, continuation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As lm-eval's `TemplateLM` does: spaces at the context's end belong to what follows."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        choice = tokens.tok_encode(continuation, add_special_tokens=False)
        if choice and choice[0] == tokens.prefix_token_id:
            return (choice[0],), tuple(choice[1:])
        return (tokens.prefix_token_id,), tuple(choice)
    before = tokens.tok_encode(stripped)
    return tuple(before), tuple(tokens.tok_encode(stripped + continuation)[len(before) :])
