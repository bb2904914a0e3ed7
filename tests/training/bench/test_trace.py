"""Where the time went, from traces shaped like those that torch's profiler exports."""

from __future__ import annotations

from typing import Any

import pytest

from triax.training.bench.kinds import Kind
from triax.training.bench.trace import STEP_RANGE, break_down

MAIN, AUTOGRAD = 100, 200


class Trace:
    """Writes a trace, in microseconds."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
            {"ph": "f", "cat": "ac2g", "name": "ac2g", "id": 1, "ts": 0},
        ]
        self._correlation = 0

    def host(
        self, name: str, start: float, end: float, cat: str = "cpu_op", tid: int = MAIN
    ) -> None:
        """Something that the host did."""
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": end - start,
             "args": {"External id": 1}}
        )  # fmt: skip

    def step(self, start: float, end: float) -> None:
        """The range around a step, which shows up on the device's side too."""
        self.host(STEP_RANGE, start, end, "user_annotation")
        self.host(STEP_RANGE, start + 1, end + 99, "gpu_user_annotation", tid=7)

    def kernel(
        self, name: str, launch: float, start: float, end: float, cat: str = "kernel",
        tid: int = MAIN, stream: int = 7, runtime: str = "cuda_runtime",
    ) -> None:  # fmt: skip
        """A kernel and its launch."""
        self._correlation += 1
        args = {"correlation": self._correlation}
        self.events.append(
            {"ph": "X", "cat": runtime, "name": "cudaLaunchKernel", "tid": tid, "ts": launch,
             "dur": 1, "args": args}
        )  # fmt: skip
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "tid": stream, "ts": start, "dur": end - start,
             "args": args | {"device": 0, "stream": stream}}
        )  # fmt: skip

    def broken_down(self, is_gpu: bool = True) -> Any:
        """Where its time went."""
        return break_down({"traceEvents": self.events}, is_gpu)


def shares(breakdown: Any) -> dict[str, int]:
    return {kind: round(1e6 * seconds) for kind, seconds in breakdown.seconds.items() if seconds}


@pytest.fixture
def gpu() -> Trace:
    """A warm-up step that is left out, and one step on the device from 1000 to 1100."""
    trace = Trace()
    trace.step(0, 100)
    trace.kernel("nvjet_warm_up", 10, 500, 900)
    trace.step(200, 300)
    trace.kernel("nvjet_tst_128x256_64x4", 210, 1000, 1030)
    trace.host("_ChunkedCrossEntropy", 215, 225)
    trace.kernel("triton_red_fused_exp_sum", 220, 1030, 1040, runtime="cuda_driver")
    name = "autograd::engine::evaluate_function: _ChunkedCrossEntropyBackward"
    trace.host(name, 230, 240, tid=AUTOGRAD)
    trace.kernel("nvjet_tst_head", 232, 1040, 1045, tid=AUTOGRAD)
    trace.kernel("void at::native::elementwise_kernel", 235, 1045, 1050, tid=AUTOGRAD)
    trace.kernel("triton_poi_fused_silu_mm", 245, 1050, 1055, tid=AUTOGRAD)
    trace.host("FSDP::post_backward_reduce (blocks.0)", 250, 262, "user_annotation", AUTOGRAD)
    trace.kernel("void at::native::multi_tensor_apply_kernel", 251, 1055, 1060, tid=AUTOGRAD)
    trace.kernel("ncclDevKernel_ReduceScatter_Sum_f32", 260, 1050, 1075, stream=20)
    trace.host("Optimizer.step#AdamW.step", 280, 290, "user_annotation")
    trace.kernel("triton_for_fused_adam", 285, 1080, 1090)
    trace.kernel("Memcpy DtoH (Device -> Pinned)", 295, 1095, 1100, cat="gpu_memcpy")
    return trace


def test_every_microsecond_has_one_kind(gpu: Trace) -> None:
    breakdown = gpu.broken_down()
    assert shares(breakdown) == {
        "gemm": 35, "loss": 15, "elementwise": 5, "copies": 5 + 5, "communication": 15,
        "optimizer": 10, "idle": 10,
    }  # fmt: skip
    assert sum(breakdown.seconds.values()) == pytest.approx(breakdown.step_seconds)
    assert round(1e6 * breakdown.step_seconds) == 100
    assert breakdown.num_steps == 1


def test_communication_beside_something_else_is_hidden(gpu: Trace) -> None:
    assert round(1e6 * gpu.broken_down().hidden_communication) == 10


def test_figures_are_those_of_one_step(gpu: Trace) -> None:
    gpu.step(300, 400)
    gpu.kernel("nvjet_tst_128x256_64x4", 310, 1100, 1140)
    breakdown = gpu.broken_down()
    assert breakdown.num_steps == 2
    assert round(1e6 * breakdown.step_seconds) == 70
    longest = breakdown.kernels[0]
    assert (longest.name, longest.kind) == ("nvjet_tst_128x256_64x4", Kind.GEMM)
    assert (round(1e6 * longest.seconds), longest.num_runs) == (35, 1)


def test_what_the_steps_launched_ends_the_time(gpu: Trace) -> None:
    """The profiler's own last copy is no part of a step."""
    gpu.kernel("Memcpy DtoD (Device -> Device)", 450, 2000, 2100, cat="gpu_memcpy")
    assert round(1e6 * gpu.broken_down().step_seconds) == 100


def test_waits_of_the_steps_are_counted(gpu: Trace) -> None:
    gpu.host("cudaStreamSynchronize", 20, 30, "cuda_runtime")  # of the step that is left out
    assert gpu.broken_down().waits == {}
    gpu.host("cudaStreamSynchronize", 270, 275, "cuda_runtime")
    gpu.host("aten::_local_scalar_dense", 268, 276)
    gpu.host("cudaEventSynchronize", 296, 299, "cuda_runtime")
    gpu.host("cudaDeviceSynchronize", 390, 399, "cuda_runtime")  # the profiler's
    breakdown = gpu.broken_down()
    assert breakdown.waits == {
        "cudaStreamSynchronize": 1, "aten::_local_scalar_dense": 1, "cudaEventSynchronize": 1
    }  # fmt: skip
    assert breakdown.num_stream_waits == 1


def test_a_copy_to_pageable_memory_is_a_wait_of_its_own(gpu: Trace) -> None:
    gpu.kernel("Memcpy DtoH (Device -> Pageable)", 270, 272, 274, cat="gpu_memcpy")
    assert gpu.broken_down().num_stream_waits == 1
    gpu.host("cudaStreamSynchronize", 271, 275, "cuda_runtime")
    assert gpu.broken_down().num_stream_waits == 1


@pytest.fixture
def cpu() -> Trace:
    """A step from 200 to 300 in which operations are nested."""
    trace = Trace()
    trace.step(0, 100)
    trace.step(200, 300)
    trace.events = [each for each in trace.events if each.get("cat") != "gpu_user_annotation"]
    return trace


def test_an_operation_counts_where_no_other_is_in_it(cpu: Trace) -> None:
    cpu.host("aten::linear", 200, 240)
    cpu.host("aten::t", 202, 205)
    cpu.host("aten::mm", 210, 240)
    cpu.host("aten::resolve_conj", 212, 214)
    assert shares(cpu.broken_down(is_gpu=False)) == {"gemm": 30, "elementwise": 3, "idle": 67}


def test_what_is_in_a_range_is_for_it(cpu: Trace) -> None:
    cpu.host("_ChunkedCrossEntropy", 200, 250)
    cpu.host("aten::exp", 210, 220)
    cpu.host("aten::mm", 220, 230)
    cpu.host("Optimizer.step#AdamW.step", 250, 290, "user_annotation")
    cpu.host("aten::_fused_adamw_", 255, 285)
    assert shares(cpu.broken_down(is_gpu=False)) == {
        "loss": 10,
        "gemm": 10,
        "optimizer": 30,
        "idle": 50,
    }


def test_a_compiled_region_is_a_fused_loop_but_for_its_products(cpu: Trace) -> None:
    cpu.host("Torch-Compiled Region: 0/0", 200, 260)
    cpu.host("## Call CompiledFxGraph abc ##", 210, 250, "user_annotation")
    cpu.host("aten::mm", 220, 240)
    assert shares(cpu.broken_down(is_gpu=False)) == {"elementwise": 40, "gemm": 20, "idle": 40}


def test_threads_are_nested_apart(cpu: Trace) -> None:
    cpu.host("aten::mul", 200, 220)
    cpu.host("gloo:all_reduce", 210, 230, "user_annotation", tid=AUTOGRAD)
    breakdown = cpu.broken_down(is_gpu=False)
    assert shares(breakdown) == {"elementwise": 20, "communication": 10, "idle": 70}
    assert round(1e6 * breakdown.hidden_communication) == 10


def test_a_gpu_whose_kernels_are_not_seen_is_idle(cpu: Trace) -> None:
    cpu.host("aten::mm", 200, 240)
    assert shares(cpu.broken_down(is_gpu=True)) == {"idle": 100}
