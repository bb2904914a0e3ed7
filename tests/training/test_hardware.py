"""Peaks by device names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triax.training.records import hardware
from triax.training.records.hardware import peak_flops
from triax.training.records.peaks import PEAKS


@pytest.mark.parametrize(
    ("name", "half", "fp8", "fp32"),
    [
        ("NVIDIA H200", 989, 1979, 67),
        ("NVIDIA H200 NVL", 836, 1671, 60),
        ("NVIDIA GH200 480GB", 989, 1979, 67),
        ("NVIDIA GH200 144G HBM3e", 989, 1979, 67),
        ("NVIDIA H100 80GB HBM3", 989, 1979, 67),
        ("NVIDIA H100 PCIe", 756, 1513, 51),
        ("NVIDIA H100 NVL", 836, 1671, 60),
        ("NVIDIA H20", 148, 296, 44),
        ("NVIDIA B200", 2250, 4500, 75),
        ("NVIDIA GB200", 2500, 5000, 80),
        ("NVIDIA A100-SXM4-80GB", 312, None, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, None, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, None, 19.5),
        ("NVIDIA A10", 125, None, 31.2),
        ("NVIDIA A10G", 70, None, 31.5),
        ("NVIDIA L40S", 362, 733, 91.6),
        ("NVIDIA L40", 181, 362, 90.5),
        ("NVIDIA L4", 121, 242, 30.3),
        ("Tesla V100-SXM2-16GB", 125, None, 15.7),
        ("Tesla V100-PCIE-32GB", 112, None, 14.0),
        ("NVIDIA B300 SXM6 AC", 2250, 4500, 75),
        ("NVIDIA GeForce RTX 3090", 71, None, 35.6),
        ("NVIDIA GeForce RTX 4090", 165, 330, 82.6),
    ],
)
def test_a_device_has_its_own_peak(
    name: str, half: float, fp8: float | None, fp32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak_flops(name, "bf16") == peak_flops(name, "fp16") == half * 1e12
    assert peak_flops(name, "fp8") == (None if fp8 is None else fp8 * 1e12)
    assert peak_flops(name, "fp32") == fp32 * 1e12


def test_fp32_that_is_multiplied_in_tf32_has_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops("NVIDIA H200", "fp32") == 494e12
    assert peak_flops("Tesla V100-SXM2-16GB", "fp32") is None


@pytest.mark.parametrize(
    "name",
    [
        "cpu", "Some GPU", "AMD Instinct MI300X", "AMD Instinct MI250X / MI250", "NVIDIA H2000",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "GRID A100-40C",
        "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A100X", "Some H100", "NVIDIA H100 80GB HBM3 Lite",
        "Intel(R) Data Center GPU Max 1550", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("compute", ["bf16", "fp8", "fp32"])
def test_what_is_not_known_is_not_guessed(name: str, compute: str) -> None:
    assert peak_flops(name, compute) is None


def test_every_entry_can_be_reached() -> None:
    for name, peak in PEAKS.items():
        assert peak_flops(f"NVIDIA {name}", "bf16") == peak.half * 1e12, name


@pytest.mark.parametrize(
    ("text", "has_bf16"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16 amx_tile\n", True),
        ("processor : 0\nflags : fpu avx512f avx512bw\n", False),
        ("processor : 0\nFeatures : fp asimd i8mm bf16\n", True),
        ("nothing is known\n", False),
        (None, False),
    ],
)
def test_a_cpu_tells_whether_it_multiplies_bf16(
    text: str | None, has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert hardware.multiplies_bf16(torch.device("cpu")) == has_bf16
