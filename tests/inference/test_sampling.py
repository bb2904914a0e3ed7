"""Filters of a distribution, against `transformers`' own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from triax.common.errors import UserError
from triax.inference.sampling import Sampling

LOGITS = torch.randn(2, 12, generator=torch.Generator().manual_seed(3)) * 2
SEEN = [[1, 4, 4], [0, 11, 7]]


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(temperature=0.5), [TemperatureLogitsWarper(0.5)]),
        (Sampling(top_k=4), [TopKLogitsWarper(4)]),
        (Sampling(top_p=0.6), [TopPLogitsWarper(0.6)]),
        (Sampling(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (Sampling(repetition_penalty=1.7), [RepetitionPenaltyLogitsProcessor(1.7)]),
        (
            Sampling(repetition_penalty=1.7, temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
            [
                RepetitionPenaltyLogitsProcessor(1.7), TemperatureLogitsWarper(1.3),
                TopKLogitsWarper(9), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05),
            ],
        ),
    ],
)  # fmt: skip
def test_draws_have_the_distribution_of_transformers(sampling: Sampling, warpers: Any) -> None:
    filters: Any = LogitsProcessorList(warpers)
    expected_BV = filters(torch.tensor(SEEN), LOGITS.clone()).softmax(-1)
    seen_BV = torch.zeros(2, 12, dtype=torch.bool).scatter(-1, torch.tensor(SEEN), True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    counts_BV = torch.zeros(2, 12)
    num_draws = 4000
    for _ in range(num_draws):
        tokens_B, log_probs_B = sampling.draw(LOGITS, seen_BV, generators)
        counts_BV.scatter_add_(-1, tokens_B[:, None], torch.ones(2, 1))
    own_BV = LOGITS.log_softmax(-1)
    assert torch.equal(log_probs_B, own_BV.gather(-1, tokens_B[:, None])[:, 0])
    assert torch.all((counts_BV == 0) | (expected_BV > 0)), "what is filtered out is never drawn"
    error = (counts_BV / num_draws - expected_BV).abs()
    assert float(error.max()) < 5 * math.sqrt(0.25 / num_draws)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1.0}, "--temperature: expected a number of at least 0, got -1.0"),
        ({"temperature": math.nan}, "--temperature"),
        ({"top_p": 0.0}, "--top-p: expected a number above 0 and at most 1"),
        ({"min_p": 1.5}, "--min-p: expected a number from 0 to 1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty: expected a number above 0"),
    ],
)
def test_what_makes_no_sense_is_told(values: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Sampling(**values)  # type: ignore[arg-type]
