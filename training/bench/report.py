"""What `triax bench` says: a table for people, an object for machines."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from triax.common.quantities import format_count
from triax.training.bench.kinds import Kind
from triax.training.bench.measure import Measured
from triax.training.bench.roofline import Roofline

WIDTH = 80


@dataclass(frozen=True)
class Setup:
    """What was measured.

    Attributes:
        model: a preset's name, or "custom".
        num_tokens: of a step, over all processes.
        flops_per_token: by `models.counts`.
        peak_flops: FLOP/s of one device in this precision; None where it isn't known.
        options: other settings that matter, as they are to be shown.
        versions: of what was measured with.
        start_seconds: from the process's start to the end of the first step.
    """

    model: str
    num_layers: int
    num_parameters: int
    seq_len: int
    micro_batch_size: int
    num_micro_batches: int
    num_tokens: int
    flops_per_token: int
    device: str
    num_processes: int
    compute: str
    peak_flops: float | None
    options: dict[str, Any]
    versions: dict[str, str]
    start_seconds: float


@dataclass(frozen=True)
class Report:
    """One benchmark's figures."""

    setup: Setup
    measured: Measured
    limit: Roofline

    @property
    def step_seconds(self) -> float:
        """Of the median timed step."""
        return statistics.median(self.measured.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Over all processes."""
        return self.setup.num_tokens / self.step_seconds

    @property
    def flops(self) -> float:
        """FLOP/s of one device."""
        return self.tokens_per_second * self.setup.flops_per_token / self.setup.num_processes

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak, None where that isn't known."""
        peak = self.setup.peak_flops
        return None if peak is None else self.flops / peak

    @property
    def ratio(self) -> float:
        """Of the limit's time to the step's: 1 is as fast as can be."""
        return self.limit.total / self.step_seconds


def as_json(report: Report) -> dict[str, Any]:
    """All figures under plain names; times in seconds. A loss that isn't finite is None."""
    setup, measured = asdict(report.setup), asdict(report.measured)
    seconds = report.measured.step_seconds
    measured["step_seconds"] = {
        "median": report.step_seconds, "min": min(seconds), "max": max(seconds),
        "all": seconds,
    }  # fmt: skip
    breakdown = measured.pop("breakdown")
    kernels = [kernel._asdict() for kernel in report.measured.breakdown.kernels]
    return {
        "setup": setup,
        "tokens_per_second": report.tokens_per_second,
        "tokens_per_second_per_device": report.tokens_per_second / report.setup.num_processes,
        "tflops_per_device": report.flops / 1e12,
        "mfu": report.mfu,
        **measured,
        "first_loss": _finite(report.measured.first_loss),
        "losses": [_finite(loss) for loss in report.measured.losses],
        "limit": {
            **asdict(report.limit),
            "total": report.limit.total,
            "tokens_per_second": report.setup.num_tokens / report.limit.total,
        },
        "ratio": report.ratio,
        "profile": {
            **breakdown,
            "num_stream_waits": report.measured.breakdown.num_stream_waits,
            "kernels": kernels,
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def as_table(report: Report, num_kernels: int = 0) -> str:
    """The figures in lines of at most 80 columns, with so many of the longest kernels."""
    lines = [*_head(report), "", *_figures(report), "", *_times(report), "", *_checks(report)]
    if num_kernels:
        lines += ["", *_kernels(report, num_kernels)]
    return "\n".join(lines)


def _head(report: Report) -> Iterator[str]:
    setup = report.setup
    yield from _wrapped(
        "model",
        f"{setup.model}, {format_count(setup.num_parameters)} parameters in {setup.num_layers} "
        "layers",
    )
    micro = "1 micro-batch" if setup.num_micro_batches == 1 else (
        f"{setup.num_micro_batches} micro-batches"
    )  # fmt: skip
    yield from _wrapped(
        "batch",
        f"{micro} of {setup.micro_batch_size} x {setup.seq_len:,} tokens a process, "
        f"{setup.num_tokens:,} tokens a step",
    )
    processes = "1 process" if setup.num_processes == 1 else f"{setup.num_processes} processes"
    options = ", ".join(f"{name} {value}" for name, value in setup.options.items())
    yield from _wrapped("compute", f"{processes} on {setup.device}, {setup.compute}; {options}")
    versions = ", ".join(f"{name} {version}" for name, version in setup.versions.items())
    yield from _wrapped("versions", versions)


def _figures(report: Report) -> Iterator[str]:
    setup, measured, memory = report.setup, report.measured, report.measured.memory
    seconds = measured.step_seconds
    yield _figure(
        "step", f"{1e3 * report.step_seconds:,.1f} ms",
        f"median of {len(seconds)}; {1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f}",
    )  # fmt: skip
    per_device = report.tokens_per_second / setup.num_processes
    rate = f"{per_device:,.0f} a device" if setup.num_processes > 1 else ""
    yield _figure("tokens/s", f"{report.tokens_per_second:,.0f}", rate)
    yield _figure(
        "TFLOP/s", f"{report.flops / 1e12:,.2f}",
        "a device, by PaLM's convention",
    )  # fmt: skip
    if report.mfu is None or setup.peak_flops is None:
        yield _figure("MFU", "-", f"the {setup.compute} peak of {setup.device} isn't known")
    else:
        peak = f"of {setup.peak_flops / 1e12:,.0f} TFLOP/s, the dense {setup.compute} peak"
        yield _figure("MFU", f"{100 * report.mfu:.1f} %", peak)
    held = f"of {memory.total_gib:,.1f}"
    if memory.reserved_gib is not None:
        held = f"in tensors at most; {memory.reserved_gib:,.2f} reserved, {held}"
    yield _figure("memory", f"{memory.peak_gib:,.2f} GiB", held)
    yield _figure(
        "start", f"{setup.start_seconds:,.1f} s",
        f"to the end of the first step, which took {measured.first_step_seconds:,.1f}",
    )  # fmt: skip
    refused = f"; {measured.num_skipped} steps refused" if measured.num_skipped else ""
    yield _figure(
        "loss", f"{measured.first_loss:.3f}", f"in the first step, {measured.losses[-1]:.3f} in "
        f"the last timed one{refused}",
    )  # fmt: skip


def _times(report: Report) -> Iterator[str]:
    breakdown, limit = report.measured.breakdown, report.limit
    limits = {
        Kind.GEMM: (limit.gemm, f"{limit.gemm_flops / limit.gemm / 1e12:,.2f} TFLOP/s"),
        Kind.ATTENTION: (limit.attention, f"kernel: {limit.attention_backend}"),
        Kind.OPTIMIZER: (
            limit.optimizer, f"copy at {limit.copy_bytes_per_second / 1e9:,.1f} GB/s",
        ),
    }  # fmt: skip
    yield f"{'where the time goes':20}{'ms':>11}{'share':>9}{'limit ms':>12}"
    for kind, seconds in breakdown.seconds.items():
        share = seconds / breakdown.step_seconds
        alone, how = limits.get(kind, (None, ""))
        bound = "" if alone is None else f"{1e3 * alone:12,.2f}  {how}"
        yield f"  {kind:18}{1e3 * seconds:11,.2f}{100 * share:8.1f}%{bound}".rstrip()
    total = f"{1e3 * limit.total:12,.2f}"
    yield f"  {'profiled step':18}{1e3 * breakdown.step_seconds:11,.2f}{100:8.1f}%{total}"
    rate = report.setup.num_tokens / limit.total
    yield ""
    yield _figure("limit", f"{rate:,.0f}", "tokens/s, by the right column's times and no others")
    yield _figure("ratio", f"{report.ratio:.3f}", "of the limit's time to the timed step's")


def _checks(report: Report) -> Iterator[str]:
    breakdown, memory = report.measured.breakdown, report.measured.memory
    if breakdown.seconds[Kind.IDLE] == breakdown.step_seconds:
        yield from _wrapped("note", "the profiler saw no kernel: it may not look at this device")
    waits = ", ".join(f"{count:g} {name}" for name, count in breakdown.waits.items()) or "none"
    yield from _wrapped(
        "waits",
        f"{breakdown.num_stream_waits:g} a step for all that the device has to do; "
        f"calls a step: {waits}",
    )
    if memory.growth_bytes is not None:
        yield from _wrapped(
            "growth",
            f"{memory.growth_bytes:,} bytes over the timed steps, {memory.num_retries} "
            f"allocations retried, {memory.num_device_allocations} from the device",
        )
    yield from _wrapped(
        "FLOPs",
        f"{report.setup.flops_per_token:.4g} a token: 6 a matrix weight and 12 LHKT for attention "
        "(PaLM), without a discount for the causal mask; recomputation isn't counted",
    )
    if breakdown.hidden_communication:
        hidden = f"{1e3 * breakdown.hidden_communication:,.2f} ms of communication a step"
        yield from _wrapped("hidden", f"{hidden} beside something else")


def _kernels(report: Report, num_kernels: int) -> Iterator[str]:
    yield f"{'kind':15}{'ms':>9}{'runs':>8}  kernel"
    for kernel in report.measured.breakdown.kernels[:num_kernels]:
        row = f"{kernel.kind:15}{1e3 * kernel.seconds:9,.2f}{kernel.num_runs:8,.0f}  {kernel.name}"
        yield row if len(row) <= WIDTH else f"{row[: WIDTH - 3]}..."


def _figure(name: str, value: str, note: str) -> str:
    return textwrap.fill(f"{name:10}{value:>13}   {note}", WIDTH, subsequent_indent=" " * 26)


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name:10}{text}", WIDTH, subsequent_indent=" " * 10)
