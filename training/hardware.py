"""What the devices can do, and what a process uses of them."""

from __future__ import annotations

import resource
import sys

import torch

PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIE", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("V100", 125.0),
    ("RTX 4090", 165.0),
    ("RTX 3090", 71.0),
)
"""Dense half-precision matrix TFLOP/s with fp32 accumulation, by a part of the device's name, from
the vendors' data sheets; the first entry that the name contains counts."""


def peak_flops(device_name: str, compute: str) -> float | None:
    """Peak FLOP/s of a device by its name, None where it isn't known (CPUs, other precisions)."""
    if compute not in ("bf16", "fp16"):
        return None
    name = f" {device_name.upper()} ".replace("-", " ")
    for part, tflops in PEAK_TFLOPS:
        if f" {part} " in name:
            return tflops * 1e12
    return None


def device_name(device: torch.device) -> str:
    """The device's marketing name; "cpu" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
