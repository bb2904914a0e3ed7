"""One small training job, run by an engine on many processes or by a plain loop on one.

Shape letters: B sequences, T tokens.
"""

from __future__ import annotations

import functools
import gc
import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from documents import document_ids
from groups import shares_meshes
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from triax.checkpoint.store import CheckpointStore
from triax.common.tokens import IGNORE_INDEX
from triax.models.batch import Batch
from triax.models.description import describe
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.engines import ENGINES
from triax.parallel.engines.native import NativeEngine
from triax.parallel.flat_shards import FlatShard
from triax.parallel.layout import Layout
from triax.parallel.mesh import build_mesh
from triax.training.config import OptimizerConfig
from triax.training.step.apex import chosen, find_fused_rms_norm
from triax.training.step.guard import Guard
from triax.training.step.optimizer import optimizer_maker
from triax.training.step.precision import LossScaler
from triax.training.step.step import StepContext, train_step

SEQ_LEN = 16
SEED = 3

SMALL = dict(
    num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2, ffn_hidden_size=48, vocab_size=96,
    qk_norm=True, z_loss=1e-3, init_std=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A job: its model, its batch and its layout."""

    model: dict[str, Any] = field(default_factory=lambda: dict(SMALL))
    parallel: dict[str, Any] = field(default_factory=dict)
    global_batch_size: int = 8
    micro_batch_size: int = 1
    num_steps: int = 10
    clip_norm: float | None = 3.5
    precision: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    seq_len: int = SEQ_LEN
    documents: str = "random"
    """A pattern of `documents.document_ids`."""
    # Adam's first steps divide a gradient by its own size: with the usual eps, rounding decides
    # the sign of the update where the gradient is all but zero.
    optimizer: dict[str, Any] = field(default_factory=lambda: {"lr": 2e-3, "eps": 1e-5})


@dataclass
class Run:
    """What a job gave."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]
    """After the first step, unclipped."""
    parameters: dict[str, Tensor]
    """After the last step."""


def sequences(
    first: int,
    count: int,
    vocab_size: int,
    seq_len: int = SEQ_LEN,
    pattern: str = "random",
) -> Batch:
    """Sequences by number: rising tokens, packed documents, unequal numbers of targets."""
    tokens, targets, documents = [], [], []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 + number)
        steps = torch.randint(0, 4, (seq_len + 1,), generator=generator)
        row = (steps.cumsum(0) + number) % vocab_size
        ids = document_ids(pattern, seq_len, generator)
        ignored = torch.rand(seq_len, generator=generator) < torch.rand((), generator=generator)
        tokens.append(row[:-1])
        targets.append(row[1:].masked_fill(ignored, IGNORE_INDEX))
        documents += [] if ids is None else [ids]
    ids_BT = torch.stack(documents) if documents else None
    return Batch(torch.stack(tokens), torch.stack(targets), ids_BT)


def plain_run(case: Case) -> Run:
    """The reference: a plain model, a plain loop, its norm in fp64, torch's clipping and AdamW."""
    config = model_config(**case.model)
    model = Transformer(config)
    initialise_model(model, model.description, SEED)
    optimizer_config = OptimizerConfig(**case.optimizer)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=optimizer_config.lr, betas=optimizer_config.betas, eps=optimizer_config.eps,
        weight_decay=optimizer_config.weight_decay, foreach=False, fused=False,
    )  # fmt: skip
    run = Run([], [], {}, {})
    for step in range(case.num_steps):
        first = step * case.global_batch_size
        rows = sequences(
            first, case.global_batch_size, config.vocab_size, case.seq_len, case.documents
        )
        logits = model.logits(rows.tokens_BT, rows.document_ids_BT)
        targets = rows.targets_BT
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
        )
        normaliser = torch.logsumexp(logits, -1)[targets != IGNORE_INDEX]
        (loss + config.z_loss * normaliser.square().mean()).backward()
        if step == 0:
            run.gradients = {
                n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }
        # Torch's own norm is too small by parts in a thousand for large tensors on a CPU.
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = sum(gradient.double().square().sum() for gradient in gradients) ** 0.5
        torch.nn.utils.clip_grads_with_norm_(
            model.parameters(), case.clip_norm or 1e30, norm.float()
        )
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(loss.item())
        run.grad_norms.append(norm.item())
    run.parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    return run


def merged(runs: list[Run]) -> Run:
    """One result from those of all ranks, which hold different pipeline stages."""
    first = runs[0]
    for run in runs:
        assert (run.losses, run.grad_norms) == (first.losses, first.grad_norms), "ranks disagree"
    return Run(
        first.losses,
        first.grad_norms,
        {name: value for run in runs for name, value in run.gradients.items()},
        {name: value for run in runs for name, value in run.parameters.items()},
    )


@dataclass(frozen=True)
class Difference:
    """How far a run is from the reference: relative for losses and norms, else absolute."""

    losses: float
    grad_norms: float
    gradients: float
    parameters: float

    @property
    def worst(self) -> float:
        """The largest of them."""
        return _worst(astuple(self))

    def or_worse(self, other: Difference) -> Difference:
        """The larger of both runs' differences."""
        return Difference(*map(_worst, zip(astuple(self), astuple(other), strict=True)))


def difference(run: Run, expected: Run) -> Difference:
    """Compare two runs of the same job."""
    assert run.gradients.keys() == expected.gradients.keys()
    assert run.parameters.keys() == expected.parameters.keys()

    def absolute(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
        return _worst([float((found[name] - wanted[name]).abs().max()) for name in wanted])

    return Difference(
        furthest(run.losses, expected.losses),
        furthest(run.grad_norms, expected.grad_norms),
        absolute(run.gradients, expected.gradients),
        absolute(run.parameters, expected.parameters),
    )


def furthest(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference."""
    return _worst([abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True)])


def _worst(differences: Sequence[float]) -> float:
    """The largest; NaN if there is one, which Python's own `max` passes over."""
    return float(torch.tensor(differences, dtype=torch.float64).max())


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full tensors of plain ones, DTensors and pieces; needs all processes."""
    full = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)
        .detach()
        .cpu()
        .clone()
        for name, tensor in tensors.items()
        if not isinstance(tensor, FlatShard)
    }
    return full | _assembled({n: t for n, t in tensors.items() if isinstance(t, FlatShard)})


def _assembled(tensors: Mapping[str, FlatShard]) -> dict[str, Tensor]:
    """The tensors that all processes' pieces make together; NaN where there is none."""
    mine = {name: (tensor.shape, tensor.rectangles) for name, tensor in tensors.items()}
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, mine)
    full: dict[str, Tensor] = {}
    for held in of_all:
        for name, (shape, pieces) in held.items():
            tensor = full.setdefault(name, torch.full(shape, torch.nan))
            for offset, values in pieces:
                places = zip(offset, values.shape, strict=True)
                tensor[tuple(slice(start, start + size) for start, size in places)] = values
    return full


def named_weights(engine: Any) -> dict[str, Tensor]:
    """An engine's weights, whole."""
    weights = {n: t for n, t in engine.state().items() if n.startswith("model.")}
    return {name.removeprefix("model."): tensor for name, tensor in whole(weights).items()}


def named_gradients(engine: Any) -> dict[str, Tensor]:
    """An engine's gradients between the passes and the update, whole."""
    if isinstance(engine, NativeEngine):
        return whole({n: p.grad for n, p in engine.parameters.items() if p.grad is not None})
    zero, blocks = engine._zero, engine._blocks
    return whole(
        {n: FlatShard(g.float(), zero.shares[n].first, blocks[n]) for n, g in zero.gradients()}
    )


def recording(kind: type) -> type:
    """An engine that keeps the first step's whole gradients."""

    class RecordingEngine(kind):  # type: ignore[misc]
        def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
            if lr and not hasattr(self, "gradients"):
                self.gradients = named_gradients(self)
            super().update(lr, gradient_factor, skip)

    return RecordingEngine


def engine_class(case: Case) -> type:
    """The class of the case's engine."""
    module, name = ENGINES[case.parallel.get("engine", "native")].split(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def make_engine(case: Case, kind: type | None = None) -> Any:
    """The case's engine on this process, or one of the given class."""
    parallel, precision = ParallelConfig(**case.parallel), PrecisionConfig(**case.precision)
    mesh = build_mesh(Layout.of(parallel, dist.get_world_size()), case.device)
    optimizer = OptimizerConfig(**case.optimizer)
    is_native = parallel.engine == "native"
    model = model_config(**case.model)
    table = describe(model).parameters
    return (kind or engine_class(case))(
        model, mesh, parallel,
        precision=precision, seq_len=case.seq_len, seed=SEED,
        make_optimizer=optimizer_maker(optimizer, precision, table, is_native=is_native),
        rms_norm=chosen(optimizer, find_fused_rms_norm, can_take=True, on_cuda=False),
    )  # fmt: skip


def micro_batches(case: Case, step: int) -> list[Batch]:
    """This process's part of a step's global batch."""
    layout = Layout.of(ParallelConfig(**case.parallel), dist.get_world_size())
    share = case.global_batch_size // layout.data_parallel
    first = step * case.global_batch_size + layout.data_rank(dist.get_rank()) * share
    vocab_size = model_config(**case.model).vocab_size
    return [
        sequences(start, case.micro_batch_size, vocab_size, case.seq_len, case.documents)
        for start in range(first, first + share, case.micro_batch_size)
    ]


def make_context(case: Case, engine: Any) -> StepContext:
    """What the case's steps work with."""
    precision = PrecisionConfig(**{"initial_loss_scale": 1024.0, **case.precision})
    return StepContext(
        engine, LossScaler(precision, engine.device), Guard(device=engine.device), case.clip_norm
    )


Begin = Callable[[Mapping[str, Tensor]], object]
"""Changes a new engine's state, by the names of a checkpoint, before the first step."""


@shares_meshes
def engine_run(case: Case, begin: Begin | None = None) -> Run:
    """The case on this process among its peers; every rank returns the whole result."""
    engine = make_engine(case, recording(engine_class(case)))
    if begin is not None:
        begin(engine.state())
    context = make_context(case, engine)
    run = Run([], [], {}, {})
    for step in range(case.num_steps):
        result = train_step(context, micro_batches(case, step), lr=case.optimizer["lr"])
        assert not result.skipped.item()
        run.losses.append(result.loss.item())
        run.grad_norms.append(result.grad_norm.item())
    run.gradients = engine.gradients
    run.parameters = named_weights(engine)
    return run


def engine_runs(cases: Sequence[Case]) -> list[Run]:
    """Several cases one after the other in the same processes."""
    return [engine_run(case) for case in cases]


def first_update(case: Case) -> dict[str, float]:
    """How far the first update moves each parameter at most."""
    engine = make_engine(case)
    before = named_weights(engine)
    train_step(make_context(case, engine), micro_batches(case, 0), lr=case.optimizer["lr"])
    after = named_weights(engine)
    return {name: float((after[name] - before[name]).abs().max()) for name in before}


def live_bytes() -> int:
    """Bytes of all tensor storages that this process holds."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            local = thing.to_local() if hasattr(thing, "to_local") else thing
            storage = local.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def differing_weights(case: Case) -> list[list[str]]:
    """After each of a few updates, the second of them skipped, and after writing into the state as
    a checkpoint does: the weights that the model computes with that aren't the main ones, cast."""
    engine = make_engine(case)
    context = make_context(case, engine)

    def differing() -> list[str]:
        engine._publish()
        weights = dict(engine.parts[0].module.named_parameters())
        main_params = engine.parameters
        return [n for n, w in weights.items() if not torch.equal(w, main_params[n].to(w.dtype))]

    found = [differing()]
    for step in range(4):
        rows = micro_batches(case, step)
        sums = engine.forward_backward(rows, torch.tensor(torch.nan if step == 1 else 1e-2))
        context.guard.judge(sums.cross_entropy, sums.grad_norm)
        engine.update(1e-2, torch.ones(()), torch.tensor(float(step == 1)))
        found.append(differing())
    for tensor in engine.state().values():
        tensor.mul_(1.25)
    return [*found, differing()]


def live_bytes_of_a_step(case: Case) -> float:
    """What lives when a step's gradients are ready, in bytes for each weight."""
    before = live_bytes()
    weights: list[float] = []

    class WeighingEngine(NativeEngine):
        def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
            gradients = [parameter.grad for parameter in self.parameters.values()]
            count = sum(gradient.numel() for gradient in gradients if gradient is not None)
            weights.append((live_bytes() - before) / count)
            super().update(lr, gradient_factor, skip)

    train_step(make_context(case, make_engine(case, WeighingEngine)), micro_batches(case, 0), 1e-3)
    return weights[-1]


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._opname.strip("_")] += 1
        return func(*args, **(kwargs or {}))


class Scale:
    """A hook before a model's forward passes: weighs what lives when the second one begins."""

    num_begun = 0
    weight = 0

    def __call__(self, _model: torch.nn.Module, _inputs: Any) -> None:
        self.num_begun += 1
        if self.num_begun == 2:
            self.weight = live_bytes()


@dataclass
class StageProfile:
    """What a ZeRO stage does in one step, on one rank."""

    num_parameter_bytes: int
    num_groups: int
    """FSDP groups: the blocks and the rest."""
    collectives: dict[str, int]
    bytes_between_micro_batches: int
    """Beyond what lived before the model was built."""
    bytes_after_update: int


def stage_profile(case: Case) -> StageProfile:
    """Count collectives and weigh tensors in the second step."""
    before = live_bytes()
    engine = make_engine(case)
    context = make_context(case, engine)
    train_step(context, micro_batches(case, 0), lr=1e-3)
    scale = Scale()
    engine.parts[0].module.register_forward_pre_hook(scale, prepend=True)
    with CollectiveCounter() as counter:
        train_step(context, micro_batches(case, 1), lr=1e-3)
    return StageProfile(
        num_parameter_bytes=sum(p.numel() * 4 for p in engine.parameters.values()),
        num_groups=sum(len(part.module.blocks) + 1 for part in engine.parts),
        collectives=dict(counter.counts),
        bytes_between_micro_batches=scale.weight - before,
        bytes_after_update=live_bytes() - before,
    )


@dataclass
class Leg:
    """A part of a run, between two checkpoints."""

    loaded: dict[str, Tensor]
    """The whole state as it was read."""
    saved: dict[str, Tensor]
    losses: list[float]


def compiled_run(case: Case) -> Run:
    """`engine_run` with a backend that traces like the usual one and needs no C++ compiler."""
    with mock.patch("torch.compile", functools.partial(torch.compile, backend="aot_eager")):
        return engine_run(case)


def compiled_runs(cases: Sequence[Case]) -> list[Run]:
    """Several of them one after the other in the same processes."""
    return [compiled_run(case) for case in cases]


def run_leg(case: Case, folder: str, first_step: int, num_steps: int) -> Leg:
    """Go on from the newest checkpoint in this case's layout, and save at the end."""
    group = dist.new_group(backend="gloo")
    store = CheckpointStore(
        Path(folder), keep=2, asynchronous=False, deadline_seconds=60, group=group, say=print
    )
    engine = make_engine(case)
    found = store.newest_good()
    if found is not None:
        store.load(found, engine.state())
    loaded = whole(engine.state())
    context = make_context(case, engine)
    losses = []
    for step in range(first_step, first_step + num_steps):
        result = train_step(context, micro_batches(case, step), lr=case.optimizer["lr"])
        losses.append(result.loss.item())
    record = {"config": {"model": case.model}}
    store.save(first_step + num_steps, engine.state(), record)
    outcome = store.wait()
    assert outcome is not None and outcome.error is None, outcome
    return Leg(loaded, whole(engine.state()), losses)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result has."""

    largest: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if issubclass(type(tensor), Tensor):
                local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                self.largest = max(self.largest, local.numel())
        return result


def largest_tensor_of_a_step(case: Case) -> int:
    """The most elements of any tensor that a step makes on this process."""
    context = make_context(case, make_engine(case))
    train_step(context, micro_batches(case, 0), lr=1e-3)
    record = LargestTensor()
    with record:
        train_step(context, micro_batches(case, 1), lr=1e-3)
    return record.largest
