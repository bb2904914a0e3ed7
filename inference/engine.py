"""A trained model in an engine that only evaluates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError
from triax.inference.load import ModelFolder
from triax.inference.team import Team
from triax.parallel.config import PrecisionConfig
from triax.parallel.engine import Engine
from triax.parallel.engines.native import NativeEngine
from triax.parallel.float8 import require_float8
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh


class _NoOptimizer(Optimizer):
    """Has no state and takes no step."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(list(parameters.values()), {})
        self.copies: Mapping[Tensor, Tensor] = {}

    def make_state(self) -> None:
        """Nothing to make."""

    def step(self, _closure: object = None) -> NoReturn:
        raise AssertionError("this engine only evaluates")


@contextmanager
def evaluation_engine(
    folder: ModelFolder, seq_len: int, compute: str | None = None, team: Team | None = None
) -> Iterator[Engine]:
    """The model in the engine that trains, so that a loss means what it means in a run.

    Args:
        folder: the model's; its weights are read into the engine.
        seq_len: of the sequences to come.
        compute: as `precision.compute`; by default what the run computed in.
        team: who shares the work; by default nobody.

    Raises:
        UserError: the device can't compute so, the team can't divide the model, or the
            checkpoint's record holds no precision.
    """
    team = team or Team.alone()
    team.refuse_indivisible(folder.config, folder.path)
    precision = recorded_precision(folder, compute)
    if precision.compute == "fp8":
        require_float8(team.device, precision.fp8_recipe)
    with _meshed(team) as mesh:
        engine = NativeEngine(
            folder.config,
            mesh,
            team.config,
            precision=precision,
            seq_len=seq_len,
            seed=0,
            make_optimizer=_NoOptimizer,
        )
        state = engine.state() | engine.frozen_state()
        folder.fill({name.removeprefix("model."): tensor for name, tensor in state.items()})
        yield engine


def recorded_precision(folder: ModelFolder, compute: str | None) -> PrecisionConfig:
    """What the run computed in, fp32 where its record doesn't say, or `compute` instead.

    Raises:
        UserError: the record's is none.
    """
    fields = {"compute": "fp32"}
    fields |= recorded_table(recorded_table(folder.record, "config"), "precision")
    if compute is not None:
        fields["compute"] = compute
    try:
        return PrecisionConfig.model_validate(fields).resolved(has_bf16=False)
    except ValidationError as error:
        raise UserError(f"{folder.path}: its record holds no valid precision: {error}") from None


@contextmanager
def _meshed(team: Team) -> Iterator[DeviceMesh]:
    """The team's mesh; engines need one of a single process too, and its process group."""
    if team.mesh is not None:
        yield team.mesh
        return
    backend = "cpu:gloo,cuda:nccl" if team.device.type == "cuda" else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield build_mesh(Layout.of(team.config, 1), team.device.type)
    finally:
        dist.destroy_process_group()
