"""The limit: its work by arithmetic, and that each part of it can be timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triax.models.counts import flops_per_token
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer
from triax.parallel.config import PrecisionConfig
from triax.parallel.flat_shards import Block, FlatShard
from triax.training.bench import roofline as limit
from triax.training.bench.roofline import Work, measure_roofline, optimizer_bytes, products

CPU = torch.device("cpu")
MODEL = model_config(
    num_layers=3, hidden_size=64, num_heads=4, num_kv_heads=2, ffn_hidden_size=96,
    vocab_size=160,
)  # fmt: skip
WORK = Work(
    MODEL, num_micro_batches=2, micro_batch_size=4, seq_len=32, compute="fp32",
    tensor=1, pipeline=1, optimizer_bytes=10**6,
)  # fmt: skip

FP32 = PrecisionConfig(compute="fp32")


@pytest.mark.parametrize("preset", ["mini-10m", "llama3-8b", "llama3.2-1b-untied"])
def test_products_are_the_flops_that_are_counted(preset: str) -> None:
    model = model_config(preset=preset)
    work = replace(WORK, model=model, seq_len=8192)
    num_tokens = 2 * 4 * 8192
    head_dim = model.architecture().layers[0].attention.head_dim
    attention = 12 * model.num_layers * model.num_heads * head_dim * 8192
    expected = num_tokens * (flops_per_token(model, 8192) - attention)
    assert sum(product.flops for product in products(work)) == expected


def test_tensor_parallelism_divides_every_product() -> None:
    whole = sum(product.flops for product in products(WORK))
    assert sum(product.flops for product in products(replace(WORK, tensor=2))) == whole // 2


def test_the_head_stays_in_half_precision_under_fp8() -> None:
    computes = {product.name: product.compute for product in products(replace(WORK, compute="fp8"))}
    assert computes.pop("head") == "bf16"
    assert set(computes.values()) == {"fp8"}


def test_an_update_moves_each_state_twice_and_gradients_once() -> None:
    weights = dict(Transformer(MODEL).named_parameters())
    num = sum(weight.numel() for weight in weights.values())
    state = {f"model.{name}": weight for name, weight in weights.items()}
    state |= {f"optimizer.{name}.exp_avg": weight for name, weight in weights.items()}
    half = {f"optimizer.{name}.exp_avg_sq": w.to(torch.bfloat16) for name, w in weights.items()}
    assert optimizer_bytes(state | half, FP32) == num * (4 + 4 + 4 + 4 + 4 + 2 + 2)
    assert optimizer_bytes(state | half, PrecisionConfig(compute="bf16")) == num * (24 + 2)
    small = PrecisionConfig(compute="bf16", gradients="bf16")
    assert optimizer_bytes(state | half, small) == num * (24 - 2 + 2)


def test_of_a_divided_state_only_the_part_that_is_here_counts() -> None:
    quarter = FlatShard(torch.zeros(16), 16, Block((0, 0), (8, 8), (8, 8)))
    assert optimizer_bytes({"model.weight": quarter}, FP32) == 16 * (2 * 4 + 4)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_every_part_is_timed(compute: str) -> None:
    found = measure_roofline(replace(WORK, compute=compute), CPU)
    assert min(found.gemm, found.attention, found.optimizer) > 0
    assert found.total == found.gemm + found.attention + found.optimizer
    assert found.gemm_flops == sum(product.flops for product in products(WORK))
    assert found.attention_backend == "flash"
    assert found.optimizer == pytest.approx(10**6 / found.copy_bytes_per_second)


def test_a_pipeline_shares_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "seconds_of", lambda _operation, _device: 1e-3)
    whole, half = (measure_roofline(replace(WORK, pipeline=num), CPU) for num in (1, 2))
    assert (half.gemm, half.attention) == (whole.gemm / 2, whole.attention / 2)
    # 3 layers x 2 micro-batches: 3 products of 4 weights' groups, those fused where that pays.
    assert whole.gemm == pytest.approx(1e-3 * (3 * 4 * 6 + 3 * 2))


@pytest.mark.parametrize("compute", ["fp32", "fp8"])
def test_products_have_the_shapes_of_output_and_gradients(compute: str) -> None:
    if compute == "fp8" and not hasattr(torch, "_scaled_mm"):
        pytest.skip("this torch has no fp8 products")
    made = limit._multiplications(32, 64, 16, compute, CPU)
    assert [tuple(each().shape) for each in made] == [(32, 16), (32, 64), (16, 64)]
