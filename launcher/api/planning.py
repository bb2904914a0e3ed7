"""`triax plan` from Python. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.launcher.api.configs import overrides_of
from triax.launcher.plan.plan import refusal_of
from triax.launcher.plan.planned import planned_from_file, planned_from_preset, setup_of
from triax.planning.devices import find_device
from triax.planning.forecast import length_of, make_forecast
from triax.planning.report import as_data
from triax.planning.search import default_space, search
from triax.training.step.budget import resolve_budget

_TOP = 8
"""Layouts that are told, as by the command."""


def plan(
    config: str | Path | None = None,
    *,
    gpus: int,
    gpu: str = "h100",
    preset: str | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Forecast memory and speed of a run, and find its best layout on GPUs that need not be there.

    Args:
        config: a TOML file; or
        preset: a model's name.
        gpus: how many, over all nodes.
        gpu: which: h100, h200, a100, ...
        overrides: sections with the values to change: `batch={"global_batch_size": 1024}`.

    Returns:
        What `triax plan --json` prints.

    Raises:
        ConfigError: the config isn't valid.
        UserError: neither or both of config and preset are given, the GPU isn't known, or no
            layout fits.
    """
    if (config is None) == (preset is None):
        raise UserError("give a config or a preset")
    changes = list(overrides_of(overrides))
    planned = (
        planned_from_preset(preset, changes, seq_len=None, global_batch_size=None, tokens=None)
        if preset is not None
        else planned_from_file(str(config), changes)
    )
    device = find_device(gpu)
    setup = setup_of(planned.config, gpus, has_bf16=device.has_bf16)
    found = search(
        setup, device, default_space(setup, device),
        lambda candidate: refusal_of(planned.config, candidate), _TOP,
    )  # fmt: skip
    if not found.ranked:
        raise UserError(f"none of {found.num_tried:,} layouts of {gpus:,} x {device.name} will do")
    forecast = make_forecast(found.ranked[0].setup, device)
    tokens_per_step = forecast.outcome.setup.tokens_per_step
    budget = resolve_budget(planned.config.budget, planned.config.model, tokens_per_step)
    return as_data(found, forecast, length_of(forecast, budget.num_tokens))
