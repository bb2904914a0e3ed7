"""What a planned message is. Imports no torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

Operation = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "send"]
Axis = Literal["tensor", "context", "expert", "shard", "expert shard", "replicate", "pipeline"]
"""Of the mesh; the experts' weights have their own (`parallel.mesh.build_expert_mesh`)."""


class Message(NamedTuple):
    """Messages of one kind, of one process and step."""

    axis: Axis
    operation: Operation
    what: str
    num: int
    num_bytes: int
    """Of all of them: of the whole tensors that they gather, reduce or send."""
    group: int
    """Processes that take part in each."""

    @property
    def sent_bytes(self) -> float:
        """What this process sends."""
        if self.operation == "send":
            return self.num_bytes
        rounds = 2 if self.operation == "all-reduce" else 1
        return rounds * self.num_bytes * (self.group - 1) / self.group
