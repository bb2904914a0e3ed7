"""The `[parallel]` section: how a model is spread over processes. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from triax.common.quantities import Duration, DurationField, Unit
from triax.common.section import Section


class ParallelConfig(Section):
    """Degrees of parallelism. Data parallelism takes the processes that the others leave."""

    engine: Literal["native"] = "native"
    zero_stage: Literal[0, 1, 2, 3] = 1
    """0 replicates all; 1 shards optimizer state; 2 gradients too; 3 parameters too."""
    replicate: PositiveInt = 1
    """Hybrid sharding: this many replicas, each of which shards over its own processes."""
    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    activation_checkpointing: Literal["none", "full"] = "none"
    compile: bool = False
    """Compile each transformer block."""
    timeout: DurationField = Duration(600, Unit.SECONDS)
    """How long a collective may take before the job is ended."""
