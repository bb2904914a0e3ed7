"""The `[objective]` section. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from triax.common.section import PositiveFp32, Section


class ObjectiveConfig(Section):
    """`[objective]`: what the run learns from its data."""

    kind: Literal["pretrain", "sft", "dpo"] = "pretrain"
    """`pretrain`: the next token of text. `sft`: the assistant's words in conversations, and the
    next token of text where a source is text (supervised fine-tuning). `dpo`: to prefer one answer
    to another, from pairs (direct preference optimization)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`dpo` only: of Rafailov et al. 2023, or of Azar et al. 2023, which pulls the margin to
    1 / (2 beta) and takes the mean over an answer's tokens."""
    beta: PositiveFp32 = 0.1
    """`dpo` only: how dear it is to leave the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """`dpo` with the sigmoid loss only: the share of pairs that are taken to be the wrong way
    round (Mitchell 2023)."""
    length_normalised: bool = False
    """`dpo` only: log-probabilities are means over an answer's tokens, not sums, so that long
    answers aren't preferred for being long. IPO always takes means."""
