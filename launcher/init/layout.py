"""The layout that a recipe gets on so many GPUs, and what is forecast of it."""

from __future__ import annotations

from typing import Any

from triax.common.errors import UserError
from triax.launcher.init.recipes import Recipe
from triax.launcher.plan.plan import refusal_of
from triax.launcher.plan.planned import Planned, setup_of, with_layout
from triax.planning.devices import Device
from triax.planning.forecast import Forecast, Length, length_of, make_forecast
from triax.planning.search import Space, search
from triax.training.step.budget import resolve_budget

_MOST_MEMORY = 0.9
"""Of a GPU's: the forecasts of memory haven't been held to a GPU yet."""


def best_layout(planned: Planned, recipe: Recipe, gpus: int, device: Device) -> Forecast:
    """The fastest of the recipe's layouts that fit.

    Raises:
        UserError: none does.
    """
    setup = setup_of(planned.config, gpus, has_bf16=device.has_bf16)
    smaller = device.with_overrides(memory_gib=device.card.memory_gib * _MOST_MEMORY)
    space = Space(
        tensor=[degree for degree in recipe.tensor if degree <= gpus],
        pipeline=recipe.pipeline,
        schedules=[("1f1b", 2)],
        zero_stages=recipe.zero_stages,
        micro_batch_sizes=recipe.micro_batch_sizes,
        checkpointing=recipe.checkpointing,
        precisions=(setup.precision.compute,),
        shards_within_node=(False,),
        expert=recipe.expert,
        context=recipe.context,
    )
    found = search(
        setup, smaller, space, lambda each: refusal_of(planned.config, each), num_ranked=1
    )
    if not found.ranked:
        refused = found.ruled_out.most_common(1)
        why = (
            f"{found.num_too_large} of its layouts don't fit"
            if found.num_too_large
            else refused[0][0]
            if refused
            else "it has no layout for so many"
        )
        raise UserError(
            f"--gpus {gpus}: this recipe won't do on {gpus:,} x {device.name}: {why}. Take "
            f"another number (it is written for {_listed(recipe.gpus)}), a larger --gpu, or see "
            "`triax plan`, which tries more"
        )
    return make_forecast(found.ranked[0].setup, device)


def layout_tables(planned: Planned, forecast: Forecast) -> dict[str, Any]:
    """`[parallel]` and `[batch]` of the layout."""
    tables = with_layout(planned, forecast.outcome.setup)
    return {name: tables[name] for name in ("parallel", "batch")}


def length(planned: Planned, forecast: Forecast) -> Length:
    """Of the run's own budget."""
    config = planned.config
    per_step = forecast.outcome.setup.tokens_per_step
    return length_of(forecast, resolve_budget(config.budget, config.model, per_step).num_tokens)


def _listed(gpus: tuple[int, ...]) -> str:
    numbers = [f"{number:,}" for number in sorted(gpus) if number]
    return ", ".join(numbers) or "the CPU"
