"""A run's engine and its objective, made from the config."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.models.description import describe
from triax.parallel.engine import Engine
from triax.parallel.engines import ENGINES
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh
from triax.training.objectives.objective import Objective
from triax.training.objectives.registry import OBJECTIVES
from triax.training.step.apex import chosen, find_fused_rms_norm
from triax.training.step.optimizer import optimizer_maker


def engine_class(config: RunConfig) -> Callable[..., Engine]:
    """The class of the engine that the config names; imports what it needs."""
    module, name = ENGINES[config.parallel.engine].split(":")
    engine: Callable[..., Engine] = getattr(importlib.import_module(module), name)
    return engine


def make_engine(config: RunConfig, layout: Layout, processes: Processes) -> Engine:
    """The engine that the config names, with freshly initialised weights."""
    return engine_class(config)(
        config.model,
        build_mesh(layout, processes.device.type),
        config.parallel,
        precision=config.precision,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        make_optimizer=optimizer_maker(
            config.optimizer,
            config.precision,
            describe(config.model).parameters,
            is_native=config.parallel.engine == "native",
        ),
        rms_norm=chosen(
            config.optimizer,
            find_fused_rms_norm,
            can_take=config.parallel.engine != "native",
            on_cuda=processes.device.type == "cuda",
        ),
    )


def make_objective(config: RunConfig) -> Objective:
    """What a step of the run minimises."""
    return OBJECTIVES[config.objective.kind](config.objective)
