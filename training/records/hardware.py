"""What the devices can do, and what a process uses of them."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from triax.training.records.peaks import find_peak

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def peak_flops(device_name: str, compute: str) -> float | None:
    """Peak FLOP/s of a device; None where it isn't known, which is never guessed.

    Args:
        device_name: as the driver tells it; see `find_peak`.
        compute: `precision.compute`; "fp32" means TF32 where `uses_tf32()`.
    """
    peak = find_peak(device_name)
    if peak is None:
        return None
    column = {"bf16": "half", "fp16": "half"}.get(compute, compute)
    if column == "fp32" and uses_tf32():
        column = "tf32"
    tflops: float | None = getattr(peak, column)
    return None if tflops is None else tflops * 1e12


def uses_tf32() -> bool:
    """Whether torch was told to multiply fp32 matrices in TF32."""
    return torch.get_float32_matmul_precision() != "highest"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 products in hardware: NVIDIA's from Ampere on, CPUs with
    AVX512_BF16, AMX or Arm's BF16. What emulates them is slower than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = (line.split() for line in text.splitlines() if line.startswith(("flags", "Features")))
    return not _CPU_FLAGS.isdisjoint(next(flags, ()))


def device_name(device: torch.device) -> str:
    """The device's marketing name; "cpu" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_bytes(device: torch.device) -> int:
    """All the memory there is: the GPU's where there is one, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
