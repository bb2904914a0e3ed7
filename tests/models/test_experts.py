"""Routers and experts against naive definitions, and against transformers' own modules.

Shape letters: B sequences, T tokens, D hidden size, E experts, K experts of a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triax.models.architecture import Experts, Router, ScoreKind
from triax.models.counts import flops_per_token, num_active_parameters, num_parameters
from triax.models.description import describe
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.experts import MixtureOfExperts
from triax.models.layers.router import choosing_once
from triax.models.layers.transformer import Transformer

WIDTH = 16
SOFTMAX = Router(ScoreKind.SOFTMAX, top_k=2, is_normalised=True, sequence_loss=0.1, z_loss=0.01)
LAYER = Experts(num_experts=4, hidden_size=8, router=SOFTMAX)


def make_layer(**changes: Any) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(replace(LAYER, router=replace(SOFTMAX, **changes)), WIDTH)


def naive(layer: MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    """Each token by itself through each of its experts."""
    choice = layer.router(x_BTD, None)
    experts, y_BTD = layer.experts, torch.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            x_D = x_BTD[b, t]
            for expert, weight in zip(
                choice.experts_BTK[b, t].tolist(), choice.weights_BTK[b, t], strict=True
            ):
                h_F = F.silu(experts.gate[expert] @ x_D) * (experts.up[expert] @ x_D)
                y_BTD[b, t] += weight * (experts.down[expert] @ h_F)
    return y_BTD


def test_each_token_goes_through_its_experts() -> None:
    layer, x_BTD = make_layer(), torch.randn(2, 5, WIDTH, requires_grad=True)
    y_BTD = layer(x_BTD).x
    expected = naive(layer, x_BTD)
    torch.testing.assert_close(y_BTD, expected)
    inputs = (x_BTD, *layer.parameters())
    weight = torch.randn_like(y_BTD)
    for found, wanted in zip(
        torch.autograd.grad((y_BTD * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("favourite", [None, 2])
def test_ties_and_experts_without_tokens(favourite: int | None) -> None:
    """All scores alike, or all tokens to the same experts: no token is dropped, and experts without
    tokens have a gradient of zero."""
    layer, x_BTD = make_layer(), torch.randn(2, 5, WIDTH).abs()
    with torch.no_grad():
        layer.router.weight.zero_()
        if favourite is not None:
            layer.router.weight[favourite] = 1.0
    output = layer(x_BTD, torch.ones(2, 5))
    torch.testing.assert_close(output.x, naive(layer, x_BTD))
    counts_E = output.sums["expert_tokens"]
    assert counts_E.sum() == 20 and output.sums["expert_dropped"] == 0
    assert (counts_E == 0).sum() == 2
    (output.x.sum() * 1.0 + output.objective).backward()
    for number, count in enumerate(counts_E.tolist()):
        assert layer.experts.up.grad is not None
        gradient = layer.experts.up.grad[number]
        assert gradient.isfinite().all() and bool(gradient.any()) == (count > 0)


def test_the_balance_losses_are_their_definitions() -> None:
    layer = make_layer(batch_loss=0.3)
    assert layer.router.load is not None
    layer.router.load.copy_(torch.tensor([2.0, 1.0, 0.5, 0.5]))
    x_BTD = torch.randn(3, 6, WIDTH)
    counted_BT = torch.ones(3, 6)
    counted_BT[0, 2:] = counted_BT[2] = 0
    output = layer(x_BTD, counted_BT)
    logits_BTE = x_BTD @ layer.router.weight.T
    shares_BTE = logits_BTE.softmax(-1)
    chosen_BTE = F.one_hot(logits_BTE.topk(2).indices, 4).sum(2)
    sequence, batch, z_loss = torch.zeros(3)
    for b in range(3):
        targets = counted_BT[b].bool()
        num = int(targets.sum())
        if num:
            fraction_E = 4 / (2 * num) * chosen_BTE[b, targets].sum(0)
            sequence = sequence + num * (fraction_E * shares_BTE[b, targets].mean(0)).sum()
        batch = batch + (shares_BTE[b, targets] @ layer.router.load).sum()
        z_loss = z_loss + logits_BTE[b, targets].logsumexp(-1).square().sum()
    assert output.objective is not None
    torch.testing.assert_close(output.objective, 0.1 * sequence + 0.3 * batch + 0.01 * z_loss)
    torch.testing.assert_close(output.sums["expert_balance"], sequence)
    counts = chosen_BTE[counted_BT.bool()].sum(0).float()
    torch.testing.assert_close(output.sums["expert_tokens"], counts)


def test_padding_neither_raises_a_loss_nor_counts() -> None:
    layer, x_BTD = make_layer(batch_loss=0.3), torch.randn(2, 6, WIDTH)
    counted_BT = torch.ones(2, 6)
    counted_BT[:, 4:] = 0
    padded, cut = layer(x_BTD, counted_BT), layer(x_BTD[:, :4], counted_BT[:, :4])
    torch.testing.assert_close(padded.objective, cut.objective)
    for name, value in cut.sums.items():
        torch.testing.assert_close(padded.sums[name], value)


def test_groups_and_bias_choose_but_do_not_weigh() -> None:
    layer = make_layer(
        scores=ScoreKind.SIGMOID, bias_rate=0.1, num_groups=2, num_chosen_groups=1, scale=2.0
    )
    x_BTD = torch.randn(1, 9, WIDTH)
    assert layer.router.bias is not None
    layer.router.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 3.0]))
    choice = layer.router(x_BTD, None)
    assert set(choice.experts_BTK.flatten().tolist()) == {2, 3}
    scores = (x_BTD @ layer.router.weight.T).sigmoid().gather(-1, choice.experts_BTK)
    torch.testing.assert_close(choice.weights_BTK, 2 * scores / scores.sum(-1, keepdim=True))


@torch.no_grad()
def test_the_router_is_deepseeks() -> None:
    """Sigmoid scores, groups, bias, norm and scale: transformers' DeepseekV3TopkRouter chooses the
    same experts with the same weights."""
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=WIDTH, n_routed_experts=16, num_experts_per_tok=3, n_group=4, topk_group=2,
            norm_topk_prob=True, routed_scaling_factor=2.5,
        )
    )  # fmt: skip
    router = Router(
        ScoreKind.SIGMOID, 3, is_normalised=True, scale=2.5, num_groups=4, num_chosen_groups=2,
        bias_rate=0.001,
    )  # fmt: skip
    ours = MixtureOfExperts(Experts(16, 8, router), WIDTH).router
    assert ours.bias is not None
    theirs.weight.copy_(ours.weight)
    theirs.e_score_correction_bias.copy_(ours.bias.uniform_(-0.3, 0.3))
    x_BTD = torch.randn(2, 50, WIDTH)
    choice = ours(x_BTD, None)
    _, their_weights, their_experts = theirs(x_BTD)
    places_NK, their_places = choice.experts_BTK.flatten(0, 1).sort(-1), their_experts.sort(-1)
    assert torch.equal(places_NK.values, their_places.values)
    torch.testing.assert_close(
        choice.weights_BTK.flatten(0, 1).gather(-1, places_NK.indices),
        their_weights.gather(-1, their_places.indices),
    )


def test_what_was_chosen_stays_when_activations_are_computed_again() -> None:
    """Even if other scores come out."""
    layer, x_BTD = make_layer(), torch.randn(1, 8, WIDTH, requires_grad=True)
    offset_E = torch.tensor([0.0, 50.0, 50.0, 0.0])
    layer.router.multiply = lambda x, weight: F.linear(x, weight) + offset_E
    y_BTD = checkpoint(
        lambda x: layer(x).x, x_BTD, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: choosing_once(layer.router),
    )  # fmt: skip
    offset_E.copy_(offset_E.flip(0).roll(2))
    assert set(layer.router(x_BTD, None).experts_BTK.flatten().tolist()) == {0, 3}
    (y_BTD * 1.0).sum().backward()
    assert layer.experts.up.grad is not None
    assert layer.experts.up.grad.abs().sum((1, 2)).gt(0).tolist() == [False, True, True, False]


def test_counts_total_and_active() -> None:
    """As published: 46.7B and 12.9B, 30.5B and 3.3B."""
    for preset, total, active in (
        ("mixtral-8x7b", 46.7e9, 12.9e9),
        ("qwen3-30b-a3b", 30.5e9, 3.35e9),
    ):
        config = model_config(preset=preset)
        assert num_parameters(config) == pytest.approx(total, rel=2e-3)
        assert num_active_parameters(config) == pytest.approx(active, rel=2e-2)
    small = model_config(preset="mini-moe-20m")
    dense = num_active_parameters(small) - small.vocab_size * small.hidden_size
    assert flops_per_token(small, 1) == pytest.approx(
        6 * (dense + small.vocab_size * small.hidden_size), rel=1e-2
    )
    assert describe(small).parameters["blocks.0.mlp.experts.up"].active_share == 0.25


def test_fields_that_do_not_fit() -> None:
    for changes, words in (
        ({"top_k": 9}, "more than num_experts"),
        ({"num_groups": 3}, "multiple of num_groups"),
        ({"num_groups": 4, "top_k": 3}, "fewer than top_k"),
        ({"first_dense_layers": 6}, "no layer has any"),
    ):
        with pytest.raises(ValueError, match=words):
            model_config(preset="mini-moe-20m", experts=changes)


def test_training_goes_as_transformers_own_model_does() -> None:
    """Twenty steps of Qwen3-MoE on the same batches, its balance left out: same losses."""
    transformers = pytest.importorskip("transformers")
    fields = dict(num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, vocab_size=40,
                  qk_norm=True, norm_eps=1e-6, ffn_hidden_size=48)  # fmt: skip
    experts = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 24, "batch_loss": 0.0,
               "z_loss": 0.0}  # fmt: skip
    ours = Transformer(model_config(**fields, experts=experts))
    initialise_model(ours, ours.description, seed=4)
    theirs = transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, moe_intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, rms_norm_eps=1e-6,
            tie_word_embeddings=False, pad_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        weights = dict(ours.named_parameters())
        for number, layer in enumerate(theirs.model.layers):
            mixture = {
                n.removeprefix(f"blocks.{number}."): w for n, w in weights.items()
                if n.startswith(f"blocks.{number}.")
            }  # fmt: skip
            layer.mlp.gate.weight.copy_(mixture["mlp.router.weight"])
            joined = (mixture["mlp.experts.gate"], mixture["mlp.experts.up"])
            layer.mlp.experts.gate_up_proj.copy_(torch.cat(joined, 1))
            layer.mlp.experts.down_proj.copy_(mixture["mlp.experts.down"])
            for part, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                weight = getattr(layer.self_attn, f"{part}_proj").weight
                weight.copy_(mixture[f"attention.{name}.weight"])
        theirs.model.embed_tokens.weight.copy_(weights["embedding.weight"])
        theirs.lm_head.weight.copy_(weights["head.weight"])
    optimizers = [torch.optim.AdamW(m.parameters(), lr=2e-3, eps=1e-5) for m in (ours, theirs)]
    for step in range(20):
        torch.manual_seed(step)
        tokens_BT = (torch.randint(0, 3, (4, 13)).cumsum(1)) % 40
        inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
        losses = []
        for logits in (ours.logits(inputs), theirs(inputs).logits):
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5), step
