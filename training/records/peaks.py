"""What devices multiply at best, by name. Imports no torch."""

from __future__ import annotations

import re
from typing import NamedTuple


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


def find_peak(device_name: str) -> Peak | None:
    """The peak of a device; None where it isn't known, which is never guessed.

    Args:
        device_name: as the driver tells it. What isn't a whole known name has no known peak: a
            slice of a device (MIG, vGPU), a laptop's or a market's variant.
    """
    return PEAKS.get(plain_name(device_name))


def plain_name(device_name: str) -> str:
    """A device's name in capitals, without its maker and what doesn't change the peak."""
    words = device_name.upper().replace("-", " ").split()
    while words and words[0] in _MAKERS:
        words = words[1:]
    return " ".join(word for word in words if not _VARIANT.fullmatch(word))
