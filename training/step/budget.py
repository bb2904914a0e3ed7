"""How long a run is: the budget in tokens, rounded down to whole steps once. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from triax.common.errors import UserError
from triax.common.quantities import MAX_COUNT, format_count
from triax.models.config import ModelConfig
from triax.models.counts import num_active_parameters
from triax.training.config import BudgetConfig


@dataclass(frozen=True)
class Budget:
    """A run's length. Tokens are sequences x seq_len, masked ones included."""

    num_steps: int
    tokens_per_step: int

    @property
    def num_tokens(self) -> int:
        """The tokens the run trains on: whole steps."""
        return self.num_steps * self.tokens_per_step


def counted_parameters(budget: BudgetConfig, model: ModelConfig) -> int:
    """The model's parameters by the convention that `budget.parameters` names; of experts, those
    that a token passes."""
    return num_active_parameters(model, with_embeddings=budget.parameters == "total")


def chinchilla_tokens(budget: BudgetConfig, model: ModelConfig) -> int:
    """The compute-optimal number of tokens: `tokens_per_parameter` x parameters.

    Source: Hoffmann et al. 2022, whose fits come to about 20 tokens per parameter, all
    parameters counted.

    Raises:
        UserError: the product is no number of tokens that a run could have.
    """
    num_counted = counted_parameters(budget, model)
    tokens = budget.tokens_per_parameter * num_counted
    if tokens > MAX_COUNT:
        raise UserError(
            f"budget.tokens_per_parameter: {budget.tokens_per_parameter:g} tokens for each of "
            f"{num_counted:.3g} parameters is no budget"
        )
    return int(tokens)


def resolve_budget(budget: BudgetConfig, model: ModelConfig, tokens_per_step: int) -> Budget:
    """The run's length in whole steps of `tokens_per_step` tokens, rounded down.

    Raises:
        UserError: the budget is below one step, or no number of tokens that a run could have.
    """
    assert tokens_per_step > 0
    requested = (
        budget.tokens if isinstance(budget.tokens, int) else chinchilla_tokens(budget, model)
    )
    num_steps = requested // tokens_per_step
    if num_steps < 1:
        raise UserError(
            f"budget.tokens: {format_count(requested)} tokens are less than one step of "
            f"{tokens_per_step:,} tokens (batch.global_batch_size x data.seq_len); "
            "raise the budget or lower the batch"
        )
    return Budget(num_steps, tokens_per_step)
