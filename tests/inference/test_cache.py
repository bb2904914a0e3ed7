"""With a cache, in batches of unequal prompts, texts are those of `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from triax.inference.generate import generate, generate_batch
from triax.inference.load import find_model
from triax.inference.sampling import Sampling
from triax.models.layers.transformer import Transformer

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "window": transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=6),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=16),
    "gpt2": transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None,
    ),
}  # fmt: skip
MOE: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "num_experts_per_tok": 2}
EXPERTS: dict[str, transformers.PretrainedConfig] = {
    "mixtral": transformers.MixtralConfig(**MOE, num_local_experts=4, sliding_window=6),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **(MOE | {"head_dim": 16}), num_experts=4, moe_intermediate_size=24, mlp_only_layers=[1],
    ),
    "olmoe": transformers.OlmoeConfig(**MOE, num_experts=4),
    "dots1": transformers.Dots1Config(
        **MOE, n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=24, n_group=2,
        topk_group=1, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.0,
    ),
}  # fmt: skip
PROMPTS = [[5, 9, 2, 33, 7, 1, 60, 4, 12], [3], [8, 8, 8, 41], [17, 2, 55, 9, 30, 21, 4]]
GREEDY = Sampling(temperature=0)


def theirs_of(name: str) -> Any:
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config((CONFIGS | EXPERTS)[name]).eval()


def pair_of(name: str, folder: Path) -> tuple[Any, Transformer]:
    """Their model, and ours of its folder."""
    theirs = theirs_of(name)
    theirs.save_pretrained(folder)
    return theirs, find_model(str(folder)).load()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pair_of(request.param, tmp_path_factory.mktemp(request.param))


def rows(model: Transformer, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 20, "context": 128, "sampling": GREEDY}
    texts: list[list[int]] = [[] for _ in prompts]
    for step in generate_batch(model, prompts, **(settings | {"seeds": range(9)} | options)):
        for text, new in zip(texts, step, strict=True):
            text += [] if new is None else [new.token]
    return texts


@pytest.mark.parametrize("name", [*CONFIGS, *EXPERTS])
def test_greedy_texts_of_200_prompts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Below and past the sliding window; theirs are written by forties of one length, ours all
    together."""
    theirs, ours = pair_of(name, tmp_path)
    chance = torch.Generator().manual_seed(7)
    prompts: list[list[int]] = []
    expected: list[list[int]] = []
    for length in (1, 5, 6, 19, 48):
        prompts_BT = torch.randint(64, (40, length), generator=chance)
        # Without a mask of ones it takes tokens 0 for padding.
        texts_BT = theirs.generate(
            prompts_BT, attention_mask=torch.ones_like(prompts_BT), do_sample=False,
            max_new_tokens=12, pad_token_id=0,
        )  # fmt: skip
        prompts += prompts_BT.tolist()
        expected += texts_BT[:, length:].tolist()
    assert rows(ours, prompts, max_new_tokens=12, seeds=range(200)) == expected
    assert len({tuple(text) for text in expected}) > 20


def test_log_probabilities_are_those_of_the_whole_text(pair: Any) -> None:
    _, ours = pair
    steps = list(
        generate_batch(
            ours, PROMPTS, max_new_tokens=8, context=128, seeds=range(4),
            sampling=Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3),
        )
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        new = [step[row] for step in steps]
        tokens = [*prompt, *(token.token for token in new if token is not None)]
        log_probs_TV = ours.logits(torch.tensor([tokens])).detach().log_softmax(-1)[0]
        for place, token in enumerate(new, len(prompt)):
            assert token is not None
            expected = float(log_probs_TV[place - 1, token.token])
            assert token.log_prob == pytest.approx(expected, abs=2e-5)


def test_a_text_that_outgrows_the_context_goes_on_from_its_last_half(pair: Any) -> None:
    _, ours = pair
    text = list(generate(ours, PROMPTS[0], max_new_tokens=14, context=10, sampling=GREEDY))
    tokens = list(PROMPTS[0])
    shown = list(tokens)
    for token in text:
        if len(shown) > 10:
            shown = tokens[-5:]
        assert token == int(ours.logits(torch.tensor([shown]))[0, -1].argmax())
        tokens.append(token)
        shown.append(token)


def test_a_longer_row_does_not_shorten_what_others_see(pair: Any) -> None:
    _, ours = pair
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[2]]
    together = rows(ours, prompts, context=10, max_new_tokens=14)
    alone = [rows(ours, [prompt], context=10, max_new_tokens=14)[0] for prompt in prompts]
    assert together == alone


def test_rows_end_by_themselves(pair: Any) -> None:
    _, ours = pair
    whole = rows(ours, PROMPTS, seeds=range(4))
    stop = whole[1][3]
    texts = rows(ours, PROMPTS, seeds=range(4), stop_tokens=[stop])
    for text, before in zip(texts, whole, strict=True):
        assert text == (before[: before.index(stop)] if stop in before else before)


def test_a_rows_draws_depend_on_its_own_seed(pair: Any) -> None:
    _, ours = pair
    drawing = Sampling(temperature=1.0)
    together = rows(ours, PROMPTS, sampling=drawing, seeds=[5, 6, 7, 8])
    for seed, (prompt, text) in enumerate(zip(PROMPTS, together, strict=True), 5):
        assert rows(ours, [prompt], sampling=drawing, seeds=[seed]) == [text]


def test_the_model_is_left_as_it_was(pair: Any) -> None:
    _, ours = pair
    tokens = torch.tensor([PROMPTS[0]])
    before = ours.logits(tokens).detach()
    rows(ours, PROMPTS, seeds=range(4))
    assert torch.equal(ours.logits(tokens), before)


def test_bf16_keeps_its_cache_in_bf16(tmp_path: Path) -> None:
    theirs_of("llama").save_pretrained(tmp_path)
    model = find_model(str(tmp_path)).load("bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(len(text) == 20 for text in rows(model, PROMPTS, seeds=range(4)))
