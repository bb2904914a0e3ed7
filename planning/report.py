"""A plan as text of at most 80 columns, and as plain data for `--json`. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from triax.common.quantities import format_count, format_seconds
from triax.planning.advice import Hyperparameters, Optimum, OverTraining
from triax.planning.devices import GIB, Device
from triax.planning.explain import Figure
from triax.planning.forecast import Forecast, Length
from triax.planning.memory import PARTS
from triax.planning.search import Found, Outcome
from triax.planning.setup import Setup
from triax.planning.time import TIME_PARTS

WIDTH = 80
_Column = tuple[str, int, Callable[[Outcome], str]]
"""Name, width (below 0 for what begins at the left), and what stands there."""
_MOST_COLUMNS = 5
"""Pipeline ranks shown beside each other."""
_SHORT = {
    "interleaved-1f1b": "interleaved",
    "interleaved-zero-bubble": "interl. ZB",
    "zbv-zero-bubble": "ZBV",
    "dualpipe-v": "dualpipe-v",
}


def shown_machine(setup: Setup, device: Device) -> list[str]:
    """Lines that say what is planned for."""
    card = device.card
    return [
        row(
            "batch",
            f"{setup.batch.global_batch_size:,} x {setup.seq_len:,} = "
            f"{format_count(setup.tokens_per_step)} tokens a step",
        ),
        row(
            "machine",
            f"{setup.world_size:,} x {device.name}: {card.memory_gib:g} GiB, links of "
            f"{card.link_gbs:g} GB/s among {card.gpus_per_node}, fabric {card.fabric_gbs:g} GB/s",
        ),
    ]


def shown_search(found: Found, seconds: float) -> Iterator[str]:
    """The ranked layouts, and why each of the others loses."""
    yield row(
        "tried",
        f"{found.num_tried:,} layouts in {seconds:.1f} s: "
        f"{sum(found.ruled_out.values()):,} refused, {found.num_too_large:,} too large",
    )
    for rule, count in found.ruled_out.most_common(4):
        yield from textwrap.wrap(
            f"{count:,} refused: {rule}", WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 13
        )
    if not found.ranked:
        return
    yield ""
    columns = _columns(found.ranked)
    yield "  " + "".join(_cell(name, width) for name, width, _ in columns)
    for number, outcome in enumerate(found.ranked, start=1):
        cells = "".join(_cell(show(outcome), width) for _, width, show in columns)
        yield f"{number:>2}{cells}"
        if outcome.why:
            yield f"       {outcome.why}"
    yield ""
    yield "best of each tensor x pipeline, and why it loses"
    for outcome in found.families:
        parallel = outcome.setup.parallel
        why = outcome.why or "the fastest"
        yield f"  {parallel.tensor:>3} x {parallel.pipeline:<3} {why}"[:WIDTH]


def _columns(ranked: Sequence[Outcome]) -> list[_Column]:
    """Without degrees that are 1 in all of them."""
    degrees: list[_Column] = [
        ("cp", 4, lambda each: f"{each.setup.parallel.context}"),
        ("ep", 4, lambda each: f"{each.setup.parallel.expert}"),
        ("repl", 5, lambda each: f"{each.setup.parallel.replicate}"),
    ]
    columns: list[_Column] = [
        ("tp", 3, lambda each: f"{each.setup.parallel.tensor}"),
        ("pp", 4, lambda each: f"{each.setup.parallel.pipeline}"),
        ("dp", 6, lambda each: f"{each.setup.layout.data_parallel}"),
        *(each for each in degrees if any(each[2](outcome) != "1" for outcome in ranked)),
    ]
    return [
        *columns,
        ("zero", 5, lambda each: f"{each.setup.parallel.zero_stage}"),
        ("mb", 4, lambda each: f"{each.setup.batch.micro_batch_size}"),
        ("schedule", -14, _schedule),
        ("checkpoint", -11, lambda each: each.setup.parallel.activation_checkpointing),
        ("GiB", 6, lambda each: f"{each.memory.total / GIB:.1f}"),
        ("tok/s/GPU", 10, lambda each: f"{each.tokens_per_second / each.setup.world_size:,.0f}"),
        ("MFU", 6, lambda each: f"{each.mfu:.1%}"),
    ]


def _cell(text: str, width: int) -> str:
    return f"{text:>{width}}" if width > 0 else f" {text:<{-width - 1}}"


def _schedule(outcome: Outcome) -> str:
    parallel = outcome.setup.parallel
    if parallel.pipeline == 1:
        return ""
    name = parallel.pipeline_schedule
    schedule = _SHORT.get(name, name)
    return f"{schedule} {parallel.stages_per_rank}" if name.startswith("interl") else schedule


def shown_forecast(forecast: Forecast) -> Iterator[str]:
    """Memory by part and pipeline rank, time by part, and messages by axis."""
    yield from _memory(forecast)
    yield ""
    yield from _time(forecast)
    yield ""
    yield from _traffic(forecast)


def _memory(forecast: Forecast) -> Iterator[str]:
    ranks = _chosen(forecast)
    heads = [f"rank {each.pipeline_rank}" for each in ranks]
    yield f"{'memory, GiB, by pipeline rank':<32}" + "".join(f"{head:>9}" for head in heads)
    rows = {"layers": [f"{len(each.layers)}" for each in ranks]}
    for part in PARTS:
        values = [getattr(each.memory, part) for each in ranks]
        if any(values):
            rows[part.replace("_", " ")] = [f"{value / GIB:.2f}" for value in values]
    rows["together"] = [f"{each.memory.total / GIB:.2f}" for each in ranks]
    if any(each.memory.host for each in ranks):
        rows["offloaded to the host"] = [f"{each.memory.host / GIB:.2f}" for each in ranks]
    for name, shown in rows.items():
        yield f"  {name:<30}" + "".join(f"{value:>9}" for value in shown)
    yield f"  {'usable':<30}{forecast.device.usable_bytes / GIB:>9.2f}"


def _chosen(forecast: Forecast) -> Sequence[Any]:
    """Some of the pipeline's ranks: the first, the last, and those between evenly."""
    count = len(forecast.ranks)
    if count <= _MOST_COLUMNS:
        return forecast.ranks
    places = {round(n * (count - 1) / (_MOST_COLUMNS - 1)) for n in range(_MOST_COLUMNS)}
    return [forecast.ranks[place] for place in sorted(places)]


def _time(forecast: Forecast) -> Iterator[str]:
    time = forecast.outcome.time
    yield f"{'time of a step':<32}{'seconds':>9}{'share':>9}"
    for part in TIME_PARTS:
        seconds = getattr(time, part)
        if seconds > 0.0005 * time.total:
            name = part.replace("_", " ")
            yield f"  {name:<30}{seconds:>9.3f}{seconds / time.total:>9.1%}"
    yield f"  {'together':<30}{time.total:>9.3f}"
    yield f"  {'binding':<30}{time.binding.replace('_', ' '):>9}"


def _traffic(forecast: Forecast) -> Iterator[str]:
    if not forecast.traffic:
        return
    yield f"{'messages of a process and step':<50}{'number':>11}{'GB':>10}{'seconds':>9}"
    for each in forecast.traffic:
        message = each.message
        name = f"{message.axis}: {message.operation} {message.what}"
        yield (
            f"  {name[:41]:<41} {each.link:<6}{message.num:>11,}"
            f"{message.sent_bytes / 1e9:>10,.2f}{each.seconds:>9.3f}"
        )


def shown_length(forecast: Forecast, length: Length | None) -> Iterator[str]:
    """How fast, how long, what it costs, and what a checkpoint is."""
    outcome, setup = forecast.outcome, forecast.outcome.setup
    yield row(
        "speed",
        f"{format_count(outcome.tokens_per_second)} tokens/s, "
        f"{outcome.tokens_per_second / setup.world_size:,.0f} a GPU; {outcome.mfu:.1%} MFU; "
        f"a step in {outcome.time.total:.2f} s",
    )
    if length is not None:
        price = "" if length.usd is None else f", {length.usd:,.0f} USD"
        yield row(
            "length",
            f"{format_count(length.tokens)} tokens in {length.steps:,} steps: "
            f"{length.days:,.1f} days, {format_count(length.gpu_hours)} GPU hours{price}",
        )
        active = " in use" if forecast.num_active < forecast.num_parameters else ""
        yield row(
            "compute",
            f"{length.tokens * forecast.flops_per_token:.2e} FLOPs, "
            f"{length.tokens / forecast.num_active:,.0f} tokens a parameter{active}",
        )
    checkpoint = forecast.checkpoint
    yield row(
        "saving",
        f"{checkpoint.num_bytes / 1e9:,.0f} GB a checkpoint, written in "
        f"{format_seconds(checkpoint.seconds)}",
    )


def shown_advice(flops: float, optima: Sequence[Optimum]) -> Iterator[str]:
    """What the rules make of so many FLOPs."""
    head = f"compute-optimal for {flops:.2e} FLOPs"
    yield f"{head:<42}{'parameters':>11}{'tokens':>8}{'ratio':>7}"
    for each in optima:
        yield (
            f"  {each.rule:<40}{format_count(each.parameters):>11}"
            f"{format_count(each.tokens):>8}{each.tokens_per_parameter:>7.1f}"
        )
    for each in optima:
        yield from textwrap.wrap(
            f"{each.rule}: {each.source}", WIDTH, initial_indent="    ", subsequent_indent="      "
        )


def shown_over_training(rows: Sequence[OverTraining]) -> Iterator[str]:
    """What longer training of a smaller model costs."""
    head = "over-training (by the refit)"
    yield f"{head:<32}{'parameters':>11}{'tokens':>8}{'loss':>8}{'to match':>10}"
    for each in rows:
        yield (
            f"  {f'{each.multiple:g} x the tokens a parameter':<30}"
            f"{format_count(each.parameters):>11}{format_count(each.tokens):>8}"
            f"{each.loss:>8.3f}{each.flops_to_match:>8.2f} C"
        )


def shown_hyperparameters(rules: Sequence[Hyperparameters]) -> Iterator[str]:
    """Learning rate and batch."""
    for each in rules:
        yield row("advice", f"lr {each.lr:.1e}, batch {format_count(each.batch_tokens)} tokens")
        yield from textwrap.wrap(
            each.source, WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11
        )


def row(label: str, text: str) -> str:
    """A labelled line."""
    return textwrap.fill(text, WIDTH, initial_indent=f"  {label:8} ", subsequent_indent=" " * 11)


def as_data(
    found: Found | None,
    forecast: Forecast,
    length: Length | None,
) -> dict[str, Any]:
    """Plain data."""
    ranked = () if found is None else found.ranked
    return {
        "machine": {"gpus": forecast.outcome.setup.world_size, "gpu": forecast.device.name},
        "parameters": forecast.num_parameters,
        "active_parameters": forecast.num_active,
        "flops_per_token": forecast.flops_per_token,
        "best": _outcome_data(forecast.outcome),
        "ranked": [_outcome_data(each) for each in ranked],
        "families": [] if found is None else [_outcome_data(each) for each in found.families],
        "ruled_out": {} if found is None else dict(found.ruled_out),
        "memory_by_rank": [
            {"rank": each.pipeline_rank, "layers": list(each.layers), **asdict(each.memory)}
            for each in forecast.ranks
        ],
        "messages": [
            {
                **each.message._asdict(),
                "sent_bytes": each.message.sent_bytes,
                "link": each.link,
                "seconds": each.seconds,
            }
            for each in forecast.traffic
        ],
        "length": None if length is None else asdict(length),
        "checkpoint": asdict(forecast.checkpoint),
    }


def _outcome_data(outcome: Outcome) -> dict[str, Any]:
    setup, parallel = outcome.setup, outcome.setup.parallel
    return {
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "pipeline_schedule": parallel.pipeline_schedule,
        "stages_per_rank": parallel.stages_per_rank,
        "zero_stage": parallel.zero_stage,
        "replicate": parallel.replicate,
        "expert": parallel.expert,
        "context": parallel.context,
        "data_parallel": setup.layout.data_parallel,
        "micro_batch_size": setup.batch.micro_batch_size,
        "activation_checkpointing": parallel.activation_checkpointing,
        "compute": setup.precision.compute,
        "fits": outcome.fits,
        "memory_bytes": outcome.memory.total,
        "step_seconds": outcome.time.total,
        "seconds_by_part": asdict(outcome.time),
        "tokens_per_second": outcome.tokens_per_second,
        "mfu": outcome.mfu,
        "why": outcome.why,
    }


def shown_figures(figures: Iterable[Figure]) -> Iterator[str]:
    """Each figure with its formula and source."""
    yield "where the figures come from"
    for each in figures:
        yield f"  {each.name:<38} {each.value}".rstrip()
        for text in (each.formula, f"[{each.source}]" if each.source else ""):
            yield from textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
