"""Checks of what a run evaluates. Imports no torch.

Each is a check as `triax.launcher.checks.sections` describes them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from triax.common.errors import UserError
from triax.data.config import DataConfig
from triax.data.read.opening import open_set
from triax.launcher.config.problems import Problem
from triax.models.config import ModelConfig
from triax.training.config import BUILTIN_TASKS, MAIN_SET, EvalConfig


def evaluations_are_possible(
    model: ModelConfig,
    data: DataConfig,
    eval: EvalConfig,
) -> Iterator[Problem]:
    """Every further validation set is there, named once, and tasks have what they are made of."""
    names = [MAIN_SET, *(one.name for one in eval.sets)]
    for number, one in enumerate(eval.sets):
        path = f"eval.sets.{number}"
        if one.name in names[: number + 1]:
            yield Problem(f"{path}.name", f"{one.name} is taken: give each set its own name")
        try:
            open_set(data, one.path, model.vocab_size)
        except (UserError, OSError) as error:
            yield Problem(f"{path}.path", str(error))
    if eval.prompts and data.tokenizer is None:
        yield Problem("data.tokenizer", "eval.prompts needs it: set it, or leave the prompts out")
    if not eval.tasks:
        return
    for field, value in (("validation", data.validation), ("tokenizer", data.tokenizer)):
        if value is None:
            yield Problem(f"data.{field}", "eval.tasks needs it: set it, or leave the tasks out")
    twice = [name for name in dict.fromkeys(eval.tasks) if eval.tasks.count(name) > 1]
    if twice:
        yield Problem("eval.tasks", f"{', '.join(twice)}: given twice")
    foreign = [name for name in eval.tasks if name not in BUILTIN_TASKS]
    if foreign and importlib.util.find_spec("lm_eval") is None:
        yield Problem(
            "eval.tasks",
            f"{', '.join(foreign)}: not of {', '.join(BUILTIN_TASKS)}, and the lm-eval package "
            'isn\'t installed: pip install "triax[eval]"',
        )
