"""Which layout is the fastest of those that fit. Imports no torch.

Every combination of the axes is tried. What a run's own rules refuse is ruled out by the same
functions that refuse it; the whole of `triax check` judges from the fastest on, until enough have
passed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.parallel.config import ParallelConfig
from triax.parallel.layout import Layout
from triax.parallel.stages import SCHEDULES, num_stages, schedule_problem
from triax.planning.devices import GIB, Device
from triax.planning.memory import PARTS, Memory, fullest_memory
from triax.planning.setup import Setup
from triax.planning.time import (
    TIME_PARTS,
    StepTime,
    model_flops_utilization,
    step_time,
    tokens_per_second,
)

LEAST_PART = 8192
"""Tokens of a sequence that a process has at the least where the context axis is tried."""
MOST_STAGES = 0
"""Of a rank: as many as the layers allow."""
_Family = tuple[int, int]
"""Degrees of tensor and pipeline parallelism."""
Judge = Callable[[Setup], str | None]
"""Why a run of this setup would be refused; None where it would start."""


@dataclass(frozen=True)
class Space:
    """The values that are tried, each with each."""

    tensor: Sequence[int]
    pipeline: Sequence[int]
    schedules: Sequence[tuple[str, int]]
    """With stages a rank, which only interleaved ones read; `MOST_STAGES` is a layer a stage."""
    zero_stages: Sequence[int]
    micro_batch_sizes: Sequence[int]
    checkpointing: Sequence[str]
    precisions: Sequence[str]
    shards_within_node: Sequence[bool]
    """Whether replicas of a node each are tried (`parallel.replicate`)."""
    expert: Sequence[int] = (1,)
    context: Sequence[int] = (1,)


@dataclass(frozen=True)
class Outcome:
    """A layout and what it would take.

    Attributes:
        setup: the layout.
        memory: of the fullest process.
        time: of a step.
        tokens_per_second: of all devices.
        mfu: see `planning.time`.
        fits: whether the device holds it.
        why: why it isn't the winner, in one line; empty for the winner.
    """

    setup: Setup
    memory: Memory
    time: StepTime
    tokens_per_second: float
    mfu: float
    fits: bool
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ranked: layouts that fit and that a run would accept, the fastest first.
        families: of each pair of tensor and pipeline degrees the best, with why it loses.
        num_tried: combinations.
        ruled_out: how many a rule of the run refused, by rule.
        num_too_large: how many don't fit.
    """

    ranked: Sequence[Outcome]
    families: Sequence[Outcome]
    num_tried: int
    ruled_out: Counter[str]
    num_too_large: int


def default_space(setup: Setup, device: Device, precisions: Sequence[str] = ()) -> Space:
    """What is worth trying on such a machine: tensor parallelism within a node, pipelines of every
    length that divides, micro-batches in powers of two."""
    is_native = setup.parallel.engine == "native"
    per_node = min(device.card.gpus_per_node, setup.world_size)
    schedules = [("1f1b", 2)]
    if is_native:
        schedules += [("interleaved-1f1b", stages) for stages in (2, 4, MOST_STAGES)]
    if is_native and not setup.parallel.compile:
        schedules += [("interleaved-zero-bubble", 2), ("zbv-zero-bubble", 2), ("dualpipe-v", 2)]
    return Space(
        tensor=_powers_of_two(per_node),
        pipeline=_divisors(setup.world_size, min(setup.model.num_layers, 64)),
        schedules=schedules,
        zero_stages=(1, 2, 3),
        micro_batch_sizes=_powers_of_two(min(setup.batch.global_batch_size, 16)),
        checkpointing=("none", "selective", "full"),
        precisions=precisions or (setup.precision.compute,),
        shards_within_node=(False, True) if is_native else (False,),
        expert=_divisors(num_experts(setup.model), setup.world_size),
        context=_powers_of_two(min(64, setup.seq_len // LEAST_PART)) if is_native else (1,),
    )


def search(
    setup: Setup,
    device: Device,
    space: Space,
    judge: Judge,
    num_ranked: int = 8,
) -> Found:
    """Try all of the space.

    Args:
        setup: what is the same in every layout; its own layout isn't tried for itself.
        device: of every process.
        space: from `default_space`.
        judge: the checks of a run.
        num_ranked: how many of the fastest are judged and returned.
    """
    ruled_out: Counter[str] = Counter()
    outcomes: list[Outcome] = []
    smallest: dict[_Family, tuple[Memory, Setup]] = {}
    num_tried = num_too_large = 0
    for candidate in candidates(setup, device, space):
        num_tried += 1
        rule = ruled_out_by(candidate)
        if rule is not None:
            ruled_out[rule] += 1
            continue
        memory, family = fullest_memory(candidate), _family_of(candidate)
        if memory.total <= device.usable_bytes:
            outcomes.append(_timed(candidate, memory, device))
            continue
        num_too_large += 1
        if family not in smallest or memory.total < smallest[family][0].total:
            smallest[family] = memory, candidate
    outcomes.sort(key=lambda each: -each.tokens_per_second)
    ranked: list[Outcome] = []
    for outcome in outcomes:
        if len(ranked) == num_ranked:
            break
        refusal = judge(outcome.setup)
        if refusal is None:
            ranked.append(outcome)
        else:
            ruled_out[refusal] += 1
    if ranked:
        ranked[1:] = [replace(each, why=why_slower(each, ranked[0])) for each in ranked[1:]]
    outcomes += [_timed(candidate, memory, device) for memory, candidate in smallest.values()]
    return Found(ranked, _families(outcomes, ranked, device), num_tried, ruled_out, num_too_large)


def candidates(setup: Setup, device: Device, space: Space) -> Iterator[Setup]:
    """Every combination; those that have one meaning come once."""
    parallel = setup.parallel
    for tensor, context, pipeline in itertools.product(space.tensor, space.context, space.pipeline):
        split = parallel.model_copy(
            update={"tensor": tensor, "context": context, "pipeline": pipeline}
        )
        ranks = Layout.data_parallel_of(split, setup.world_size)
        if ranks is None:
            continue
        schedules = _schedules(space, pipeline, setup.model.num_layers)
        per_node = max(1, device.card.gpus_per_node // (tensor * context))
        replicas = ranks // per_node if ranks % per_node == 0 and ranks > per_node > 1 else 1
        degrees = sorted({replicas if within else 1 for within in space.shards_within_node})
        for (schedule, stages), zero_stage, replicate, expert, kind in itertools.product(
            schedules, space.zero_stages, degrees, space.expert, space.checkpointing
        ):
            if ranks // replicate * context % expert:
                continue
            chosen = split.model_copy(
                update={
                    "pipeline_schedule": schedule,
                    "stages_per_rank": stages,
                    "pipeline_split": None,
                    "zero_stage": zero_stage,
                    "replicate": replicate,
                    "expert": expert,
                    "activation_checkpointing": kind,
                    "async_tensor": parallel.async_tensor and tensor > 1,
                }
            )
            yield from _with_batches(setup, chosen, space)


def _schedules(space: Space, pipeline: int, num_layers: int) -> list[tuple[str, int]]:
    """Those of a pipeline of so many ranks, each once."""
    if pipeline == 1:
        return list(space.schedules[:1])
    most = max(2, num_layers // pipeline)
    return list(dict.fromkeys((name, stages or most) for name, stages in space.schedules))


def _with_batches(setup: Setup, parallel: ParallelConfig, space: Space) -> Iterator[Setup]:
    for size, compute in itertools.product(space.micro_batch_sizes, space.precisions):
        yield replace(
            setup,
            parallel=parallel,
            batch=setup.batch.model_copy(update={"micro_batch_size": size}),
            precision=setup.precision.model_copy(update={"compute": compute}),
        )


def ruled_out_by(setup: Setup) -> str | None:
    """Which rule of a run the layout breaks, in few words; None where it breaks none of these."""
    parallel, batch = setup.parallel, setup.batch
    unit = batch.micro_batch_size * setup.layout.data_parallel
    if batch.global_batch_size % unit:
        return "the batch isn't a multiple of micro-batch x data-parallel ranks"
    if not _tensor_divides(setup.model, parallel.tensor, setup.seq_len, setup.divides_tokens):
        return "tensor doesn't divide the model's widths, its vocabulary or the sequence"
    if parallel.context > 1 and setup.seq_len % (2 * parallel.context * parallel.tensor):
        return "context doesn't divide the sequence"
    if parallel.expert > 1:
        if setup.model.hidden_size % setup.spread.expert_shard:
            return "the model's width doesn't divide over the processes of the same experts"
        if parallel.zero_stage == 3 and parallel.activation_checkpointing == "selective":
            return "selective checkpointing doesn't go with ZeRO 3 and expert parallelism"
    if parallel.pipeline == 1:
        return None
    if num_stages(parallel) > setup.model.num_layers:
        return "fewer layers than pipeline stages"
    if parallel.activation_checkpointing == "selective" and (
        SCHEDULES[parallel.pipeline_schedule].splits_backward
    ):
        return "selective checkpointing doesn't go with a backward pass in two halves"
    if schedule_problem(parallel, setup.num_micro_batches) is not None:
        return "the schedule needs other numbers of micro-batches"
    return None


def num_experts(model: ModelConfig) -> int:
    """Of each layer that has some; 1 where none has."""
    mlps = (layer.feed_forward for layer in describe(model).architecture.layers)
    return next((mlp.num_experts for mlp in mlps if isinstance(mlp, Experts)), 1)


@lru_cache(maxsize=256)
def _tensor_divides(model: ModelConfig, tensor: int, seq_len: int, divides_tokens: bool) -> bool:
    if tensor == 1:
        return True
    sizes = [width.num_units for width in describe(model).widths()]
    sizes.append(model.vocab_size)
    if divides_tokens:
        sizes.append(seq_len)
    return all(size % tensor == 0 for size in sizes)


def evaluate(setup: Setup, device: Device) -> Outcome:
    """What a layout would take.

    Raises:
        UserError: it is no layout of so many processes, or the device can't compute so.
    """
    return _timed(setup, fullest_memory(setup), device)


def _timed(setup: Setup, memory: Memory, device: Device) -> Outcome:
    time = step_time(setup, device)
    return Outcome(
        setup,
        memory,
        time,
        tokens_per_second(setup, time),
        model_flops_utilization(setup, time, device),
        memory.total <= device.usable_bytes,
    )


def why_too_large(outcome: Outcome, device: Device) -> str:
    """What a layout needs too much of."""
    largest = max(PARTS, key=lambda part: getattr(outcome.memory, part))
    share = getattr(outcome.memory, largest) / GIB
    return (
        f"needs {outcome.memory.total / GIB:,.0f} GiB of {device.usable_bytes / GIB:.0f}, "
        f"{share:,.0f} of it {largest.replace('_', ' ')}"
    )


def why_slower(outcome: Outcome, best: Outcome) -> str:
    """Which part takes longer than in the fastest layout, per token."""
    slower = outcome.time.total / best.time.total - 1
    more = {
        part: (getattr(outcome.time, part) - getattr(best.time, part)) / best.time.total
        for part in TIME_PARTS
    }
    worst = max(more, key=lambda part: more[part])
    if slower < 0.0005:
        return "as fast; needs more memory" if more_memory(outcome, best) else "as fast"
    compute = outcome.setup.precision.compute
    other = "" if compute == best.setup.precision.compute else f", in {compute}"
    return f"{slower:.1%} slower{other}: {more[worst]:.1%} of it {worst.replace('_', ' ')}"


def more_memory(outcome: Outcome, best: Outcome) -> bool:
    """Whether a layout needs more than the fastest."""
    return outcome.memory.total > best.memory.total


def _family_of(setup: Setup) -> _Family:
    return setup.parallel.tensor, setup.parallel.pipeline


def _families(
    outcomes: Sequence[Outcome], ranked: Sequence[Outcome], device: Device
) -> list[Outcome]:
    """Of each pair of tensor and pipeline degrees the first: the fastest that fits, or else the
    smallest."""
    best: dict[_Family, Outcome] = {}
    for outcome in outcomes:
        best.setdefault(_family_of(outcome.setup), outcome)
    families = []
    for key in sorted(best):
        outcome = best[key]
        if not outcome.fits:
            why = why_too_large(outcome, device)
        elif ranked and outcome.setup != ranked[0].setup:
            why = why_slower(outcome, ranked[0])
        else:
            why = ""
        families.append(replace(outcome, why=why))
    return families


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _divisors(number: int, most: int) -> list[int]:
    return [each for each in range(1, most + 1) if number % each == 0]


def no_judge(_setup: Setup) -> str | None:
    """Accept everything."""
    return None
