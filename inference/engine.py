"""A loaded model in an engine that only evaluates, in this process alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor
from torch.optim import Optimizer

from triax.checkpoint.run_folder import recorded_table
from triax.common.errors import UserError
from triax.inference.load import Loaded
from triax.parallel.config import ParallelConfig, PrecisionConfig
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
def evaluation_engine(loaded: Loaded, seq_len: int, compute: str | None = None) -> Iterator[Engine]:
    """The model in the engine that trains, so that a loss means what it means in a run.

    Args:
        loaded: its weights are copied.
        seq_len: of the sequences to come.
        compute: as `precision.compute`; by default what the run computed in.

    Raises:
        UserError: the device can't compute so, or the checkpoint's record holds no precision.
    """
    precision = recorded_precision(loaded, compute)
    device = next(loaded.model.parameters()).device
    if precision.compute == "fp8":
        require_float8(device, precision.fp8_recipe)
    config = ParallelConfig(zero_stage=0)
    with _alone(device):
        engine = NativeEngine(
            loaded.model.config,
            build_mesh(Layout.of(config, 1), device.type),
            config,
            precision=precision,
            seq_len=seq_len,
            seed=0,
            make_optimizer=_NoOptimizer,
        )
        given = dict(loaded.model.named_parameters())
        with torch.no_grad():
            for name, tensor in engine.state().items():
                tensor.copy_(given[name.removeprefix("model.")])
        yield engine


def recorded_precision(loaded: Loaded, compute: str | None) -> PrecisionConfig:
    """What the run computed in, fp32 where its record doesn't say, or `compute` instead.

    Raises:
        UserError: the record's is none.
    """
    fields = dict(recorded_table(recorded_table(loaded.record, "config"), "precision"))
    if compute is not None:
        fields["compute"] = compute
    try:
        return PrecisionConfig.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{loaded.path}: its record holds no valid precision: {error}") from None


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """A process group of this process, which engines need."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
