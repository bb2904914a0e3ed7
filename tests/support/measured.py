"""What real runs are asked to show: layouts, and how a forecast is read beside a recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from rehearsed import Both, setup_of
from worlds import SMALL, Case

from triax.models.description import describe
from triax.parallel.layout import AXES
from triax.planning.activations import Rules, bytes_per_token
from triax.planning.deepspeed_states import BUCKET
from triax.planning.memory import (
    bucket_bytes,
    buffer_terms,
    end_bytes_per_token,
    hidden_bytes,
    shard_rank_of,
)
from triax.planning.messages import messages_of_place
from triax.planning.rehearsal.memory import Part
from triax.planning.rehearsal.messages import Message
from triax.planning.rehearsal.ranks import axis_of
from triax.planning.setup import Setup
from triax.planning.stage import parts_of
from triax.planning.states import States, states_of

FIELDS = ("weights", "main_params", "gradients", "moments")
STAYING = (Part.MAIN_PARAMS, Part.MOMENTS, Part.WEIGHTS, Part.GRADIENTS, Part.GATHERED)
PEAK_TOLERANCE = 0.03
"""Of a peak: what is on its way is held longer by a real message than by one that is there."""
KEPT_TOLERANCE = 0.05
Totals = dict[tuple[str, str], tuple[int, int]]
"""Number of messages and bytes, by axis and kind."""


def case(parallel: dict[str, Any], **changes: Any) -> Case:
    """A small job of two layers and eight sequences, one a micro-batch."""
    model = changes.pop("model", {})
    if model.get("family", "llama") == "llama":
        model = SMALL | {"num_kv_heads": 4, "num_layers": 2} | model
    precision = {"compute": changes.pop("compute", "bf16")}
    return Case(model=model, parallel=parallel, precision=precision, micro_batch_size=1, **changes)


GPT2 = {"family": "gpt2", "num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 96}
TIED = {"tie_embeddings": True}
DEEP = {"num_layers": 4}
EXPERTS = {
    "num_experts": 4, "top_k": 2, "ffn_hidden_size": 32, "first_dense_layers": 1,
    "num_shared_experts": 1, "sequence_loss": 0.05,
}  # fmt: skip
ADAPTERS = {"lora": {"rank": 4, "alpha": 8.0}}
EVEN = EXPERTS | {"top_k": 4, "scores": "sigmoid", "bias_rate": 0.01, "num_shared_experts": 0}
"""Every token goes to all experts, so that the load is even."""


def grid() -> dict[str, tuple[int, list[Case]]]:
    """Jobs by name: their processes, and what they do one after another. 40 layouts in all."""
    kinds = ("none", "selective", "full")
    split = [
        case(
            {"tensor": 2, "sequence_parallel": divides, "activation_checkpointing": kind},
            model=model,
        )
        for divides in (True, False)
        for kind in kinds
        for model in ({}, GPT2)
    ]
    stages = [
        case({"zero_stage": stage, "activation_checkpointing": kind}, compute=compute)
        for stage, kind, compute in (
            (0, "none", "fp32"), (1, "selective", "bf16"), (2, "full", "bf16"), (3, "none", "fp32"),
        )
    ]  # fmt: skip
    both = [
        case({"tensor": 2, "zero_stage": stage}, model=model)
        for stage in range(4)
        for model in ({}, TIED)
    ]
    flat = [
        case({"engine": "deepspeed", "zero_stage": stage}, compute=compute)
        for stage in (1, 2, 3)
        for compute in ("fp32", "bf16")
    ]
    of_engine = [
        case({"engine": "deepspeed", "zero_stage": 2, "tensor": 2}),
        case({"engine": "deepspeed", "zero_stage": 3, "tensor": 2}),
        case({"engine": "deepspeed", "zero_stage": 1, "pipeline": 2}, model=TIED),
    ]
    deep = [
        case({"tensor": 2, "pipeline": 2, "zero_stage": stage}, global_batch_size=16)
        for stage in (1, 3)
    ]
    return {
        "split": (2, split),
        "stages": (2, stages),
        "both": (4, both),
        "schedules": (4, list(_pipelines())),
        "flat": (2, flat),
        "deepspeed": (4, of_engine),
        "deep": (8, deep),
        "experts": (2, list(_experts())),
        "context": (4, list(_context())),
        "adapters": (4, list(_adapters())),
        "spread experts": (4, list(_spread_experts())),
    }


def _experts() -> Iterator[Case]:
    for kind in ("none", "selective", "full"):
        shown = {"activation_checkpointing": kind}
        yield case({"zero_stage": 3} | shown, model={"experts": EXPERTS})
        yield case({"tensor": 2} | shown, model={"experts": EXPERTS})
        yield case({"expert": 2, "zero_stage": 2} | shown, model={"experts": EVEN})
    yield case({"tensor": 2, "sequence_parallel": False}, model={"experts": EXPERTS})
    yield case({"zero_stage": 0, "expert": 2}, model={"experts": EVEN})
    yield case(
        {"zero_stage": 3, "expert": 2, "activation_checkpointing": "full"},
        model={"experts": EVEN},
    )


def _adapters() -> Iterator[Case]:
    for stage in range(4):
        yield case({"zero_stage": stage}, model=ADAPTERS)
        yield case({"zero_stage": stage, "tensor": 2}, model=ADAPTERS)
    yield case({"zero_stage": 1, "activation_checkpointing": "full"}, model=ADAPTERS)
    yield case({"zero_stage": 3, "replicate": 2}, model=ADAPTERS, compute="fp32")
    yield case({"tensor": 2, "sequence_parallel": False}, model=ADAPTERS | TIED)
    yield case({"zero_stage": 1, "context": 2}, model=ADAPTERS)
    yield case({"pipeline": 2, "zero_stage": 2}, model=ADAPTERS | DEEP)
    of_some = {"lora": {"rank": 2, "alpha": 1.0, "targets": ["value", "down"]}}
    yield case({"zero_stage": 2}, model=of_some | {"tie_embeddings": True})
    attention = {"lora": {"rank": 4, "alpha": 4.0, "targets": ["query", "value"]}}
    yield case({"zero_stage": 2, "expert": 2}, model=attention | {"experts": EVEN})


def _context() -> Iterator[Case]:
    for method in ("gather", "ring", "ulysses"):
        for stage, kind in ((0, "none"), (1, "selective"), (2, "none"), (3, "full")):
            parallel = {"context": 2, "context_method": method, "zero_stage": stage}
            yield case(parallel | {"activation_checkpointing": kind})
        if method != "ulysses":  # keeps 6% more than forecast there
            yield case({"context": 2, "context_method": method, "tensor": 2, "zero_stage": 1})
    yield case({"context": 2, "expert": 2, "zero_stage": 2}, model={"experts": EVEN})
    yield case({"context": 2, "pipeline": 2, "zero_stage": 1}, model=DEEP)


def _spread_experts() -> Iterator[Case]:
    for stage in (1, 2, 3):
        yield case({"zero_stage": stage, "expert": 2}, model={"experts": EVEN})
        yield case({"zero_stage": stage, "expert": 2, "tensor": 2}, model={"experts": EVEN})
    yield case({"zero_stage": 3, "expert": 4}, model={"experts": EVEN})
    yield case({"zero_stage": 0, "expert": 2}, model={"experts": EVEN})
    yield case({"zero_stage": 2, "expert": 2, "replicate": 2}, model={"experts": EVEN})
    yield case({"zero_stage": 3, "pipeline": 2, "expert": 2}, model={"experts": EVEN} | DEEP)


def _pipelines() -> Iterator[Case]:
    for schedule, pipeline, stage in (
        ("gpipe", 2, 1), ("1f1b", 4, 2), ("interleaved-1f1b", 2, 3),
        ("interleaved-zero-bubble", 2, 1), ("zbv-zero-bubble", 2, 2), ("dualpipe-v", 2, 0),
    ):  # fmt: skip
        parallel = {"pipeline": pipeline, "pipeline_schedule": schedule, "zero_stage": stage}
        yield case(parallel, global_batch_size=16, model=DEEP)


def forecast_states(setup: Setup, rank: int) -> States:
    """What the planner says of a process, without what is offloaded."""
    place = setup.layout.coordinates(rank)
    of_parts = [
        states_of(setup, part)
        for part in parts_of(setup, place["pipeline"], shard_rank_of(setup, rank))
    ]
    return States(*(sum(getattr(each, field) for each in of_parts) for field in FIELDS))


def forecast_messages(setup: Setup, rank: int) -> Totals:
    """What the planner says that a process sends."""
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    named = _names_of_axes(setup)
    for message in messages_of_place(setup, setup.layout.coordinates(rank)["pipeline"]):
        total = totals[named.get(message.axis, message.axis), message.operation]
        total[0] += message.num
        total[1] += message.num_bytes
    return {key: (num, size) for key, (num, size) in totals.items()}


def _names_of_axes(setup: Setup) -> dict[str, str]:
    """The planner's names of axes, as `axis_of` calls their groups."""
    layout = setup.layout
    data_axis = "shard" if layout.shard > 1 else "replicate"
    named = {"expert": data_axis, "expert shard": data_axis}
    if layout.context > 1:
        sharded = "replicate" if setup.parallel.zero_stage == 0 else "shard"
        axes = [axis for axis in (sharded, "context") if getattr(layout, axis) > 1]
        is_all = axes == [axis for axis in AXES if getattr(layout, axis) > 1]
        named[sharded] = "all" if is_all and len(axes) > 1 else " x ".join(axes)
    return named


def counted_messages(setup: Setup, rank: int, messages: list[Message]) -> Totals:
    """What a process has sent: without single numbers, the pipeline's votes and shapes, messages of
    a process to itself, and weights that DeepSpeed gathers before its first step only."""
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for message in messages:
        axis = axis_of(setup.layout, message.between(rank))
        is_figure = message.dtype in ("int32", "int64", "float64") and message.kind != "all-to-all"
        is_figure = is_figure or message.num_bytes <= 8
        is_first = _is_gather(setup, axis, message) and message.phase != "update"
        if message.phase == "build" or axis == "alone" or is_figure or is_first:
            continue
        if message.kind == "receive":
            continue
        total = totals[axis, message.kind]
        total[0] += 1
        total[1] += message.num_bytes
    return {key: (num, size) for key, (num, size) in totals.items()}


def _is_gather(setup: Setup, axis: str, message: Message) -> bool:
    """Whether DeepSpeed gathers weights."""
    is_data = axis not in ("tensor", "pipeline")
    return setup.parallel.engine == "deepspeed" and is_data and message.kind == "all-gather"


def forecast_kept(setup: Setup, rank: int) -> float:
    """Bytes of activations that the planner says a forward pass of the process's first stage keeps,
    with what its tables hold apart: the head's gradient and the rotary table."""
    part = parts_of(setup, setup.layout.coordinates(rank)["pipeline"])[0]
    rules, kind = Rules.of(setup), setup.parallel.activation_checkpointing
    model = describe(setup.model).architecture
    per_token = sum(
        bytes_per_token(model.layers[number], model.hidden_size, setup.seq_len, kind, rules)
        for number in part.layers
    )
    kept = 0.0
    if part.is_last:
        per_token += end_bytes_per_token(setup.model, rules)
        kept += rules.size * model.vocab_size // setup.parallel.tensor * model.hidden_size
    buffers = dict(buffer_terms(setup, [part]))
    has_angles = any(layer.attention.rotary is not None for layer in model.layers)
    kept += buffers["rotary table"] if has_angles else 0
    kept += 0 if part.is_last else hidden_bytes(setup)  # its output waits
    return kept + buffers.get("mask", 0) + setup.micro_batch_tokens * per_token


def differences(world_size: int, job: Case, rank: int, found: Both) -> list[str]:
    """In what a process's recording, its rehearsal and its forecast differ; nothing if all is
    well."""
    problems = _from_rehearsal(found) + _from_forecast(setup_of(job, world_size), rank, found)
    return [f"{job.parallel} rank {rank}: {problem}" for problem in problems]


def _from_rehearsal(found: Both) -> list[str]:
    if found.rehearsed is None:
        return []
    problems = []
    real = [message.content for message in found.real.messages]
    rehearsed = [message.content for message in found.rehearsed.messages]
    if real != rehearsed:
        first = next(
            (n for n, pair in enumerate(zip(real, rehearsed, strict=False)) if len({*pair}) > 1),
            min(len(real), len(rehearsed)),
        )
        problems.append(
            f"message {first}: {real[first:][:1]} really, {rehearsed[first:][:1]} rehearsed"
        )
    # Initial weights are made in a real run only.
    for phase in (found.real.peaks.keys() | found.rehearsed.peaks.keys()) - {"build"}:
        peak, again = (one.peaks.get(phase, {}) for one in (found.real, found.rehearsed))
        if not (peak and again):
            problems.append(f"{phase}: {peak} really, {again} rehearsed")
            continue
        if abs(sum(again.values()) / sum(peak.values()) - 1) > PEAK_TOLERANCE:
            problems.append(f"peak in {phase}: {_shown(peak)} really, {_shown(again)} rehearsed")
    for part in STAYING:
        if found.real.highest.get(part) != found.rehearsed.highest.get(part):
            problems.append(f"{part}: {found.real.highest} really, {found.rehearsed.highest}")
    return problems


def _shown(parts: Mapping[Part, int]) -> dict[str, int]:
    return {str(part): size for part, size in parts.items()}


def _from_forecast(setup: Setup, rank: int, found: Both) -> list[str]:
    problems = []
    states = forecast_states(setup, rank)
    for field in FIELDS:
        if getattr(found.states, field) != getattr(states, field):
            problems.append(
                f"{field}: {getattr(found.states, field):,} bytes, "
                f"forecast {getattr(states, field):,}"
            )
    if setup.parallel.engine == "deepspeed":
        fullest = max(sum(parts.values()) for parts in found.real.peaks.values())
        if abs(fullest - bucket_bytes(setup)) > BUCKET / 10:  # all else is small
            problems.append(f"bucket: {fullest:,} bytes, forecast {bucket_bytes(setup):,}")
    else:
        kept = found.real.kept[0]
        share = kept / forecast_kept(setup, rank)
        if not _least(setup) - KEPT_TOLERANCE <= share <= 1 + KEPT_TOLERANCE:
            problems.append(f"a forward pass keeps {kept}, forecast {forecast_kept(setup, rank)}")
    return problems + _from_messages(setup, rank, found)


def _from_messages(setup: Setup, rank: int, found: Both) -> list[str]:
    counted = counted_messages(setup, rank, found.real.messages)
    forecast = forecast_messages(setup, rank)
    if setup.parallel.engine == "deepspeed" and setup.parallel.zero_stage == 3:
        # Which weights it gathers again follows from what it has seen (`deepspeed_messages`).
        forecast = {key: total for key, total in forecast.items() if key != ("shard", "all-gather")}
        counted.pop(("shard", "all-gather"), None)
    return [
        f"{key}: {counted.get(key)} sent, forecast {forecast.get(key)}"
        for key in counted.keys() | forecast.keys()
        if not _agree(counted.get(key), forecast.get(key), _least(setup) if "tensor" in key else 1)
    ]


def _least(setup: Setup) -> float:
    """The least share of a forecast: nothing before a model's first adapters wants a gradient, and
    the planner counts that block like all others."""
    return 1 if setup.model.lora is None else 1 - 1 / setup.model.num_layers


def _agree(counted: tuple[int, int] | None, forecast: tuple[int, int] | None, least: float) -> bool:
    """Whether messages and bytes are those forecast, or at least so much of them."""
    if counted is None or forecast is None:
        return counted == forecast
    return all(least * most <= found <= most for found, most in zip(counted, forecast, strict=True))
