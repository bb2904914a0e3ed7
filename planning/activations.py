"""What the forward pass keeps for the backward pass, byte by byte of a token. Imports no torch.

A table of terms instead of one formula, so that each can be shown with its reason. For Korthikanti
et al.'s GPT (2022: dropout, scores kept, 16 bits) the terms sum to their sbh(34 + 5as/h); a test
holds them to it.

Letters: D hidden size, H heads, G key/value heads, K head dimension, F feed-forward size, T tokens
of a sequence; of a layer with experts F is the size of each, E their number, K those of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from triax.models.architecture import Experts, FeedForward, FeedForwardKind, Layer, Norm, NormKind
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.lora import LoraConfig, Target
from triax.planning.setup import Setup

_FP32, _INT64 = 4, 8
Kind = Literal["none", "selective", "full"]


class Term(NamedTuple):
    """One thing that is kept."""

    name: str
    bytes_per_token: float


@dataclass(frozen=True)
class Rules:
    """How a block is computed, as far as it decides what is kept.

    Attributes:
        size: bytes of an activation.
        tensor: processes that divide every layer.
        divides_tokens: sequence parallelism: what lies between the split layers is divided too.
        is_compiled: the compiler makes elementwise results anew where that costs no memory traffic.
        on_cpu: a CPU's RMSNorm keeps its input and its result in fp32.
        size_of_inputs: bytes of what a matrix product keeps of its input; 1 for compiled fp8.
        keeps_scores: attention without a fused kernel keeps the T x T softmax of every head.
        has_dropout: as Megatron's GPT has it: one byte for each element of both residual branches,
            and of the softmax, which is kept once more after its dropout.
        expert: processes over which experts are divided.
        lora: of the model, whose weights then are frozen: what only their gradients read isn't
            kept.
        gathers_again: products keep their part of the tokens and gather the others again in the
            backward pass (Megatron's choice); here the gathered input is kept.
    """

    size: int
    tensor: int = 1
    divides_tokens: bool = False
    is_compiled: bool = False
    on_cpu: bool = False
    size_of_inputs: int = 2
    keeps_scores: bool = False
    has_dropout: bool = False
    expert: int = 1
    lora: LoraConfig | None = None
    gathers_again: bool = False

    @staticmethod
    def of(setup: Setup) -> Rules:
        """Those of a run."""
        parallel = setup.parallel
        is_fp8 = setup.precision.compute == "fp8" and parallel.compile
        return Rules(
            size=setup.compute_bytes,
            tensor=parallel.tensor,
            divides_tokens=setup.divides_tokens,
            is_compiled=parallel.compile,
            on_cpu=setup.device == "cpu",
            size_of_inputs=1 if is_fp8 else setup.compute_bytes,
            keeps_scores=_keeps_scores(setup),
            expert=parallel.expert,
            lora=setup.model.lora,
        )

    @property
    def residual_share(self) -> float:
        """What a process has of the tokens between the split layers."""
        return 1 / self.tensor if self.divides_tokens else 1.0

    def keeps_input(self, *targets: Target) -> bool:
        """Whether products with these layers' weights or adapters keep what they multiply."""
        return self.lora is None or any(target in self.lora.targets for target in targets)

    def between_factors(self, *targets: Target) -> Iterator[Term]:
        """What lies between the factors of these layers' adapters."""
        num = 0 if self.lora is None else len(set(targets) & set(self.lora.targets))
        if self.lora is not None and num:
            size = self.size * num * self.lora.rank
            yield Term(f"adapters of {', '.join(targets)}: between the factors", size)

    @property
    def input_share(self) -> float:
        """What a process keeps of the tokens that go into the split layers."""
        return self.residual_share if self.gathers_again else 1.0


def _keeps_scores(setup: Setup) -> bool:
    """On CUDA, uncompiled, no kernel takes both masks and grouped queries (docs/precision.md)."""
    if setup.device == "cpu" or setup.parallel.compile:
        return False
    return _is_grouped_and_masked(setup.model, setup.seq_len, setup.has_documents)


@lru_cache(maxsize=64)
def _is_grouped_and_masked(model: ModelConfig, seq_len: int, has_documents: bool) -> bool:
    kinds = {layer.attention for layer in describe(model).architecture.layers}
    is_grouped = any(kind.num_heads != kind.num_query_groups for kind in kinds)
    return is_grouped and (
        has_documents or any((kind.window or seq_len) < seq_len for kind in kinds)
    )


@lru_cache(maxsize=4096)
def block_terms(
    layer: Layer, width: int, seq_len: int, kind: Kind, rules: Rules
) -> tuple[Term, ...]:
    """What a block keeps for each token of a micro-batch.

    Args:
        layer: the block's.
        width: D.
        seq_len: T, which only kept scores depend on.
        kind: `parallel.activation_checkpointing`.
        rules: how it is computed.
    """
    experts = layer.feed_forward if isinstance(layer.feed_forward, Experts) else None
    if experts is not None:
        # Of such a block only attention is compiled.
        rules = replace(rules, is_compiled=False, size_of_inputs=rules.size)
    if kind == "full":
        terms = [Term("block's input", rules.size * width * rules.residual_share)]
        if experts is not None:
            terms.append(Term("chosen experts", _INT64 * experts.router.top_k))
        return tuple(terms)
    if kind == "selective":
        return tuple(_kept_by_selective(layer, width, rules))
    return tuple(_kept_by_none(layer, width, seq_len, rules))


def bytes_per_token(layer: Layer, width: int, seq_len: int, kind: Kind, rules: Rules) -> float:
    """The sum of `block_terms`."""
    return sum(term.bytes_per_token for term in block_terms(layer, width, seq_len, kind, rules))


def norm_terms(name: str, norm: Norm, size: float, rows: float, rules: Rules) -> Iterator[Term]:
    """What a norm keeps: its input and a row's statistics, of `rows` rows of together `size`
    elements a token; eager RMSNorm on a CPU input and result in fp32."""
    if norm.kind is NormKind.RMS:
        statistics = _FP32 * rows
        if rules.on_cpu and not rules.is_compiled:
            # The result is kept for the gradient of the weight.
            num = 2 if rules.lora is None else 1
            yield Term(f"{name}: input and result in fp32", num * _FP32 * size + statistics)
            return
    else:
        statistics = 2 * (rules.size if rules.on_cpu else _FP32) * rows
    yield Term(f"{name}: input", rules.size * size)
    yield Term(f"{name}: statistics", statistics)


def _kept_by_none(layer: Layer, width: int, seq_len: int, rules: Rules) -> Iterator[Term]:
    attention, size, share = layer.attention, rules.size, rules.residual_share
    heads, groups = attention.num_heads / rules.tensor, attention.num_query_groups / rules.tensor
    queries, keys = heads * attention.head_dim, groups * attention.head_dim
    products = rules.size_of_inputs
    yield from norm_terms("attention norm", layer.norm, width * share, share, rules)
    if rules.keeps_input("query", "key", "value"):
        yield Term("query, key, value: input", products * width * rules.input_share)
    yield from rules.between_factors("query", "key", "value", "output")
    if attention.qk_norm is not None:
        both = queries + keys
        yield from norm_terms("query and key norm", attention.qk_norm, both, heads + groups, rules)
    yield Term("attention: query, key, value", size * (queries + 2 * keys))
    yield from _core(heads, queries, seq_len, rules)
    if products != size:
        yield Term("output: input in fp8", products * queries)
    if rules.has_dropout:
        yield Term("dropout masks of both branches", 2 * width * share)
    yield from norm_terms("feed-forward norm", layer.norm, width * share, share, rules)
    if isinstance(layer.feed_forward, Experts):
        yield from _experts(layer.feed_forward, width, rules)
        return
    if rules.keeps_input("gate", "up"):
        yield Term("feed-forward: input", products * width * rules.input_share)
    yield from rules.between_factors("gate", "up", "down")
    yield from _feed_forward(layer.feed_forward, rules)


def _core(heads: float, queries: float, seq_len: int, rules: Rules) -> Iterator[Term]:
    """Attention's own result, which `output` reads too, and what brings its softmax back."""
    yield Term("attention: result", rules.size * queries)
    scores = heads * seq_len
    if not rules.keeps_scores:
        yield Term("attention: sums of the softmax", _FP32 * heads)
        return
    yield Term("attention: softmax", rules.size * scores)
    if rules.has_dropout:
        yield Term("attention: dropout", (rules.size + 1) * scores)


def _feed_forward(layer: FeedForward, rules: Rules) -> Iterator[Term]:
    hidden = layer.hidden_size / rules.tensor
    if layer.kind is FeedForwardKind.SWIGLU:
        yield Term("feed-forward: gate and up", 2 * rules.size * hidden)
        if not rules.is_compiled:
            yield Term("feed-forward: silu(gate)", rules.size * hidden)
    else:
        yield Term("feed-forward: up", rules.size * hidden)
    if rules.keeps_input("down"):
        yield Term("down: input", rules.size_of_inputs * hidden)


def _experts(layer: Experts, width: int, rules: Rules) -> Iterator[Term]:
    """On all tokens of the tensor axis, and a row for each expert of each token; those that come
    from other processes are as many as those that go, if the load is even."""
    top_k, size = layer.router.top_k, rules.size
    hidden = top_k * layer.hidden_size / rules.tensor
    yield Term("router: input in fp32", _FP32 * width)
    yield Term("router: logits and scores", 2 * _FP32 * layer.num_experts)
    yield Term("router: choice and weights", (_INT64 + 2 * _FP32) * top_k + 3 * _FP32)
    orders = 2 if rules.expert == 1 else 4
    yield Term("experts: order of the rows", orders * _INT64 * top_k)
    yield Term("experts: input", size * top_k * width)
    yield Term("experts: gate, silu(gate), up and their product", 4 * size * hidden)
    yield Term("experts: result", size * top_k * width)
    if layer.shared_hidden_size:
        shared = FeedForward(FeedForwardKind.SWIGLU, layer.shared_hidden_size)
        if size != _FP32:  # in fp32 the router's is the same
            yield Term("shared expert: input", size * width)
        yield from _feed_forward(shared, rules)


def _kept_by_selective(layer: Layer, width: int, rules: Rules) -> Iterator[Term]:
    """Results of matrix products, attention and messages (`parallel.parallelize._EXPENSIVE`)."""
    attention, size, share = layer.attention, rules.size, rules.residual_share
    heads, groups = attention.num_heads / rules.tensor, attention.num_query_groups / rules.tensor
    queries, keys = heads * attention.head_dim, groups * attention.head_dim
    yield Term("block's input", size * width * share)
    yield Term("query, key, value: results", size * (queries + 2 * keys))
    yield Term("attention: result", size * queries)
    yield Term("attention: sums of the softmax", _FP32 * heads)
    yield Term("output: result", size * width)
    # The compiler drops the last product's result, which nothing reads again.
    ends = 1 if rules.is_compiled else 2
    if isinstance(layer.feed_forward, Experts):
        yield from _results_of_experts(layer.feed_forward, width, rules)
    else:
        if not rules.is_compiled:
            yield Term("down: result", size * width)
        hidden = layer.feed_forward.hidden_size / rules.tensor
        num_ups = 2 if layer.feed_forward.kind is FeedForwardKind.SWIGLU else 1
        yield Term("feed-forward: gate and up", num_ups * size * hidden)
    if rules.tensor > 1:
        yield Term("output, down: summed results", ends * size * width * share)
        if rules.divides_tokens:
            yield Term("gathered inputs", 2 * size * width)


def _results_of_experts(layer: Experts, width: int, rules: Rules) -> Iterator[Term]:
    top_k, size = layer.router.top_k, rules.size
    yield Term("router: logits", _FP32 * layer.num_experts)
    yield Term("router: choice", (_INT64 + _FP32) * top_k)
    hidden = top_k * layer.hidden_size / rules.tensor
    yield Term("experts: gate and up", 2 * size * hidden)
    yield Term("experts: result", size * top_k * width)
    if rules.expert > 1:
        yield Term("experts: rows from other processes", 2 * size * top_k * width)
    if layer.shared_hidden_size:
        hidden = layer.shared_hidden_size / rules.tensor
        yield Term("shared expert: gate, up and result", size * (2 * hidden + width))
