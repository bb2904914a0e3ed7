"""GPUs and the links between them: memory, bandwidths, and how much of their peak is reached.

Peaks of matrix products are those of `training.records.peaks`, from which MFU is taken. Imports no
torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import NamedTuple

from triax.common.errors import UserError
from triax.training.records.peaks import PEAKS, Peak, plain_name

GIB = 2**30
RESERVED_GIB = 2.5
"""What isn't the allocator's. An allowance, summed up from estimates and not measured: CUDA's
context and loaded kernels about 0.5, cuBLAS' workspaces about 0.1, and NCCL's buffers (4 MiB a
channel and peer, `NCCL_BUFFSIZE`) up to 0.3 for each of about six communicators."""


class Card(NamedTuple):
    """What data sheets say of a GPU beside its peak."""

    memory_gib: float
    """As the driver shows it, a little below the data sheet's GB."""
    memory_gbs: float
    """GB/s of the memory."""
    link_gbs: float
    """GB/s to the other GPUs of the node, in one direction: NVLink, or PCIe."""
    fabric_gbs: float
    """GB/s to other nodes, in one direction, of one GPU's share of the usual fabric."""
    num_processors: int
    """Streaming multiprocessors, over which a product's tiles are dealt out."""
    gpus_per_node: int = 8
    """GPUs that the fast link joins."""


CARDS = {
    "GB300": Card(277, 8000, 900, 100, 148, 72),
    "GB200": Card(184, 8000, 900, 50, 148, 72),
    "B300": Card(268, 8000, 900, 100, 148),
    "B200": Card(179, 8000, 900, 50, 148),
    "GH200": Card(94, 4000, 450, 50, 132, 4),
    "H200 NVL": Card(139, 4800, 450, 50, 132, 4),
    "H200": Card(140, 4800, 450, 50, 132),
    "H100 PCIE": Card(79.6, 2000, 64, 50, 114),
    "H100 NVL": Card(93, 3900, 300, 50, 132, 2),
    "H100": Card(79.6, 3350, 450, 50, 132),
    "H800": Card(79.6, 3350, 200, 50, 132),
    "H20": Card(95, 4000, 450, 50, 78),
    "A100": Card(79.3, 2039, 300, 25, 108),
    "A100 PCIE": Card(79.3, 1935, 32, 25, 108),
    "A800": Card(79.3, 2039, 200, 25, 108),
    "A40": Card(44.5, 696, 32, 12.5, 84),
    "A30": Card(23.5, 933, 32, 12.5, 56),
    "L40S": Card(44.5, 864, 32, 25, 142),
    "L40": Card(44.5, 864, 32, 12.5, 142),
    "L4": Card(22.5, 300, 32, 12.5, 58),
    "A10": Card(22.5, 600, 32, 12.5, 72),
    "A10G": Card(22.5, 600, 32, 12.5, 80),
    "V100": Card(31.7, 900, 150, 12.5, 80),
    "RTX 4090": Card(23.6, 1008, 32, 12.5, 128),
    "RTX 3090": Card(23.6, 936, 32, 12.5, 82),
}
"""From NVIDIA's data sheets, halved where they add up both directions; fabrics are those of
NVIDIA's own DGX machines: one ConnectX-6 (HDR, 200 Gb/s) a GPU with A100, one ConnectX-7 (NDR, 400
Gb/s) with Hopper and B200, one ConnectX-8 (800 Gb/s) with B300."""


class Reach(NamedTuple):
    """Which share of a peak well-written kernels reach, averaged over a step's shapes."""

    half: float
    """Large bf16 products."""
    fp8: float
    """Large fp8 products, their casts not counted."""
    attention: float
    """Fused attention, of the half-precision peak, forward and backward together, causal halves
    counted alone."""
    memory: float
    """Bandwidth of elementwise passes."""


REACH = {
    "hopper": Reach(0.70, 0.68, 0.52, 0.90),
    "blackwell": Reach(0.70, 0.65, 0.44, 0.90),
    "ampere": Reach(0.76, 0.0, 0.50, 0.85),
    "other": Reach(0.75, 0.60, 0.40, 0.80),
}
"""Hopper's from the limits that `triax bench` measured on an H200 (torch 2.11, 2026-11-20: 63,222
and 84,348 tokens/s in bf16 and fp8 for 1.5B parameters, 24,661 and 34,538 for 3.6B, 11,627 and
17,362 for Llama-3 8B), which 0.76, 0.70 and 0.55 give within 4%. What a whole step keeps of these
is fitted to published runs (`python benchmarks/plan_published.py`): 0.92 in bf16, 0.97 in fp8, 0.95
of attention. Ampere's and Blackwell's are fitted to published runs; the others are guesses."""


@dataclass(frozen=True)
class Device:
    """A GPU in a machine, with the links to others."""

    name: str
    peak: Peak
    card: Card
    reach: Reach
    reserved_gib: float = RESERVED_GIB

    @property
    def usable_bytes(self) -> float:
        """What a process's tensors may take."""
        return (self.card.memory_gib - self.reserved_gib) * GIB

    def flops(self, compute: str) -> float:
        """FLOP/s that large matrix products reach.

        Raises:
            UserError: the GPU can't compute so.
        """
        return self.peak_flops(compute) * (self.reach.fp8 if compute == "fp8" else self.reach.half)

    def peak_flops(self, compute: str) -> float:
        """The data sheet's FLOP/s.

        Raises:
            UserError: the GPU can't compute so.
        """
        column = {"bf16": "half", "fp16": "half"}.get(compute, compute)
        tflops = (
            self.peak.tf32 or self.peak.fp32 if column == "fp32" else getattr(self.peak, column)
        )
        if tflops is None:
            raise UserError(f'precision.compute: no peak of {self.name} in "{compute}" is known')
        return float(tflops) * 1e12

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies in bf16: that and TF32 came together, with Ampere."""
        return self.peak.tf32 is not None

    @property
    def attention_flops(self) -> float:
        """FLOP/s that attention reaches."""
        return self.peak.half * 1e12 * self.reach.attention

    @property
    def memory_bytes_per_second(self) -> float:
        """That elementwise passes reach."""
        return self.card.memory_gbs * 1e9 * self.reach.memory

    def with_overrides(
        self,
        *,
        memory_gib: float | None = None,
        reserved_gib: float | None = None,
        memory_gbs: float | None = None,
        link_gbs: float | None = None,
        fabric_gbs: float | None = None,
        gpus_per_node: int | None = None,
        clock: float = 1.0,
    ) -> Device:
        """The same GPU in another machine.

        Args:
            clock: of the peak's clock, what power and cooling sustain; scales what products and
                attention reach.
        """
        card = self.card
        if memory_gib is not None:
            card = card._replace(memory_gib=memory_gib)
        if memory_gbs is not None:
            card = card._replace(memory_gbs=memory_gbs)
        if link_gbs is not None:
            card = card._replace(link_gbs=link_gbs)
        if fabric_gbs is not None:
            card = card._replace(fabric_gbs=fabric_gbs)
        if gpus_per_node is not None:
            card = card._replace(gpus_per_node=gpus_per_node)
        reach = self.reach._replace(
            half=self.reach.half * clock,
            fp8=self.reach.fp8 * clock,
            attention=self.reach.attention * clock,
        )
        reserved = self.reserved_gib if reserved_gib is None else reserved_gib
        return replace(self, card=card, reach=reach, reserved_gib=reserved)


def find_device(name: str) -> Device:
    """A GPU by its name: `h100`, `NVIDIA H100 80GB HBM3`.

    Raises:
        UserError: it isn't in the table.
    """
    key = plain_name(name)
    if key not in CARDS:
        near = difflib.get_close_matches(key, CARDS, n=1)
        hint = f"did you mean {near[0].lower()}?" if near else "use the nearest, with overrides"
        known = ", ".join(each.lower() for each in CARDS)
        raise UserError(f"--gpu {name}: not in the table; {hint} There are {known}")
    return Device(key, PEAKS[key], CARDS[key], REACH[_generation(key)])


def _generation(key: str) -> str:
    if key.startswith(("H", "GH")):
        return "hopper"
    if key.startswith(("B", "GB")):
        return "blackwell"
    return "ampere" if key in ("A100", "A100 PCIE", "A800", "A30") else "other"


def group_bandwidth(device: Device, stride: int, size: int) -> float:
    """Bytes a second that each process of a group sends in a ring (NCCL's bus bandwidth).

    Within a node the link carries it. Across nodes a ring enters each node once for each of its
    members there, over as many network cards: `min(link, members x fabric)`.

    Args:
        stride: how far apart neighbours of the group are, in processes.
        size: of the group.
    """
    per_node = device.card.gpus_per_node
    if stride * (size - 1) < per_node:
        return device.card.link_gbs * 1e9
    members = max(1, per_node // stride)
    return min(device.card.link_gbs, members * device.card.fabric_gbs) * 1e9


def exchange_bandwidth(device: Device, stride: int, size: int) -> float:
    """Bytes a second that each process of a group sends in all, where each sends every other as
    much: the link and the process's share of the fabric work at once, and the slower decides."""
    here = max(1, min(size, device.card.gpus_per_node // stride))
    if here == size:
        return device.card.link_gbs * 1e9
    within = device.card.link_gbs * (size - 1) / (here - 1) if here > 1 else float("inf")
    across = device.card.fabric_gbs * (size - 1) / (size - here)
    return min(within, across) * 1e9


def link_of_group(device: Device, stride: int, size: int) -> str:
    """What carries a group's messages: `link` within a node, else `fabric`."""
    return "link" if stride * (size - 1) < device.card.gpus_per_node else "fabric"
