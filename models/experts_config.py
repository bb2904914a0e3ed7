"""The `[model.experts]` section: layers in which each token goes through some of many feed-forward
layers. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from triax.common.section import NonNegativeFp32, PositiveFp32, Section
from triax.models.architecture import Experts, Router, ScoreKind
from triax.models.config import Size

MOST_EXPERTS = 4096


def _as_tuple(value: object) -> object:
    """JSON and TOML have lists only."""
    return tuple(value) if isinstance(value, list) else value


class ExpertsConfig(Section):
    """The experts of a layer, which layers have them, and how their load is balanced.

    docs/experts.md has the definitions and where the defaults come from.
    """

    num_experts: int = Field(gt=1, le=MOST_EXPERTS)
    top_k: PositiveInt
    """Experts that a token goes through."""
    ffn_hidden_size: Size
    """Of each expert."""
    num_shared_experts: NonNegativeInt = 0
    """Experts that all tokens go through besides, as one layer of so many times the width."""
    first_dense_layers: NonNegativeInt = 0
    """So many layers at the beginning have no experts."""
    layer_step: PositiveInt = 1
    """Of the others, only each so manieth layer has (counted from the model's first): Qwen's
    `decoder_sparse_step`."""
    dense_layers: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_as_tuple)] = ()
    """Numbers of more layers without, from 0."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    """Divide the weights of a token's experts by their sum."""
    scale: PositiveFp32 = 1.0
    """Multiplies these weights."""
    num_groups: PositiveInt = 1
    """Experts in so many groups (DeepSeek-V3)."""
    num_chosen_groups: PositiveInt = 1
    """Groups that a token may choose its experts from."""
    sequence_loss: NonNegativeFp32 = 0.0
    """Weight of the balance loss of each sequence (DeepSeek-V2, equations 12 to 14)."""
    batch_loss: NonNegativeFp32 = 0.01
    """Weight of the balance loss with the load of the whole batch before."""
    z_loss: NonNegativeFp32 = 0.001
    """Weight of the squared log-normaliser of the router's logits (ST-MoE, equation 5)."""
    bias_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much a step changes each expert's bias in the choice (DeepSeek-V3); 0 for none."""

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than num_experts {self.num_experts}")
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts {self.num_experts} is not a multiple of num_groups {self.num_groups}"
            )
        if self.num_chosen_groups > self.num_groups:
            raise ValueError(
                f"num_chosen_groups {self.num_chosen_groups} is more than num_groups "
                f"{self.num_groups}"
            )
        size = self.num_experts // self.num_groups
        if self.num_chosen_groups * size < self.top_k:
            raise ValueError(
                f"{self.num_chosen_groups} groups of {size} experts are fewer than top_k "
                f"{self.top_k}: raise num_chosen_groups"
            )
        if self.num_groups > 1 and size < 2:
            raise ValueError(f"num_groups {self.num_groups} leaves groups of one expert")
        return self

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, numbered from 0, has experts."""
        is_dense = layer < self.first_dense_layers or layer in self.dense_layers
        return not is_dense and (layer + 1) % self.layer_step == 0

    def layer(self) -> Experts:
        """What such a layer is made of."""
        router = Router(
            scores=ScoreKind(self.scores),
            top_k=self.top_k,
            is_normalised=self.normalise,
            scale=self.scale,
            num_groups=self.num_groups,
            num_chosen_groups=self.num_chosen_groups,
            sequence_loss=self.sequence_loss,
            batch_loss=self.batch_loss,
            z_loss=self.z_loss,
            bias_rate=self.bias_rate,
        )
        shared = self.num_shared_experts * self.ffn_hidden_size
        return Experts(self.num_experts, self.ffn_hidden_size, router, shared)
