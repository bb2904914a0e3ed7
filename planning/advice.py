"""How large a model and how many tokens a budget of FLOPs is best spent on, and at which learning
rate and batch: published rules, each with its source. Advice, not law. Imports no torch.

Letters: C FLOPs of a run, N parameters, D tokens; C = 6 N D (Kaplan et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOPS_PER_PARAMETER_AND_TOKEN = 6


@dataclass(frozen=True)
class Optimum:
    """A model size and a number of tokens.

    Attributes:
        parameters: N.
        tokens: D.
        rule: which says so.
        source: of the rule.
    """

    parameters: float
    tokens: float
    rule: str
    source: str

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


@dataclass(frozen=True)
class LossFit:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token.

    Attributes:
        e, a, b, alpha, beta: of the formula.
        rule, source: see `Optimum`.
    """

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    rule: str
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the fit expects."""
        of_size: float = self.a / parameters**self.alpha
        of_data: float = self.b / tokens**self.beta
        return self.e + of_size + of_data

    def optimum(self, flops: float) -> Optimum:
        """The least loss at C = 6 N D: N = G (C / 6)^(beta / (alpha + beta)) with
        G = (alpha A / (beta B))^(1 / (alpha + beta)); Hoffmann et al. 2022, equation 4."""
        total = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / total)
        budget = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        parameters = scale * budget ** (self.beta / total)
        return Optimum(parameters, budget / parameters, self.rule, self.source)


APPROACH_3 = LossFit(
    1.6934, 406.4, 410.7, 0.3392, 0.2849,
    "approach 3: parametric loss",
    "Hoffmann et al. 2022, section 3.3; digits beyond the paper's as in Besiroglu et al. 2024",
)  # fmt: skip
REFIT = LossFit(
    1.8172, 482.01, 2085.43, 0.3478, 0.3658,
    "refit of approach 3",
    "Besiroglu et al. 2024 (Chinchilla Scaling: A replication attempt)",
)  # fmt: skip


@dataclass(frozen=True)
class PowerLaw:
    """N = N0 (C / C0)^exponent, through a row of the paper's own table.

    Attributes:
        exponent: of C.
        flops, parameters: of the row.
        rule, source: see `Optimum`.
    """

    exponent: float
    flops: float
    parameters: float
    rule: str
    source: str

    def optimum(self, flops: float) -> Optimum:
        """N by the law, and the tokens that C = 6 N D leaves it."""
        parameters = self.parameters * (flops / self.flops) ** self.exponent
        tokens = flops / FLOPS_PER_PARAMETER_AND_TOKEN / parameters
        return Optimum(parameters, tokens, self.rule, self.source)


APPROACH_1 = PowerLaw(
    0.498, 1.23e22, 10e9,
    "approach 1: envelope of curves",
    "Hoffmann et al. 2022, section 3.1: exponent 0.50 (0.488, 0.502), table 3 at 10B",
)  # fmt: skip
APPROACH_2 = PowerLaw(
    0.490, 1.32e22, 10e9,
    "approach 2: IsoFLOP profiles",
    "Hoffmann et al. 2022, section 3.2: exponent 0.49, table A3 at 10B",
)  # fmt: skip
RULES: Sequence[PowerLaw | LossFit] = (APPROACH_1, APPROACH_2, APPROACH_3, REFIT)
"""The papers give approach 1 and 2 as exponents and tables; each law here goes through one row of
its table, and tests hold it to the others."""


def optima(flops: float) -> list[Optimum]:
    """What each rule advises for so many FLOPs."""
    return [rule.optimum(flops) for rule in RULES]


@dataclass(frozen=True)
class OverTraining:
    """A smaller model, trained longer at the same FLOPs: cheaper to use.

    Attributes:
        multiple: of the optimum's tokens a parameter.
        parameters, tokens: N and D.
        loss: that the fit expects.
        flops_to_match: times the FLOPs, at this ratio, for the optimum's loss.
    """

    multiple: float
    parameters: float
    tokens: float
    loss: float
    flops_to_match: float


def over_training(
    flops: float, multiples: Sequence[float] = (1, 2, 5, 10, 50), fit: LossFit = REFIT
) -> list[OverTraining]:
    """What over-training costs by a fit of the loss (as in Sardana et al. 2023, section 3)."""
    best = fit.optimum(flops)
    aim = fit.loss(best.parameters, best.tokens)
    rows = []
    for multiple in multiples:
        smaller = math.sqrt(multiple)
        parameters, tokens = best.parameters / smaller, best.tokens * smaller
        factor = _factor_for_loss(fit, parameters, tokens, aim)
        rows.append(
            OverTraining(multiple, parameters, tokens, fit.loss(parameters, tokens), factor)
        )
    return rows


def _factor_for_loss(fit: LossFit, parameters: float, tokens: float, aim: float) -> float:
    """Times the FLOPs, at the same tokens a parameter, that bring the loss down to `aim`."""
    low, high = 1.0, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        grown = math.sqrt(middle)
        if fit.loss(parameters * grown, tokens * grown) > aim:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Hyperparameters:
    """A learning rate and a batch.

    Attributes:
        lr: AdamW's peak.
        batch_tokens: of an update.
        source: of the rules.
    """

    lr: float
    batch_tokens: float
    source: str


def hyperparameters(parameters: float, tokens: float) -> list[Hyperparameters]:
    """Published rules.

    Args:
        parameters: N; both papers leave the embeddings out, which matters for small models.
        tokens: D.
    """
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    return [
        Hyperparameters(
            0.3118 * flops**-0.1250,
            0.2920 * flops**0.3271,
            "DeepSeek LLM (Bi et al. 2024), section 3.1: lr 0.3118 C^-0.125, "
            "batch 0.2920 C^0.3271 tokens",
        ),
        Hyperparameters(
            1.79 * parameters**-0.713 * tokens**0.307,
            0.58 * tokens**0.571,
            "Step Law (Li et al. 2025): lr 1.79 N^-0.713 D^0.307, batch 0.58 D^0.571 tokens",
        ),
    ]
