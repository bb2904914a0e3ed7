"""What a process holds at every moment of a step, by what it is for.

A storage is known by its birth and its death; what it was for may turn out later (a gradient is
born as some result of a backward pass), and then counts for all of its life.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Part(StrEnum):
    """What memory is for; where two fit, the earlier one counts."""

    MAIN_PARAMS = "main params"
    """What the optimizer updates."""
    MOMENTS = "moments"
    WEIGHTS = "weights"
    """What products read, where it is kept beside the main params."""
    GRADIENTS = "gradients"
    """What the update reads."""
    GATHERED = "gathered weights"
    """Whole weights of a block, put together from all shards."""
    UNREDUCED = "unreduced gradients"
    """Of whole weights, kept from one micro-batch to the next."""
    MESSAGES = "messages"
    """What ZeRO packs to gather and to reduce, and what is received."""
    ACTIVATIONS = "activations"
    """Born in a forward pass, and alive after it."""
    BUFFERS = "buffers"
    """Made before the first step, and none of the above."""
    TEMPORARY = "temporary"


_ORDER = {part: number for number, part in enumerate(Part)}


@dataclass
class Held:
    """A storage."""

    phase: str
    """What the step was doing when it was born."""
    part: Part = Part.TEMPORARY
    num_bytes: int = 0

    def mark(self, part: Part) -> None:
        """Say what it is for."""
        if _ORDER[part] < _ORDER[self.part]:
            self.part = part


class MemoryLog:
    """Follows storages, and adds them up afterwards.

    Args:
        phase: says what the step is doing.
    """

    def __init__(self, phase: Callable[[], str]) -> None:
        self._phase = phase
        self._known: dict[int, tuple[weakref.ref[Any], Held]] = {}
        self._events: list[tuple[Held, int, str]] = []

    def note(self, tensor: Tensor) -> None:
        """Take down a tensor that an operation has made, or changed."""
        # A fake tensor's `device` is an operation, which would be dispatched; this isn't.
        device = getattr(tensor, "fake_device", None) or tensor.device
        if device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            held = Held(self._phase())
            gone = weakref.ref(storage, partial(self._end, held, id(storage)))
            self._known[id(storage)] = (gone, held)
        self.resized(storage)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Take down the size of a storage."""
        if id(storage) in self._known:
            self._resize(self._known[id(storage)][1], storage.nbytes())

    def mark(self, tensors: Iterable[Tensor], part: Part) -> None:
        """Say what known tensors are for."""
        for tensor in tensors:
            known = self._known.get(id(tensor.untyped_storage()))
            if known is not None:
                known[1].mark(part)

    def alive(self) -> list[Held]:
        """What is held now."""
        return [held for _, held in self._known.values()]

    def _end(self, held: Held, key: int, _reference: object) -> None:
        self._known.pop(key, None)
        self._resize(held, 0)

    def _resize(self, held: Held, num_bytes: int) -> None:
        if num_bytes != held.num_bytes:
            self._events.append((held, num_bytes - held.num_bytes, self._phase()))
            held.num_bytes = num_bytes

    def peaks(self) -> dict[str, dict[Part, int]]:
        """Bytes by part in the fullest moment of each phase; phases in the order of their
        beginnings. What a backend's own thread lets go of, at any moment, begins no phase."""
        now = dict.fromkeys(Part, 0)
        highest: dict[str, int] = {}
        peaks: dict[str, dict[Part, int]] = {}
        total = 0
        for held, change, phase in self._events:
            now[held.part] += change
            total += change
            if change > 0 and total > highest.get(phase, -1):
                highest[phase] = total
                peaks[phase] = {part: size for part, size in now.items() if size}
        return peaks

    def highest(self) -> dict[Part, int]:
        """The most bytes that each part has at any moment; parts that have none are missing."""
        now, highest = dict.fromkeys(Part, 0), dict.fromkeys(Part, 0)
        for held, change, _ in self._events:
            now[held.part] += change
            highest[held.part] = max(highest[held.part], now[held.part])
        return {part: size for part, size in highest.items() if size}
