"""Checks across sections: what each section can't know of the others. Imports no torch.

A check is a function whose parameters name the sections it needs, plus `world_size` (the number
of processes, None where it isn't known) if it wants that. It yields problems, and is skipped
when a section it needs isn't valid by itself.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.quantities import format_count
from triax.common.section import Section
from triax.data.config import DataConfig
from triax.launcher.checks.data import (
    inputs_are_there,
    made_with_this_tokenizer,
    named_tokens_are_there,
    one_tokenizer,
    preparation_goes_on,
    shards_are_sane,
    sources_differ,
    tokenizer_fits,
    tokens_per_step,
    validation_is_as_wanted,
    vocabulary_holds_data,
)
from triax.launcher.checks.deepspeed import (
    apex_is_nvidias,
    deepspeed_flips_together,
    deepspeed_is_installed,
    deepspeed_recomputes,
    deepspeed_runs_layout,
    deepspeed_runs_precision,
    deepspeed_runs_zero_stage,
    deepspeed_splits_layers,
    offload_fits_engine,
)
from triax.launcher.checks.evaluation import evaluations_are_possible
from triax.launcher.checks.experts import (
    deepspeed_has_no_experts,
    experts_are_multiplied,
    experts_are_recomputed,
    experts_divide,
    heads_are_normalised_whole,
)
from triax.launcher.checks.initial_weights import adapters_have_a_base, initial_weights_fit
from triax.launcher.checks.objective import (
    conversations_stay_whole,
    objective_has_its_data,
    objective_settings_are_used,
    preferences_have_a_reference,
)
from triax.launcher.checks.parallel import (
    adapters_are_computed,
    adapters_have_layers,
    batch_divides,
    context_divides_sequences,
    float8_fits_shapes,
    gradients_are_summed_exactly,
    optimizer_takes_dtypes,
    recipe_is_used,
    recomputation_fits_schedule,
    schedule_fits_batch,
    sequence_has_positions,
    stages_fit_layers,
    tensor_divides_model,
    world_fits,
)
from triax.launcher.checks.reading import (
    budget_repeats_data,
    caps_leave_enough,
    phases_are_reached,
    weights_fill_blocks,
)
from triax.launcher.config.loading import load_config
from triax.launcher.config.problems import Problem
from triax.launcher.config.run_config import RunConfig, RunSection
from triax.models.config import ModelConfig
from triax.models.counts import num_parameters
from triax.training.config import (
    BatchConfig,
    BudgetConfig,
    MetricsConfig,
    ProfileConfig,
    ScheduleConfig,
)
from triax.training.step.budget import resolve_budget
from triax.training.step.schedule import warmup_tokens

Check = Callable[..., Iterator[Problem]]

MAX_PARAMETERS = 10**15
"""A thousand times the largest models' number."""


def load_checked(
    path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None
) -> RunConfig:
    """Load a config and check its sections against each other, the files and `world_size`.

    Raises:
        ConfigError: with every problem there is.
        UserError: the file can't be read or is no TOML.
    """
    return load_config(path, overrides, partial(find_problems, world_size=world_size))


def find_problems(
    sections: Mapping[str, Section], world_size: int | None = None
) -> Iterator[Problem]:
    """What would keep a run with these sections from starting."""
    return _run(CHECKS, {**sections, "world_size": world_size})


def find_step_problems(
    sections: Mapping[str, Section], world_size: int | None = None
) -> Iterator[Problem]:
    """What would keep a training step from being taken, whatever the data, budget and folders."""
    return _run(STEP_CHECKS, {**sections, "world_size": world_size})


def find_warnings(config: RunConfig, world_size: int | None = None) -> list[Problem]:
    """What a run can be started with, though it's likely not meant."""
    sections = {name: getattr(config, name) for name in RunConfig.model_fields}
    return list(_run(WARNINGS, {**sections, "world_size": world_size}))


def _run(checks: Sequence[Check], available: Mapping[str, Any]) -> Iterator[Problem]:
    for check in checks:
        needed = inspect.signature(check).parameters
        if all(name in available for name in needed):
            yield from check(**{name: available[name] for name in needed})


def model_is_possible(model: ModelConfig) -> Iterator[Problem]:
    """The sizes make a model that some machines could hold, with all arithmetic within 64 bits."""
    num_weights = num_parameters(model)
    if num_weights > MAX_PARAMETERS:
        yield Problem(
            "model",
            f"these sizes make {num_weights:.3g} parameters, and no model has more than "
            f"{MAX_PARAMETERS:.0e}; look for one that is too large",
        )


def budget_fits(
    budget: BudgetConfig,
    schedule: ScheduleConfig,
    model: ModelConfig,
    batch: BatchConfig,
    data: DataConfig,
) -> Iterator[Problem]:
    """The budget has at least one step, and the warmup ends within it."""
    per_step = tokens_per_step(batch, data)
    try:
        total = resolve_budget(budget, model, per_step).num_tokens
    except UserError as error:
        path, _, message = str(error).partition(": ")
        yield Problem(path, message)
        return
    warmup = warmup_tokens(schedule, total, per_step)
    if warmup > total:
        yield Problem(
            "schedule.warmup",
            f"{schedule.warmup} is {format_count(warmup)} tokens, more than the whole run's "
            f"{format_count(total)}; shorten it",
        )


def boards_are_installed(metrics: MetricsConfig) -> Iterator[Problem]:
    """What is asked for can be imported."""
    for key, package, extra in (
        ("wandb_project", "wandb", "wandb"),
        ("mlflow_experiment", "mlflow", "mlflow"),
        ("comet_project", "comet_ml", "comet"),
    ):
        if getattr(metrics, key) is not None and importlib.util.find_spec(package) is None:
            yield Problem(
                f"metrics.{key}",
                f'the {package} package is not installed; `pip install "triax[{extra}]"` adds it',
            )


def profiled_ranks_exist(profile: ProfileConfig, world_size: int | None) -> Iterator[Problem]:
    """The processes that are to profile are there."""
    if world_size is None:
        return
    absent = [rank for rank in profile.ranks if rank >= world_size]
    if absent:
        yield Problem(
            "profile.ranks", f"{absent[0]}: {world_size} processes have ranks 0 to {world_size - 1}"
        )


def run_dir_is_writable(run: RunSection) -> Iterator[Problem]:
    """The run directory can be made, and written to."""
    run_dir = Path(run.dir) / run.name
    try:
        nearest = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    except (OSError, ValueError) as error:
        yield Problem("run.dir", f"{shown_path(run_dir)}: {error}")
        return
    if not nearest.is_dir():
        yield Problem("run.dir", f"{nearest} is a file; a folder is expected")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Problem("run.dir", f"{nearest} can't be written to by you; choose another folder")


def shown_path(path: Path) -> str:
    """The path, cut where it is too long to be one."""
    text = str(path)
    return text if len(text) <= 80 else f"{text[:77]}..."


STEP_CHECKS: tuple[Check, ...] = (
    model_is_possible,
    tensor_divides_model,
    context_divides_sequences,
    sequence_has_positions,
    stages_fit_layers,
    schedule_fits_batch,
    recomputation_fits_schedule,
    world_fits,
    batch_divides,
    float8_fits_shapes,
    optimizer_takes_dtypes,
    deepspeed_is_installed,
    deepspeed_runs_zero_stage,
    deepspeed_runs_layout,
    deepspeed_runs_precision,
    deepspeed_recomputes,
    deepspeed_splits_layers,
    offload_fits_engine,
    apex_is_nvidias,
    experts_divide,
    experts_are_multiplied,
    experts_are_recomputed,
    heads_are_normalised_whole,
    deepspeed_has_no_experts,
    adapters_have_layers,
    adapters_are_computed,
)
CHECKS: tuple[Check, ...] = (
    *STEP_CHECKS,
    budget_fits,
    one_tokenizer,
    preparation_goes_on,
    tokenizer_fits,
    named_tokens_are_there,
    shards_are_sane,
    vocabulary_holds_data,
    objective_has_its_data,
    conversations_stay_whole,
    objective_settings_are_used,
    preferences_have_a_reference,
    sources_differ,
    weights_fill_blocks,
    caps_leave_enough,
    made_with_this_tokenizer,
    evaluations_are_possible,
    initial_weights_fit,
    adapters_have_a_base,
    deepspeed_flips_together,
    boards_are_installed,
    profiled_ranks_exist,
    run_dir_is_writable,
)
WARNINGS: tuple[Check, ...] = (
    inputs_are_there,
    validation_is_as_wanted,
    budget_repeats_data,
    phases_are_reached,
    gradients_are_summed_exactly,
    recipe_is_used,
)
