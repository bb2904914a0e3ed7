"""What `triax plan` does, from its arguments to its output. Imports no torch."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from triax.common.errors import UserError
from triax.common.paths import short_path
from triax.common.quantities import format_count
from triax.launcher.checks.sections import find_problems, find_step_problems
from triax.launcher.config.loading import load_config
from triax.launcher.config.problems import listed
from triax.launcher.config.run_config import RunConfig
from triax.launcher.plan.planned import (
    Planned,
    planned_from_file,
    planned_from_preset,
    setup_of,
    write_layout,
)
from triax.launcher.terminal.messages import print_warning
from triax.models.counts import num_active_parameters, num_parameters
from triax.planning import report
from triax.planning.advice import REFIT, hyperparameters, optima, over_training
from triax.planning.devices import Device, find_device
from triax.planning.explain import explained
from triax.planning.forecast import (
    STORAGE_GBS,
    Forecast,
    Length,
    length_of,
    make_forecast,
    tokens_in,
)
from triax.planning.picture import save_picture
from triax.planning.search import Found, default_space, search, why_too_large
from triax.planning.setup import COMPUTE_BYTES, Setup
from triax.training.step.budget import resolve_budget

_DAY = 86_400


def plan(args: argparse.Namespace) -> None:
    """Search for the best layout, or take the config's own, and show what it would be.

    Raises:
        ConfigError: the config isn't valid.
        UserError: arguments are missing or don't fit, or no layout fits.
    """
    if args.gpus is None:
        raise UserError("how many GPUs? Give --gpus N, and --gpu NAME if they aren't H100s")
    planned, device = _planned(args), device_of(args)
    setup = setup_of(planned.config, args.gpus, has_bf16=device.has_bf16)
    begin = time.perf_counter()
    found = None if args.as_is else _search(args, planned, setup, device)
    seconds = time.perf_counter() - begin
    best = setup if found is None else found.ranked[0].setup
    if args.as_is:
        _refuse(planned, setup)
    forecast = make_forecast(best, device, args.storage_gbs or STORAGE_GBS)
    length = _length(args, planned, forecast)
    if args.json:
        print(json.dumps(report.as_data(found, forecast, length), indent=2))
    else:
        for line in _report(args, planned, found, seconds, forecast, length):
            print(line)
    if args.output is not None:
        write_layout(planned, best, _remark(args, device, forecast), args.output)
        _warn_of_others(args)
    if args.picture is not None:
        save_picture(forecast, () if found is None else found.ranked, args.picture)


def advise(args: argparse.Namespace) -> None:
    """Say what a budget of compute is best spent on, without a model.

    Raises:
        UserError: nothing says how much compute there is.
    """
    flops = _budget_flops(args)
    best = REFIT.optimum(flops)
    if args.json:
        rows = [vars(each) for each in optima(flops)]
        print(json.dumps({"flops": flops, "optima": rows}, indent=2))
        return
    for lines in (
        report.shown_advice(flops, optima(flops)),
        report.shown_over_training(over_training(flops)),
        report.shown_hyperparameters(hyperparameters(best.parameters, best.tokens)),
    ):
        for line in lines:
            print(line)
        print()


def _budget_flops(args: argparse.Namespace) -> float:
    if args.flops is not None:
        return float(args.flops)
    days = args.days
    if days is None and args.budget_usd is not None and args.usd_per_gpu_hour is not None:
        days = args.budget_usd / args.usd_per_gpu_hour / 24 / (args.gpus or 1)
    if days is None or (args.gpus is None and args.budget_usd is None):
        raise UserError(
            "give a run's CONFIG or --preset NAME; or, for advice alone, --flops F, --gpus N with "
            "--days D, or --budget-usd USD with --usd-per-gpu-hour USD"
        )
    return float((args.gpus or 1) * days * _DAY * device_of(args).peak_flops("bf16") * args.mfu)


def device_of(args: argparse.Namespace) -> Device:
    """The GPU that the arguments name, in the machine that they describe.

    Raises:
        UserError: it isn't in the table.
    """
    return find_device(args.gpu).with_overrides(
        memory_gib=args.memory_gib,
        reserved_gib=args.reserved_gib,
        link_gbs=args.link_gbs,
        fabric_gbs=args.fabric_gbs,
        gpus_per_node=args.gpus_per_node,
    )


def _planned(args: argparse.Namespace) -> Planned:
    if args.config is not None:
        return planned_from_file(args.config, args.overrides)
    return planned_from_preset(
        args.preset,
        args.overrides,
        seq_len=args.seq_len,
        global_batch_size=args.batch,
        tokens=args.tokens,
    )


def _search(args: argparse.Namespace, planned: Planned, setup: Setup, device: Device) -> Found:
    precisions = tuple(args.precisions.split(",")) if args.precisions else ()
    for name in precisions:
        if name not in COMPUTE_BYTES:
            raise UserError(f"--precisions {name}: not one of {', '.join(COMPUTE_BYTES)}")
        device.peak_flops(name)
    space = default_space(setup, device, precisions)
    found = search(
        setup, device, space, lambda candidate: refusal_of(planned.config, candidate), args.top
    )
    if not found.ranked:
        raise UserError(_nothing_fits(found, setup, device))
    return found


def refusal_of(config: RunConfig, setup: Setup) -> str | None:
    """The first thing that `triax check` would say against a step of this layout."""
    sections: dict[str, Any] = {name: getattr(config, name) for name in RunConfig.model_fields}
    sections |= {
        "parallel": setup.parallel,
        "batch": setup.batch,
        "precision": setup.precision,
    }
    problem = next(iter(find_step_problems(sections, setup.world_size)), None)
    return None if problem is None else str(problem)


def _refuse(planned: Planned, setup: Setup) -> None:
    refusal = refusal_of(planned.config, setup)
    if refusal is not None:
        raise UserError(f"{planned.source}: not for {setup.world_size} processes: {refusal}")


def _nothing_fits(found: Found, setup: Setup, device: Device) -> str:
    text = f"none of {found.num_tried:,} layouts of {setup.world_size:,} x {device.name} will do"
    if found.families:
        smallest = min(found.families, key=lambda each: each.memory.total)
        parallel = smallest.setup.parallel
        text += (
            f"; the smallest, tensor {parallel.tensor} x pipeline {parallel.pipeline}, "
            f"{why_too_large(smallest, device)}: take more GPUs, shorter sequences, or bf16 moments"
        )
    reasons = [f"{count:,} refused: {rule}" for rule, count in found.ruled_out.most_common(4)]
    return text + ("\n" + listed(reasons) if reasons else "")


def _length(args: argparse.Namespace, planned: Planned, forecast: Forecast) -> Length:
    """The first of what the arguments and the config say."""
    setup, price = forecast.outcome.setup, args.usd_per_gpu_hour
    if args.days is not None:
        tokens = tokens_in(forecast, args.days)
    elif args.flops is not None:
        tokens = args.flops / forecast.flops_per_token
    elif args.budget_usd is not None:
        if price is None:
            raise UserError("--budget-usd needs --usd-per-gpu-hour, which is yours to know")
        tokens = tokens_in(forecast, args.budget_usd / price / 24 / setup.world_size)
    elif args.tokens is not None:
        tokens = args.tokens
    else:
        config = planned.config
        budget = resolve_budget(config.budget, config.model, setup.tokens_per_step)
        tokens = budget.num_tokens
    return length_of(forecast, tokens, price)


def _report(
    args: argparse.Namespace,
    planned: Planned,
    found: Found | None,
    seconds: float,
    forecast: Forecast,
    length: Length,
) -> Iterator[str]:
    setup, device = forecast.outcome.setup, forecast.device
    count, active = num_parameters(setup.model), num_active_parameters(setup.model)
    in_use = "" if active == count else f" ({format_count(active)} in use)"
    about = f": {format_count(count)} parameters{in_use}, in {setup.precision.compute}"
    yield short_path(planned.source, report.WIDTH - len(about)) + about
    yield from report.shown_machine(setup, device)
    if found is not None:
        yield from report.shown_search(found, seconds)
    yield ""
    yield from report.shown_forecast(forecast)
    yield ""
    yield from report.shown_length(forecast, length)
    if not forecast.outcome.fits:
        yield report.row("memory", why_too_large(forecast.outcome, device))
    yield from report.shown_hyperparameters(hyperparameters(active, length.tokens))
    yield ""
    flops = 6.0 * active * length.tokens
    yield from report.shown_advice(flops, optima(flops))
    if args.explain:
        yield ""
        yield from report.shown_figures(explained(forecast))
    if args.output is not None:
        yield ""
        yield f"{short_path(str(args.output), report.WIDTH - 10)}: written"
        yield f"triax check {args.output} --world-size {args.gpus}"  # to be copied, however long


def _remark(args: argparse.Namespace, device: Device, forecast: Forecast) -> str:
    outcome = forecast.outcome
    return (
        f"By triax plan, for {args.gpus:,} x {device.name}; forecast: "
        f"{outcome.memory.total / 2**30:.0f} GiB a GPU,\n"
        f"{outcome.tokens_per_second:,.0f} tokens/s, {outcome.mfu:.0%} MFU.\n"
        f"triax check {args.output} --world-size {args.gpus}"
    )


def _warn_of_others(args: argparse.Namespace) -> None:
    """What keeps the written run from starting that has nothing to do with its layout."""
    config = load_config(args.output)
    sections = {name: getattr(config, name) for name in RunConfig.model_fields}
    problems = list(find_problems(sections, args.gpus))
    if problems:
        print_warning(f"{args.output}: before it starts\n{listed(problems)}")
