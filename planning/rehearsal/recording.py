"""Records a training step on one process, real or rehearsed: every message, and all memory.

A dispatch mode sees each operation of the passes and of the update, with the tensors inside of
DTensors; collectives are operations too. torch's own tools don't fit here: `MemTracker` (with that
of FSDP2) refuses a second micro-batch and has no word for main params or gathered weights, and
`CommDebugMode` counts collectives without their order, groups and sizes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork, Work
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from triax.models.batch import Batch
from triax.models.layers.transformer import Transformer
from triax.parallel.context import gather, ring
from triax.planning.rehearsal.fake import infers_shapes, is_wrapper, tensors_in
from triax.planning.rehearsal.holdings import mark_built, mark_gradients, mark_whole
from triax.planning.rehearsal.memory import Held, MemoryLog, Part
from triax.planning.rehearsal.messages import Event, Message, Wait, message_of, work_of
from triax.training.step.step import StepContext, train_step

_PACKED = (
    torch.ops.c10d._allgather_base_.default,
    torch.ops.c10d._reduce_scatter_base_.default,
    torch.ops.c10d.recv_.default,
)
"""What has buffers of its own for its messages; others send what there is anyway."""
_INSIDES = gather.gather_attention.insides | ring.ring_attention.insides
"""Operations that send messages within."""
_KERNELS = tuple(
    (m, name) for m in (gather, ring) for name in ("attend_tiles", "differentiate_tiles")
)
"""What a fused kernel would do: what it holds meanwhile isn't taken down."""
PASSES, FORWARD, BACKWARD = "between passes", "forward", "backward"


class Recorder(TorchDispatchMode):
    """Records what happens while it is entered.

    Attributes:
        events: messages, and where the process waits for those that it didn't wait for at once.
        memory: what it holds, and when.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.memory = MemoryLog(lambda: self.phase)
        self._stack = ExitStack()
        self._phase = ""
        self._forward_passes: list[list[Held]] = []
        self._kept: list[list[tuple[Held, int]]] = []
        self._num_messages = 0
        self._is_unseen = False
        self._works: dict[int, tuple[Work, int]] = {}
        self._sent: dict[int, tuple[Any, Any]] = {}

    @property
    def phase(self) -> str:
        """What the step is doing."""
        if self._phase != PASSES:
            return self._phase
        if torch._C._current_graph_task_id() != -1:
            return BACKWARD
        return FORWARD if self._forward_passes else PASSES

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name what comes; within `PASSES` forward and backward passes have names of their own."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(self._seen_resizes())
            for kind in (Work, FakeWork):
                stack.enter_context(self._seen_waits(kind))
            for module, name in _KERNELS:
                stack.enter_context(self._unseen(module, name))
            before = torch_module.register_module_forward_pre_hook(self._begin_forward)
            after = torch_module.register_module_forward_hook(self._end_forward)
            stack.callback(before.remove)
            stack.callback(after.remove)
            self._stack = stack.pop_all()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_wrapper(kind) for kind in types):
            return NotImplemented  # it comes again, with the tensors inside
        kwargs = kwargs or {}
        if func in _INSIDES and not infers_shapes():
            return self._look_inside(_INSIDES[func], *args, **kwargs)
        result = func(*args, **kwargs)
        if infers_shapes() or self._is_unseen:
            return result  # torch's own, or a backend's, which unpacks what has arrived
        for tensor in tensors_in(result):
            self.memory.note(tensor)
        message = message_of(func, args, kwargs, result)
        if message is not None:
            self._take_down(message, func, (*args, *kwargs.values()), result)
        return result

    def _look_inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what an operation does, operation by operation."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            return function(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _take_down(self, message: Message, func: Any, given: Any, result: Any) -> None:
        work = work_of(result)
        if message.is_async and work is not None:
            # As long as the handle lives, torch gives it to the caller as this same object.
            self._works[id(work)] = (work, self._num_messages)
            # A real handle holds what it sends; a fake one doesn't.
            self._sent[id(work)] = given, weakref.ref(work, partial(self._forget, id(work)))
        self._num_messages += 1
        self.events.append(replace(message, phase=self.phase))
        if func in _PACKED:
            self.memory.mark(tensors_in(given), Part.MESSAGES)

    def _forget(self, key: int, _reference: object) -> None:
        self._sent.pop(key, None)

    @contextmanager
    def _seen_waits(self, kind: type) -> Iterator[None]:
        wait = kind.wait  # type: ignore[attr-defined]

        @wraps(wait)
        def seen(work: Work, *args: Any, **kwargs: Any) -> Any:
            _, number = self._works.pop(id(work), (None, None))
            if number is not None:
                self.events.append(Wait(number))
            self._is_unseen = True
            try:
                return wait(work, *args, **kwargs)
            finally:
                self._is_unseen = False

        with mock.patch.object(kind, "wait", seen):
            yield

    @contextmanager
    def _unseen(self, module: Any, name: str) -> Iterator[None]:
        function = getattr(module, name)

        @wraps(function)
        def unseen(*args: Any) -> Any:
            self._is_unseen = True
            try:
                result = function(*args)
            finally:
                self._is_unseen = False
            for tensor in tensors_in(result):
                self.memory.note(tensor)
            return result

        with mock.patch.object(module, name, unseen):
            yield

    @contextmanager
    def _seen_resizes(self) -> Iterator[None]:
        resize = torch.UntypedStorage.resize_

        @wraps(resize)
        def seen(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            self.memory.resized(storage)
            return result

        with mock.patch.object(torch.UntypedStorage, "resize_", seen):
            yield

    def _begin_forward(self, module: nn.Module, _inputs: Any) -> None:
        if isinstance(module, Transformer):
            mark_whole(module, self.memory)
            self._forward_passes.append(self.memory.alive())

    def _end_forward(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if isinstance(module, Transformer):
            before = set(map(id, self._forward_passes.pop()))
            new = [held for held in self.memory.alive() if id(held) not in before]
            for held in new:
                held.mark(Part.ACTIVATIONS)
            self._kept.append([(held, held.num_bytes) for held in new])

    def kept(self) -> tuple[int, ...]:
        """Bytes of activations that each forward pass has left, in order."""
        return tuple(
            sum(size for held, size in new if held.part is Part.ACTIVATIONS) for new in self._kept
        )


class _RecordedEngine:
    """An engine whose work is recorded verb by verb; all else is the engine's own."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def count_targets(self, micro_batches: Sequence[Batch]) -> Any:
        with self._recorder.during("count"):
            return self._engine.count_targets(micro_batches)

    def forward_backward(self, micro_batches: Sequence[Batch], weight: Tensor) -> Any:
        with self._recorder.during(PASSES):
            sums = self._engine.forward_backward(micro_batches, weight)
        mark_gradients(self._engine, self._recorder.memory)
        for stage in self._engine.parts:
            mark_whole(stage.module, self._recorder.memory)
        return sums

    def update(self, lr: float, gradient_factor: Tensor, skip: Tensor) -> None:
        with self._recorder.during("update"):
            self._engine.update(lr, gradient_factor, skip)


@dataclass(frozen=True)
class Recording:
    """A step on one process.

    Attributes:
        rank: the process's.
        events: messages and waits, in order, those of the building first.
        peaks: bytes by part in the fullest moment of each phase.
        highest: the most that each part had at any moment.
        kept: bytes of activations that each forward pass left for the backward pass.
    """

    rank: int
    events: tuple[Event, ...]
    peaks: Mapping[str, Mapping[Part, int]]
    highest: Mapping[Part, int]
    kept: tuple[int, ...]

    @property
    def messages(self) -> list[Message]:
        """In order."""
        return [event for event in self.events if isinstance(event, Message)]

    @property
    def peak(self) -> tuple[str, int]:
        """The phase of the fullest moment of all, and its bytes."""
        totals = {phase: sum(parts.values()) for phase, parts in self.peaks.items()}
        return max(totals.items(), key=lambda item: item[1])


def record_step(
    build: Callable[[], StepContext], micro_batches: Sequence[Batch], lr: float
) -> Recording:
    """Build an engine and take one step with it, on this process among its peers or in a rehearsal.

    Args:
        build: makes the engine and what its steps work with.
        micro_batches: this process's part of the global batch.
        lr: learning rate.
    """
    recorder = Recorder()
    with recorder:
        with recorder.during("build"):
            context = build()
            engine = _RecordedEngine(context.engine, recorder)
            mark_built(engine, recorder.memory)
        with recorder.during("step"):
            train_step(replace(context, engine=engine), micro_batches, lr)
    return Recording(
        dist.get_rank(),
        tuple(recorder.events),
        recorder.memory.peaks(),
        recorder.memory.highest(),
        recorder.kept(),
    )
