"""Where each figure of a plan comes from: formula, numbers and source. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from triax.models.description import describe
from triax.planning.activations import Rules, block_terms
from triax.planning.devices import GIB
from triax.planning.forecast import Forecast
from triax.planning.in_flight import micro_batches_in_flight
from triax.planning.memory import SLACK, buffer_terms, hidden_bytes
from triax.planning.setup import Setup
from triax.planning.stage import StagePart, parts_of
from triax.planning.states import gradient_bytes


class Figure(NamedTuple):
    """One figure."""

    name: str
    value: str
    formula: str
    source: str


def explained(forecast: Forecast) -> Iterator[Figure]:
    """Every figure of the fullest process, in the order of the report."""
    setup = forecast.outcome.setup
    fullest = max(forecast.ranks, key=lambda each: each.memory.total)
    parts = parts_of(setup, fullest.pipeline_rank)
    yield from _states(forecast, parts, fullest.pipeline_rank)
    yield from _passing(forecast, parts, fullest.pipeline_rank)
    yield from _seconds(forecast)
    yield from _run(forecast)


def _states(forecast: Forecast, parts: tuple[StagePart, ...], rank: int) -> Iterator[Figure]:
    setup, memory = forecast.outcome.setup, forecast.ranks[rank].memory
    updated = sum(part.elements.updated.whole for part in parts)
    here = sum(part.elements.updated.shard for part in parts) if setup.shards else updated
    share = f"{here:,} of the stage's {updated:,} weights (ZeRO over {setup.weight_shards})"
    zero = "Rajbhandari et al. 2020, figure 1; parallel/zero.py"
    yield Figure("main params", _gib(memory.main_params), f"4 bytes (fp32) x {share}", zero)
    bits = "2 bytes (bf16)" if setup.optimizer.state_dtype == "bf16" else "4 bytes (fp32)"
    yield Figure(
        "moments", _gib(memory.moments), f"2 x {bits} x {here:,}", f"{zero}; step/adamw.py"
    )
    yield Figure(
        "gradients",
        _gib(memory.gradients),
        f"{gradient_bytes(setup)} bytes x {here:,}, from the last backward pass to the update",
        "precision.gradients; parallel/main_params.py",
    )
    if memory.weights:
        yield Figure(
            "weights",
            _gib(memory.weights),
            f"{setup.compute_bytes} bytes x what is held beside the main params",
            "parallel/main_params.py, parallel/tied.py",
        )
    if memory.gathered_weights:
        kept = "all of the stage, until the update"
        if setup.parallel.zero_stage == 3:
            kept = "two blocks, and what is in none"
        yield Figure(
            "gathered weights",
            _gib(memory.gathered_weights),
            f"{setup.compute_bytes} bytes x {kept}",
            "parallel/zero.py: stage and FSDP2's prefetch",
        )
    yield Figure(
        "gradient buffers",
        _gib(memory.gradient_buffers),
        "what isn't reduced yet: fp32 sums over micro-batches at stages 0 and 1, else a block's",
        "parallel/zero.py; FSDP2's foreach_reduce",
    )


def _passing(forecast: Forecast, parts: tuple[StagePart, ...], rank: int) -> Iterator[Figure]:
    setup, memory = forecast.outcome.setup, forecast.ranks[rank].memory
    counts = micro_batches_in_flight(setup.parallel, rank, setup.num_micro_batches)
    blocks = " + ".join(
        f"{count} x {len(part.layers)}" for count, part in zip(counts, parts, strict=True)
    )
    yield Figure(
        "activations",
        _gib(memory.activations),
        f"{setup.micro_batch_tokens:,} tokens x ({blocks} blocks in flight) x the bytes below, "
        "what one block computes again, and the loss's gradient",
        "Korthikanti et al. 2022, sections 4 and 5; planning/activations.py",
    )
    yield from _terms(setup)
    yield Figure(
        "logits",
        _gib(memory.logits),
        "a chunk's logits and the head's gradient, on the last stage",
        "models/layers/loss.py",
    )
    if memory.stage_messages:
        yield Figure(
            "stage messages",
            _gib(memory.stage_messages),
            f"{hidden_bytes(setup) / GIB:.3g} GiB for each output that waits for its gradient, and "
            "for those on their way",
            "planning/in_flight.py, torch.distributed.pipelining",
        )
    yield Figure("buffers", _gib(memory.buffers), "of:", "planning/memory.py")
    for name, num_bytes in buffer_terms(setup, parts):
        yield Figure(f"  {name}", _gib(num_bytes), "", "")
    yield Figure(
        "slack",
        _gib(memory.slack),
        f"{SLACK:.0%} of what comes and goes: an allowance, not a formula",
        "torch's caching allocator rounds and splits",
    )
    yield Figure(
        "usable",
        _gib(forecast.device.usable_bytes),
        f"the device's memory less {forecast.device.reserved_gib:g} GiB (--reserved-gib) for "
        "CUDA's context, its libraries and NCCL's buffers",
        "an allowance, from estimates: planning/devices.py",
    )


def _terms(setup: Setup) -> Iterator[Figure]:
    """What the first block keeps for a token."""
    architecture = describe(setup.model).architecture
    terms = block_terms(
        architecture.layers[0],
        architecture.hidden_size,
        setup.seq_len,
        setup.parallel.activation_checkpointing,
        Rules.of(setup),
    )
    for term in terms:
        yield Figure(f"  {term.name}", f"{term.bytes_per_token:,.0f} B", "a token and block", "")


_TIMES = {
    "products": (
        "3 x 2 MKN a weight and micro-batch / (peak x share reached x tiles that fill)",
        "planning/layer_time.py: product_seconds; devices.REACH",
    ),
    "attention": (
        "3.5 x 4 H K (T / 2) a token / (peak x share reached)",
        "Dao 2023 (FlashAttention-2), section 3; devices.REACH",
    ),
    "elementwise": (
        "3 x bytes of the passes / memory bandwidth",
        "planning/layer_time.py: elementwise_bytes",
    ),
    "recomputation": (
        "selective: elementwise passes once more; full: the forward pass",
        "Chen et al. 2016; parallel/parallelize.py",
    ),
    "objective": (
        "DPO weighs answers by a forward pass of its own, which fills and drains the pipeline too",
        "Rafailov et al. 2023, equation 7; training/objectives/dpo.py",
    ),
    "tensor_messages": (
        "(n - 1) / n of each gathered or reduced tensor / (0.8 x link)",
        "Patarasu and Yuan 2009; Korthikanti et al. 2022, section 4.2.2",
    ),
    "expert_messages": (
        "(n - 1) / n of the rows / (0.8 x link, or the share of the fabric across nodes)",
        "parallel/experts.py; even loads; planning/time.py: exchange_bandwidth",
    ),
    "context_messages": (
        "the bytes of docs/parallelism.md's table / (0.8 x link); of a ring what attention "
        "doesn't hide",
        "parallel/context/methods.py",
    ),
    "zero_messages": (
        "what gathers and reductions take longer than the passes beside them",
        "Rajbhandari et al. 2020, section 7; planning/time.py",
    ),
    "pipeline_messages": ("half of what the sends take", "planning/time.py"),
    "bubble": (
        "(p - 1)(f + b), / v if interleaved, less with split backward passes",
        "Narayanan et al. 2021, section 2.2; Qi et al. 2023; DeepSeek-AI 2024",
    ),
    "optimizer": (
        "bytes of weights, gradients and moments, read and written / bandwidth + 2 ms",
        "training/step/adamw.py",
    ),
}


def _seconds(forecast: Forecast) -> Iterator[Figure]:
    time = forecast.outcome.time
    for part, (formula, source) in _TIMES.items():
        seconds = getattr(time, part)
        if seconds:
            yield Figure(part.replace("_", " "), f"{seconds:.3f} s", formula, source)


def _run(forecast: Forecast) -> Iterator[Figure]:
    outcome = forecast.outcome
    setup: Setup = outcome.setup
    peak = forecast.device.peak_flops(setup.precision.compute) / 1e12
    yield Figure(
        "tokens/s",
        f"{outcome.tokens_per_second:,.0f}",
        f"{setup.tokens_per_step:,} tokens / {outcome.time.total:.3f} s",
        "",
    )
    yield Figure(
        "MFU",
        f"{outcome.mfu:.1%}",
        f"tokens/s x {forecast.flops_per_token:.3g} FLOPs / ({setup.world_size:,} x "
        f"{peak:,.0f} TFLOP/s)",
        "Chowdhery et al. 2022, appendix B; peaks: NVIDIA's data sheets",
    )
    yield Figure(
        "checkpoint",
        f"{forecast.checkpoint.num_bytes / 1e9:,.1f} GB",
        f"{forecast.num_parameters:,} x (4 bytes + both moments)",
        "docs/checkpoints.md",
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
