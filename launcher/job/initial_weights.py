"""Other runs' weights: those that a new run begins with, and those beside a run's adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist
import xxhash

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.huggingface import parameter_shapes
from triax.checkpoint.model import base_of, check_model
from triax.checkpoint.reading import check_weights
from triax.checkpoint.store import CheckpointStore
from triax.checkpoint.upcycling import read_upcycled
from triax.common.errors import UserError
from triax.launcher.checks.initial_weights import compare_settings, gets_experts, has_adapters
from triax.launcher.config.run_config import RunConfig
from triax.models.upcycling import dense_shapes
from triax.parallel.agreement import agreed, on_first
from triax.parallel.engine import Engine


@dataclass(frozen=True)
class Initial:
    """What a new run begins with."""

    weights: CheckpointInfo | None
    """Of what is trained; None for adapters as they are made."""
    base: CheckpointInfo | None
    """Of what adapters stand beside; None where all is trained."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        info = self.weights or self.base
        assert info is not None
        return info.path

    @property
    def digest(self) -> bytes:
        """Of the weights that the run begins with, 16 bytes."""
        there = [info.manifest for info in (self.weights, self.base) if info is not None]
        digests = [bytes.fromhex(each.digest) for each in there if each is not None]
        return digests[0] if len(digests) == 1 else xxhash.xxh3_128_digest(b"".join(digests))


def find_initial_weights(
    store: CheckpointStore,
    config: RunConfig,
    group: dist.ProcessGroup | None,
    say: Callable[[str], None],
) -> Initial | None:
    """The checkpoint that `checkpoint.init_from` names, if it does: its tensors are the model's,
    no more and no fewer, and mean the same, or other settings are permitted. Collective.

    A run of adapters may begin with adapters, which name what they stand beside.

    Raises:
        UserError: there is no such checkpoint.
    """
    path = config.checkpoint.init_from
    if path is None:
        return None
    info = store.good_at(Path(path))
    for change in agreed(lambda: _check_initial(info, config), group):
        say(f"checkpoint.init_from: other settings: {change}")
    assert info.manifest is not None
    if config.model.lora is None:
        return Initial(info, None)
    if not has_adapters(info.manifest.record):
        return Initial(None, info)
    return Initial(info, _base(store, info, None, group))


def _check_initial(info: CheckpointInfo, config: RunConfig) -> list[str]:
    assert info.manifest is not None
    model, record = config.model, info.manifest.record
    try:
        changes = compare_settings(record, model, config.checkpoint)
    except UserError as error:
        raise UserError(f"checkpoint.init_from: {info.path}: {error}") from None
    if has_adapters(record):
        check_model(info.path, model, info.manifest)
        return changes
    model = model.without_adapters
    expected = dense_shapes(model) if gets_experts(record, model) else parameter_shapes(model)
    shapes = {f"model.{name}": shape for name, shape in expected.items()}
    check_weights(info.path, shapes, prefix="model.")
    return changes


def find_base(
    store: CheckpointStore,
    checkpoint: CheckpointInfo,
    config: RunConfig,
    group: dist.ProcessGroup | None,
) -> CheckpointInfo | None:
    """What the adapters in a run's own checkpoint stand beside, where the record or
    `checkpoint.init_from` says; None where there are no adapters. Collective.

    Raises:
        UserError: it is gone, or another.
    """
    if config.model.lora is None:
        return None
    elsewhere = config.checkpoint.init_from
    return _base(store, checkpoint, None if elsewhere is None else Path(elsewhere), group)


def _base(
    store: CheckpointStore,
    adapters: CheckpointInfo,
    elsewhere: Path | None,
    group: dist.ProcessGroup | None,
) -> CheckpointInfo:
    assert adapters.manifest is not None
    record = adapters.manifest.record
    return store.good_at(on_first(partial(base_of, adapters.path, record, elsewhere), group))


def load_initial_weights(
    store: CheckpointStore, initial: Initial, engine: Engine, config: RunConfig
) -> None:
    """Read another run's weights into a new engine, a dense model's into each of its experts.
    Collective."""
    if initial.base is not None:
        store.load(initial.base, engine.frozen_state())
    if initial.weights is None:
        return
    assert initial.weights.manifest is not None
    weights = {name: t for name, t in engine.state().items() if name.startswith("model.")}
    read = partial(store.load, initial.weights)
    if gets_experts(initial.weights.manifest.record, config.model):
        read_upcycled(read, weights, config.model, config.checkpoint.init_from_noise)
    else:
        read(weights)
