"""What the devices can do, and what a process uses of them."""

from __future__ import annotations

import os
import re
import resource
import sys
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense matrix TFLOP/s with fp32 accumulation; None where a device can't or nobody says."""

    half: float
    """bf16 and fp16."""
    fp8: float | None
    tf32: float | None
    fp32: float | None
    """Without tensor cores."""


PEAKS = {
    "GB300": Peak(2500, 5000, 1250, 80),
    "GB200": Peak(2500, 5000, 1250, 80),
    "B300": Peak(2250, 4500, 1125, 75),
    "B200": Peak(2250, 4500, 1125, 75),
    "GH200": Peak(989, 1979, 494, 67),
    "H200 NVL": Peak(836, 1671, 418, 60),
    "H200": Peak(989, 1979, 494, 67),
    "H100 PCIE": Peak(756, 1513, 378, 51),
    "H100 NVL": Peak(836, 1671, 418, 60),
    "H100": Peak(989, 1979, 494, 67),
    "H800 PCIE": Peak(756, 1513, 378, 51),
    "H800": Peak(989, 1979, 494, 67),
    "H20": Peak(148, 296, 74, 44),
    "A100": Peak(312, None, 156, 19.5),
    "A100 PCIE": Peak(312, None, 156, 19.5),
    "A800": Peak(312, None, 156, 19.5),
    "A800 PCIE": Peak(312, None, 156, 19.5),
    "A30": Peak(165, None, 82, 10.3),
    "A40": Peak(150, None, 75, 37.4),
    "L40S": Peak(362, 733, 183, 91.6),
    "L40": Peak(181, 362, 90.5, 90.5),
    "L4": Peak(121, 242, 60, 30.3),
    "A10G": Peak(70, None, 35, 31.5),
    "A10": Peak(125, None, 62.5, 31.2),
    "V100": Peak(125, None, None, 15.7),
    "V100 PCIE": Peak(112, None, None, 14.0),
    "RTX 4090": Peak(165, 330, 82.6, 82.6),
    "RTX 3090": Peak(71, None, 35.6, 35.6),
}
"""By the device's name, from the vendors' data sheets (figures given there with sparsity are
halved)."""

_MAKERS = ("NVIDIA", "TESLA", "GEFORCE")
_VARIANT = re.compile(r"SXM\d*|AC|HBM\d\w?|\d+GB?")
"""Words of a name that don't change the peak: socket, cooling by air, memory."""


def peak_flops(device_name: str, compute: str) -> float | None:
    """Peak FLOP/s of a device; None where it isn't known, which is never guessed.

    Args:
        device_name: as the driver tells it. What isn't a whole known name has no known peak: a
            slice of a device (MIG, vGPU), a laptop's or a market's variant.
        compute: `precision.compute`; "fp32" means TF32 where `uses_tf32()`.
    """
    words = device_name.upper().replace("-", " ").split()
    while words and words[0] in _MAKERS:
        words = words[1:]
    peak = PEAKS.get(" ".join(word for word in words if not _VARIANT.fullmatch(word)))
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
