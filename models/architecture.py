"""What a model is made of, layer by layer, as plain data. Imports no torch.

A family says it of its config; the model's modules and its table of parameters follow from it.
Layers may differ from each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from triax.common.section import LARGEST_FP32, PositiveFp32, Section


class RopeScaling(Section):
    """Stretches RoPE's low frequencies for contexts longer than the original.

    Sources: `rope_type = "llama3"` as published with Llama 3.1; YaRN (Peng et al. 2023).
    """

    kind: Literal["llama3", "yarn"] = "llama3"
    factor: float = Field(gt=1, le=LARGEST_FP32)
    original_seq_len: PositiveInt = 8192
    low_freq_factor: PositiveFp32 = 1.0
    """`llama3`: frequencies that turn less often within the original context are divided by
    `factor`,"""
    high_freq_factor: PositiveFp32 = 4.0
    """and those that turn more often are kept."""
    beta_slow: PositiveFp32 = 1.0
    """`yarn`: likewise, counted in whole dimensions;"""
    beta_fast: PositiveFp32 = 32.0
    """and attention's logits are multiplied by (0.1 ln factor + 1)^2."""

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be below high_freq_factor")
        if self.beta_slow >= self.beta_fast:
            raise ValueError("beta_slow must be below beta_fast")
        others = {
            "llama3": ("beta_slow", "beta_fast"), "yarn": ("low_freq_factor", "high_freq_factor")
        }[self.kind]  # fmt: skip
        for name in others:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} means nothing with kind = "{self.kind}"')
        return self


class NormKind(StrEnum):
    """How hidden states are normalised."""

    RMS = "rms"
    """By their root mean square, times a weight (Zhang and Sennrich 2019)."""
    LAYER = "layer"
    """By mean and variance, times a weight, plus a bias (Ba et al. 2016)."""


class FeedForwardKind(StrEnum):
    """What a feed-forward layer computes."""

    SWIGLU = "swiglu"
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020)."""
    GELU = "gelu"
    """`down(gelu(up(x)))`, with GELU by a tanh, as GPT-2 has it."""


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last dimension."""

    kind: NormKind
    eps: float

    @property
    def has_bias(self) -> bool:
        """Whether something is added at the end."""
        return self.kind is NormKind.LAYER


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021)."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Attention:
    """Causal self-attention."""

    num_heads: int
    num_query_groups: int
    """Heads of keys and values, each shared by a group of query heads."""
    head_dim: int
    has_bias: bool = False
    """Of all four projections."""
    qk_norm: Norm | None = None
    """Of each query's and key's head dimension, before their positions."""
    norms_heads_jointly: bool = False
    """That norm is over all heads of a token at once: OLMo's."""
    rotary: Rotary | None = None
    window: int | None = None
    """A token sees itself and the `window - 1` tokens before it."""

    def flops_per_token(self, seq_len: int) -> int:
        """Of scores and mixed values, forward and backward: 12HKT (PaLM, appendix B); causal
        masking isn't deducted, a window bounds T."""
        return 12 * self.num_heads * self.head_dim * min(seq_len, self.window or seq_len)


@dataclass(frozen=True)
class FeedForward:
    """The layer that works on each token by itself."""

    kind: FeedForwardKind
    hidden_size: int
    has_bias: bool = False


class ScoreKind(StrEnum):
    """What makes scores of a router's logits."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class Router:
    """What chooses experts for a token, and how their outputs are weighted."""

    scores: ScoreKind
    top_k: int
    is_normalised: bool
    """The weights of a token's experts are divided by their sum."""
    scale: float = 1.0
    """Multiplies the weights."""
    num_groups: int = 1
    """Experts are divided into so many groups of neighbours,"""
    num_chosen_groups: int = 1
    """of which a token may choose from the best ones: DeepSeek's."""
    sequence_loss: float = 0.0
    batch_loss: float = 0.0
    z_loss: float = 0.0
    bias_rate: float = 0.0
    """How balance is kept: see `models/layers/router.py`. A bias exists where its rate isn't 0."""


@dataclass(frozen=True)
class Experts:
    """A mixture of SwiGLU layers: each token goes through some of them, and the shared one."""

    num_experts: int
    hidden_size: int
    """Of each."""
    router: Router
    shared_hidden_size: int = 0
    """Of one more, which all tokens go through; 0 for none."""


@dataclass(frozen=True)
class Layer:
    """A pre-norm residual block: attention, then feed-forward."""

    norm: Norm
    """Before each of the two."""
    attention: Attention
    feed_forward: FeedForward | Experts


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer: embedding, layers, norm, head and loss."""

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    norm: Norm
    """Of the last layer's output."""
    init_std: float
    """Of matrices; those that write to the residual stream get it over sqrt(2L), as in GPT-2."""
    num_positions: int | None = None
    """Positions that have a learned vector, and so the longest sequence; None has no such."""
    tie_embeddings: bool = False
    logit_softcap: float | None = None
    z_loss: float = 0.0
