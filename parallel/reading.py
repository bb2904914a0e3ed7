"""What the processes have read for a step: how many targets, and whether it is what it should be.

The processes of the tensor and pipeline axes work on the same samples, and each reads them for
itself. If one reads others, its activations fit nobody's, and the loss need not show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import xxhash
from torch.distributed.device_mesh import DeviceMesh

from triax.parallel.engine import Counts, MicroBatch
from triax.parallel.mesh import num_readers
from triax.parallel.schedule import num_targets

_FINGERPRINT_BITS = 24
"""fp32 holds so many exactly: fingerprints reach the host among a step's figures."""


class ReadingCounter:
    """Counts a step's targets over all processes, and compares what they have read.

    Args:
        mesh: from `build_mesh`; its device type is where the counts go.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._device = torch.device(mesh.device_type)
        self._num_readers = num_readers(mesh)
        is_first = all(mesh[axis].get_local_rank() == 0 for axis in ("tensor", "pipeline"))
        # They sum to zero over the processes that read the same: so do the fingerprints then.
        self._coefficient = self._num_readers - 1 if is_first else -1

    def count(self, micro_batches: Sequence[MicroBatch]) -> Counts:
        """Collective; one all-reduce of two numbers, for which the host doesn't wait."""
        counts = num_targets(micro_batches, self._device)
        own = fingerprint(micro_batches) if self._num_readers > 1 else 0
        # Filled on the device, not copied to it.
        own_fingerprint = torch.full_like(counts, own)
        sums = torch.stack((counts, own_fingerprint * self._coefficient))
        dist.all_reduce(sums)
        return Counts(
            (sums[0] // self._num_readers).float(), (sums[1] != 0).float(), own_fingerprint.float()
        )


def fingerprint(micro_batches: Sequence[MicroBatch]) -> int:
    """A number of 24 bits that other tokens, targets or documents would all but surely change.

    Args:
        micro_batches: on the host.
    """
    digest = xxhash.xxh3_64()
    for batch in micro_batches:
        for tensor in (batch.tokens_BT, batch.targets_BT, batch.document_ids_BT):
            if tensor is not None:
                digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.intdigest() >> (64 - _FINGERPRINT_BITS)
