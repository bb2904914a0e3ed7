"""RunConfig: the sections of run.toml, composed. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, field_validator

from triax.checkpoint.config import CheckpointConfig
from triax.common.paths import PathField
from triax.common.section import Section
from triax.data.config import DataConfig
from triax.models.config import ModelConfig
from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.training.config import (
    BatchConfig,
    BudgetConfig,
    EvalConfig,
    MetricsConfig,
    OptimizerConfig,
    ProfileConfig,
    ScheduleConfig,
)
from triax.training.objectives.config import ObjectiveConfig
from triax.training.stability_config import FaultsConfig, StabilityConfig

_LONGEST_NAME = 255
"""Bytes of a name in all usual file systems."""


class RunSection(Section):
    """`[run]`: the run's name, place and seed."""

    name: str
    dir: PathField = "runs"
    local_dir: PathField | None = None
    """A folder on each node's own drive for its log, stacks and heartbeats; what is new in them is
    copied into the run directory when something fails. None: they are written there."""
    files_per_rank: bool = False
    """Each process writes a log, stacks and heartbeats of its own, instead of one of each a
    node."""
    seed: int = Field(0, ge=0, lt=2**63)
    deterministic: bool = False
    """Bitwise repeatable on a GPU too, at a cost in speed. A CPU run always is."""
    collect_garbage_every: PositiveInt | None = 50
    """Steps between Python's garbage collections, the same on all ranks; none lets Python choose,
    in the middle of a step and on each rank at another time."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError("run.name must be one folder's name, without slashes")
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"run.name has {len(name.encode())} bytes, and a folder's name {_LONGEST_NAME} at "
                "most; shorten it"
            )
        return name


def _of_its_family(model: Any) -> Any:
    return model_config(**model) if isinstance(model, dict) else model


class RunConfig(Section):
    """All that decides a run."""

    run: RunSection
    model: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_of_its_family)]
    """Of the class that its family has."""
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    budget: BudgetConfig = BudgetConfig()
    batch: BatchConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    metrics: MetricsConfig = MetricsConfig()
    profile: ProfileConfig = ProfileConfig()
    stability: StabilityConfig = StabilityConfig()
    faults: FaultsConfig = FaultsConfig()

    @property
    def run_dir(self) -> Path:
        """The folder of this run: `run.dir/run.name`."""
        return Path(self.run.dir) / self.run.name
