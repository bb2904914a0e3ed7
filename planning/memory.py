"""Memory of one process, by part, at the fullest moment of a step. Imports no torch.

Weights, main params, gradients and moments are exact (`planning/states.py`); activations follow a
table of terms (`planning/activations.py`); the rest are the largest temporaries that the engine's
code makes, and at the end an allowance for what the allocator can't use.

Letters: N tokens of a micro-batch, V vocabulary, D hidden size, C tokens of a chunk of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.parallel.context.methods import method_of
from triax.planning.activations import Rules, bytes_per_token, norm_terms
from triax.planning.deepspeed_states import BUCKET, is_bf16_optimizer
from triax.planning.in_flight import micro_batches_in_flight
from triax.planning.setup import Setup
from triax.planning.stage import StagePart, heaviest_ranks, parts_of
from triax.planning.states import FP32, States, gradient_bytes, states_of

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once (`models.layers.loss`); 16 times as many compiled."""
EARLY_RECEIVES = 2
"""Inputs, and gradients, that a schedule of several stages a process waits for at once, while it
holds the most (torch's order of sends and receives)."""
SLACK = 0.05
"""Allowance for the allocator's fragments, as a share of what comes and goes within a step."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights, main_params, gradients, moments: see `states.States`.
        gathered_weights: copies in the compute dtype that ZeRO gathers for the products.
        gradient_buffers: gradients that aren't reduced yet.
        activations: kept for the backward pass, of all micro-batches in flight, and of one block
            what is computed again.
        logits: of a chunk of tokens, with the gradients that the loss makes in the forward pass.
        stage_messages: what a pipeline stage sends on, which it keeps for the backward pass, and
            what is on its way to it.
        buffers: batches, rotary tables, masks, ZeRO's messages, one block's gradients.
        slack: what the allocator can't use.
        host: not on the device: offloaded state.
    """

    weights: int = 0
    main_params: int = 0
    gradients: int = 0
    moments: int = 0
    gathered_weights: int = 0
    gradient_buffers: int = 0
    activations: int = 0
    logits: int = 0
    stage_messages: int = 0
    buffers: int = 0
    slack: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(field.name for field in fields(Memory) if field.name != "host")


def memory_of_rank(setup: Setup, rank: int) -> Memory:
    """Of one process of the run.

    Raises:
        UserError: the degrees don't multiply to the processes, or the layers can't be divided.
    """
    place = setup.layout.coordinates(rank)
    return memory_of_place(setup, place["pipeline"], shard_rank_of(setup, rank))


def shard_rank_of(setup: Setup, rank: int) -> int:
    """Which of ZeRO's shards a process of the run holds."""
    place = setup.layout.coordinates(rank)
    at = place["shard"] * setup.layout.context + place["context"]
    return at if setup.parallel.zero_stage else 0


def memory_of_place(setup: Setup, pipeline_rank: int, shard_rank: int = 0) -> Memory:
    """Of the processes at a place of the pipeline and shard axes; of the shard axis the first
    holds the most.

    Raises:
        UserError: the degrees don't multiply to the processes, or the layers can't be divided.
    """
    parts = parts_of(setup, pipeline_rank, shard_rank)
    states = [states_of(setup, part) for part in parts]
    counts = micro_batches_in_flight(setup.parallel, pipeline_rank, setup.num_micro_batches)
    gathered = sum(_gathered_weights(setup, part) for part in parts)
    unreduced = sum(_gradient_buffers(setup, part) for part in parts)
    activations = _activations(setup, parts, counts)
    logits = _logits(setup) if any(part.is_last for part in parts) else 0
    buffers = sum(term for _, term in buffer_terms(setup, parts))
    return Memory(
        **_sums(states),
        gathered_weights=gathered,
        gradient_buffers=unreduced,
        activations=activations,
        logits=logits,
        stage_messages=_stage_messages(setup, parts, counts),
        buffers=buffers,
        slack=round(SLACK * (gathered + unreduced + activations + logits + buffers)),
    )


def fullest_memory(setup: Setup) -> Memory:
    """Of the pipeline rank that needs the most."""
    of_ranks = (memory_of_place(setup, rank) for rank in heaviest_ranks(setup))
    return max(of_ranks, key=lambda each: each.total)


def _sums(states: Sequence[States]) -> dict[str, int]:
    return {field.name: sum(getattr(s, field.name) for s in states) for field in fields(States)}


def _gathered_weights(setup: Setup, part: StagePart) -> int:
    """Stages 0 to 2 gather all until the update; 3 gathers what isn't in blocks, and of these the
    one that computes and the next (FSDP2's prefetch)."""
    stage, frozen, size = part.elements, part.frozen, setup.compute_bytes
    if setup.parallel.engine == "deepspeed":
        return size * 2 * stage.largest_block.whole if setup.parallel.zero_stage == 3 else 0
    if not setup.shards:
        return 0
    both = (stage, frozen)
    if setup.parallel.zero_stage < 3:
        return size * sum(each.all.whole for each in both)
    at_once = min(2, len(part.layers))
    rest = sum(each.all.whole - each.blocks.whole for each in both)
    return size * (rest + at_once * sum(each.largest_block.whole for each in both))


def _gradient_buffers(setup: Setup, part: StagePart) -> int:
    """Stages 0 and 1 add micro-batches up in fp32 before they reduce; in any stage a block's
    gradients are in the compute dtype first, and fp32 in the message that reduces them; those of
    the head wait for the embedding's."""
    stage, size = part.elements, setup.compute_bytes
    follower = gradient_bytes(setup) * stage.follower.whole
    if setup.parallel.engine == "deepspeed":
        follower = FP32 * stage.follower.whole
        return size * stage.largest_block.whole + follower + bucket_bytes(setup)
    if not setup.shards:
        return follower
    waiting = size * (stage.all.whole - stage.blocks.whole)
    block = (size + FP32) * stage.largest_block.whole
    parallel, updated = setup.parallel, stage.updated
    if parallel.zero_stage < 2 and setup.num_micro_batches > 1:
        before = FP32 * stage.all.whole - gradient_bytes(setup) * updated.shard
        return max(before, 0) + block
    of_replicas = 0
    if setup.weight_replicas > 1 and setup.num_micro_batches > 1:
        of_replicas = FP32 * updated.shard - gradient_bytes(setup) * updated.shard
    return waiting + block + of_replicas


def bucket_bytes(setup: Setup) -> int:
    """Of the buffer in which DeepSpeed puts gradients together before it reduces them: it is as
    large for any model. Its bf16 optimizer has none."""
    if is_bf16_optimizer(setup):
        return 0
    return BUCKET * (setup.compute_bytes if setup.parallel.zero_stage == 2 else FP32)


def _activations(setup: Setup, parts: Sequence[StagePart], counts: Sequence[int]) -> int:
    rules, kind = Rules.of(setup), setup.parallel.activation_checkpointing
    kept, again = 0.0, 0.0
    for part, count in zip(parts, counts, strict=True):
        sums, largest = _depth_bytes(setup.model, setup.seq_len, kind, rules)
        kept += count * (sums[part.layers.stop] - sums[part.layers.start])
        again = max(again, largest)
        if part.is_last:
            kept += end_bytes_per_token(setup.model, rules)
    return round(setup.micro_batch_tokens * (kept + again))


@lru_cache(maxsize=1024)
def _depth_bytes(
    model: ModelConfig, seq_len: int, kind: str, rules: Rules
) -> tuple[tuple[float, ...], float]:
    """What blocks keep for each token, summed over those before each; and the most that one
    computes again."""
    sums, again = [0.0], 0.0
    width = describe(model).architecture.hidden_size
    for layer in describe(model).architecture.layers:
        kept = bytes_per_token(layer, width, seq_len, kind, rules)  # type: ignore[arg-type]
        sums.append(sums[-1] + kept)
        again = max(again, bytes_per_token(layer, width, seq_len, "none", rules) - kept)
    return tuple(sums), again


def end_bytes_per_token(model: ModelConfig, rules: Rules) -> float:
    """What the last norm keeps, and the loss: the gradient of its input, of all tokens."""
    architecture = describe(model).architecture
    share = rules.residual_share
    norm = norm_terms("norm", architecture.norm, architecture.hidden_size * share, share, rules)
    return sum(term.bytes_per_token for term in norm) + rules.size * architecture.hidden_size


def _logits(setup: Setup) -> int:
    """A chunk's logits, in fp32 too where nothing is compiled (four times over in the gradient,
    `models.layers.loss.chunk_gradient`), and the head's gradient, in fp32 if chunks are added; none
    where it is frozen."""
    architecture = describe(setup.model).architecture
    rows = architecture.vocab_size // setup.parallel.tensor
    tokens, size = setup.micro_batch_tokens, setup.compute_bytes
    if setup.parallel.engine == "deepspeed" and setup.parallel.tensor > 1:
        return (size + 2 * FP32) * tokens * rows  # megatron-core's loss, of all tokens at once
    chunk = min(tokens, CHUNK_TOKENS * (16 if setup.parallel.compile else 1))
    logits = chunk * rows * (size if setup.parallel.compile else size + 4 * FP32)
    head = rows * architecture.hidden_size * (size if chunk == tokens else FP32)
    return logits + (head if setup.model.lora is None else 0)


def _stage_messages(setup: Setup, parts: Sequence[StagePart], counts: Sequence[int]) -> int:
    """Outputs for other processes, kept until their gradients have come; and on their way: inputs
    (which a block keeps as its own afterwards), gradients, and one that is sent back."""
    if setup.parallel.pipeline == 1:
        return 0
    kept = sum(count for part, count in zip(parts, counts, strict=True) if part.sends_on)
    has_former = any(part.sends_back for part in parts)
    early = EARLY_RECEIVES if len(parts) > 1 else 1
    arriving = early * (has_former + any(part.sends_on for part in parts))
    return round((kept + arriving + has_former) * hidden_bytes(setup))


def hidden_bytes(setup: Setup) -> float:
    """Of what one pipeline stage sends to the next for a micro-batch."""
    width = describe(setup.model).architecture.hidden_size * Rules.of(setup).residual_share
    return setup.compute_bytes * setup.micro_batch_tokens * width


def _attends_in_tiles(setup: Setup) -> bool:
    """Whether attention itself knows which tokens see which, without a mask of all."""
    size, tensor = setup.layout.context, setup.parallel.tensor
    if size == 1:
        return False
    model = describe(setup.model).architecture
    return method_of(setup.parallel.context_method, model, size, tensor) != "ulysses"


def _inner_gradients(setup: Setup) -> int:
    """Of the widest feed-forward layer: three times what its products make; of experts those of
    each token, with the rows that go to them and, weighted in fp32, come from them."""
    widest = _inner_bytes(setup.model, setup.parallel.tensor, setup.compute_bytes)
    return setup.micro_batch_tokens * widest


@lru_cache(maxsize=256)
def _inner_bytes(model: ModelConfig, tensor: int, size: int) -> int:
    architecture, most = describe(model).architecture, 0
    for layer in (each.feed_forward for each in architecture.layers):
        width, rows = layer.hidden_size, 0
        if isinstance(layer, Experts):
            top_k = layer.router.top_k
            width = top_k * layer.hidden_size + layer.shared_hidden_size
            rows = top_k * architecture.hidden_size * (2 * size + FP32)
        most = max(most, 3 * size * width // tensor + rows)
    return most


def buffer_terms(setup: Setup, parts: Sequence[StagePart]) -> Iterator[tuple[str, int]]:
    """Smaller things that a process holds, each with its bytes."""
    model, tokens = describe(setup.model).architecture, setup.micro_batch_tokens
    size, share = setup.compute_bytes, Rules.of(setup).residual_share
    layer = model.layers[0]
    # Tokens, targets and document ids in 8 bytes each, of three steps: this and two ahead.
    yield "batches", 3 * 8 * 3 * tokens * setup.num_micro_batches
    own_tokens = setup.seq_len // setup.layout.context
    yield "rotary table", 2 * FP32 * own_tokens * layer.attention.head_dim
    if setup.has_documents and not setup.parallel.compile and not _attends_in_tiles(setup):
        yield "mask", setup.batch.micro_batch_size * setup.seq_len**2
    hidden = round(size * model.hidden_size * tokens * share)
    yield "a block's gradients of activations", 2 * hidden + _inner_gradients(setup)
    if setup.shards and setup.weight_shards > 1:
        largest = max(
            part.elements.largest_block.whole + part.frozen.largest_block.whole for part in parts
        )
        yield "messages of ZeRO", 2 * size * largest
    yield "optimizer's step counts", FP32 * sum(p.elements.updated.num_parameters for p in parts)
