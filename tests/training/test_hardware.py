"""Peaks by device names."""

from __future__ import annotations

import pytest

from triax.training.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835), ("NVIDIA GH200 480GB", 989), ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70), ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121), ("Tesla V100-SXM2-16GB", 125), ("NVIDIA GeForce RTX 4090", 165),
    ],
)  # fmt: skip
def test_a_device_has_its_own_peak(name: str, tflops: float) -> None:
    assert peak_flops(name, "bf16") == tflops * 1e12


@pytest.mark.parametrize(
    ("name", "compute"), [("cpu", "bf16"), ("Some GPU", "bf16"), ("NVIDIA H200", "fp32")]
)
def test_what_is_not_known_is_not_guessed(name: str, compute: str) -> None:
    assert peak_flops(name, compute) is None
