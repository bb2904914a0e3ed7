"""What the processes have read for a step: how many targets, and whether it is what it should be.

The processes of the pipeline, context and tensor axes work on the same samples, and each reads
them for itself, whole: sequences are divided after their targets are counted. If one reads others,
its activations fit nobody's, and the loss need not show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triax.models.batch import Batch
from triax.parallel.context.sequence import SequenceDivision
from triax.parallel.engine import Counts
from triax.parallel.mesh import READER_AXES, num_readers

_FINGERPRINT_BITS = 24
"""fp32 holds so many exactly: fingerprints reach the host among a step's figures."""


class ReadingCounter:
    """Counts a step's targets over all processes, and compares what they have read.

    Args:
        mesh: from `build_mesh`; its device type is where the counts go.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._device = torch.device(mesh.device_type)
        self.num_readers = num_readers(mesh)
        """How many processes read the same samples."""
        self.sequences = SequenceDivision(mesh["context"])
        """What of them is whose."""
        is_first = all(mesh[axis].get_local_rank() == 0 for axis in READER_AXES)
        # They sum to zero over the processes that read the same: so do the fingerprints then.
        self._coefficient = self.num_readers - 1 if is_first else -1

    def count(self, micro_batches: Sequence[Batch]) -> Counts:
        """Collective; one all-reduce of three numbers, for which the host doesn't wait."""
        counts = own_counts(micro_batches, self._device)
        own = fingerprint(micro_batches) if self.num_readers > 1 else 0
        # Filled on the device, not copied to it; fp64 holds whole numbers of 53 bits exactly.
        own_fingerprint = torch.full_like(counts[:1], own)
        sums = torch.cat((counts, own_fingerprint * self._coefficient))
        dist.all_reduce(sums)
        num_targets, total_weight = (sums[:2] / self.num_readers).float()
        return Counts(num_targets, total_weight, (sums[2] != 0).float(), own_fingerprint[0].float())

    def total(self, values: Tensor) -> Tensor:
        """See `Engine.sum_over_data`."""
        total = values.clone()
        dist.all_reduce(total)
        return total / self.num_readers


def own_counts(micro_batches: Sequence[Batch], device: torch.device) -> Tensor:
    """This process's target tokens and their summed weight; fp64 (2,) on the device."""
    counts = [torch.stack((b.num_targets.double(), b.total_weight)) for b in micro_batches]
    # A blocking copy would wait for all that the device still has to do.
    return torch.stack(counts).sum(0).to(device, non_blocking=True)


def fingerprint(micro_batches: Sequence[Batch]) -> int:
    """A number of 24 bits that other tokens, targets or other tensors would all but surely change.

    Args:
        micro_batches: on the host.
    """
    digest = xxhash.xxh3_64()
    for batch in micro_batches:
        for tensor in batch.tensors().values():
            digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.intdigest() >> (64 - _FINGERPRINT_BITS)
