"""`triax plan`'s forecast beside speeds that others have published.

    python benchmarks/plan_published.py
    python benchmarks/plan_published.py --held-out

Reads published_runs.toml, which has the source of each. Rows that miss by more than 15% are listed
below the table with what is known about why. With --held-out every source's runs are forecast by
constants that were fitted to the other sources' runs alone.
"""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triax.models.counts import flops_per_token
from triax.models.families import model_config
from triax.models.presets import PRESETS
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.planning.devices import Device, Reach, find_device
from triax.planning.setup import Setup
from triax.planning.time import Software, step_time, tokens_per_second
from triax.training.config import BatchConfig, OptimizerConfig

TABLE = Path(__file__).with_name("published_runs.toml")
TOLERANCE = 0.15
SOFTWARE = {
    # Every second matrix product is computed again ("selective op").
    "torchtitan": Software(selective_products=0.5),
    # Messages of tensor parallelism run beside products (userbuffers); fused kernels.
    "megatron": Software(hides_tensor=0.7),
    "llama3": Software(),
    # No fused attention: the softmax goes through memory, and comes again under "selective".
    "megatron-2022": Software(attention=3.0),
}


@dataclass(frozen=True)
class Row:
    """A published run and its forecast, in the run's own unit."""

    name: str
    source: str
    gpu: str
    num_gpus: int
    unit: str
    measured: float
    forecast: float
    device: Device
    note: str
    miss_note: str
    """Why the forecast misses, where it does."""

    @property
    def miss(self) -> float:
        """How much faster than measured the forecast is, as a share; negative where slower."""
        ratio = self.forecast / self.measured
        return (1 / ratio if self.unit == "seconds a step" else ratio) - 1


def load_rows(path: Path = TABLE) -> list[Row]:
    """Every run of the table, forecast."""
    table = load_table(path)
    return [_row(run, table) for run in table["runs"]]


def load_table(path: Path = TABLE) -> dict[str, Any]:
    """The table of published runs."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _row(run: dict[str, Any], table: dict[str, Any], device: Device | None = None) -> Row:
    name = run["model"]
    model = model_config(**({"preset": name} if name in PRESETS else table["models"][name]))
    setup = Setup(
        model,
        ParallelConfig(**run["parallel"], context=run.get("context", 1)),
        PrecisionConfig(compute=run["compute"]),
        BatchConfig(
            global_batch_size=run["global_batch_size"], micro_batch_size=run["micro_batch_size"]
        ),
        OptimizerConfig(),
        run["seq_len"],
        run["num_gpus"],
    )
    device = _device(run["gpu"], table) if device is None else device
    time = step_time(setup, device, SOFTWARE[run["software"]])
    unit = run.get("unit", "tokens/s")
    rate = tokens_per_second(setup, time) / setup.world_size
    forecast = {
        "tokens/s": rate,
        "TFLOP/s, causal": rate * _causal_flops(setup) / 1e12,
        "seconds a step": time.total,
    }[unit]
    return Row(
        run["name"], run["source"], run["gpu"], run["num_gpus"], unit, run["measured"], forecast,
        device, run.get("note", ""), run.get("miss", ""),
    )  # fmt: skip


def _causal_flops(setup: Setup) -> float:
    """For a token, of attention only the half that isn't masked."""
    whole, none = (flops_per_token(setup.model, tokens) for tokens in (setup.seq_len, 0))
    return (whole + none) / 2


def _device(name: str, table: dict[str, Any]) -> Device:
    settings = dict(table["gpus"].get(name, {"name": name}))
    return find_device(settings.pop("name")).with_overrides(**settings)


FACTORS = [0.88, 0.93, 0.97, 1.0, 1.03, 1.07, 1.12]
"""What is tried of each share of a peak, in what is there before the fit."""
START = Reach(half=0.72, fp8=0.68, attention=0.5, memory=0.88)
"""Of all GPUs, before the fit: about what kernels reach by themselves."""


def held_out_rows(table: dict[str, Any]) -> Iterator[Row]:
    """Every run, forecast by constants that were fitted to the runs of other sources."""
    known: dict[tuple[str, ...], Reach] = {}
    for source in table["sources"]:
        for run in (each for each in table["runs"] if each["source"] == source):
            kind = _kind(run, table)
            others = [each for each in table["runs"] if each["source"] != source]
            own = [each for each in others if _kind(each, table) == kind]
            # Where no other source has such a GPU, Hopper's shares stand for its own.
            own = own or [each for each in others if _kind(each, table) == "hopper"]
            names = tuple(each["name"] + each["source"] for each in own)
            if names not in known:
                known[names] = fitted(own, table)
            yield _row(run, table, _with_reach(run, table, known[names]))


def fitted(runs: Sequence[dict[str, Any]], table: dict[str, Any]) -> Reach:
    """The shares of their peaks by which these runs are forecast best: the least sum of squared
    logarithms, one share after another, twice over."""
    reach = START
    for share in ("half", "fp8", "attention") * 2:
        tried = [reach._replace(**{share: getattr(reach, share) * factor}) for factor in FACTORS]
        reach = min(tried, key=lambda each: _squares(runs, table, each))
    return reach


def _squares(runs: Sequence[dict[str, Any]], table: dict[str, Any], reach: Reach) -> float:
    rows = [_row(run, table, _with_reach(run, table, reach)) for run in runs]
    return sum(math.log1p(row.miss) ** 2 for row in rows)


def _with_reach(run: Mapping[str, Any], table: dict[str, Any], reach: Reach) -> Device:
    """At the clock of the data sheet: a clock was fitted too."""
    settings = {**table["gpus"].get(run["gpu"], {"name": run["gpu"]}), "clock": 1.0}
    return replace(find_device(settings.pop("name")).with_overrides(**settings), reach=reach)


def _kind(run: Mapping[str, Any], table: dict[str, Any]) -> str:
    """GPUs of one generation are of a kind, but for those that run at less power."""
    if "clock" in table["gpus"].get(run["gpu"], {}):
        return str(run["gpu"])
    return {"h": "hopper", "a": "ampere", "b": "blackwell"}[run["gpu"][0]]


def print_held_out(table: dict[str, Any]) -> None:
    """Print a line for each source."""
    rows = list(held_out_rows(table))
    print(f"{'fitted to the other sources':<32}{'runs':>5}{'median':>8}{'worst':>7}  within 15%")
    for source in (*table["sources"], None):
        own = [row for row in rows if source in (row.source, None)]
        misses = sorted((row.miss for row in own), key=abs)
        median = statistics.median(map(abs, misses))
        near = sum(abs(miss) <= TOLERANCE for miss in misses)
        print(
            f"{source or 'all':<32}{len(own):>5}{median:>8.0%}{misses[-1]:>+7.0%}"
            f"{f'{near} of {len(own)}':>12}"
        )


def main() -> None:
    """Print the table, the misses, and the sources."""
    rows, table = load_rows(), load_table()
    print(f"{'run':<37}{'GPUs':>7}  {'GPU':<10}{'published':>10}{'forecast':>9}{'off by':>7}")
    for source in dict.fromkeys(row.source for row in rows):
        print(f"[{source}] {table['sources'][source]}")
        for row in (each for each in rows if each.source == source):
            print(
                f"{row.name:<37}{row.num_gpus:>7,}  {row.gpu.removesuffix('-500w'):<10}"
                f"{_shown(row.measured):>10}{_shown(row.forecast):>9}{row.miss:>+7.0%}"
            )
    print("\ntokens/s and GPU; TFLOP/s and GPU for [llama3]; seconds a step for [korthikanti]")
    near = sum(abs(row.miss) <= TOLERANCE for row in rows)
    print(f"{near} of {len(rows)} within {TOLERANCE:.0%}; the others:")
    for row in rows:
        if abs(row.miss) > TOLERANCE:
            _print_wrapped(f"{row.name} [{row.source}], {row.miss:+.0%}: {row.miss_note}")
    for note in dict.fromkeys(row.note for row in rows if row.note):
        names = [row.name for row in rows if row.note == note]
        _print_wrapped(f"{'; '.join(names)}: {note}")


def _print_wrapped(text: str) -> None:
    print(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))


def _shown(value: float) -> str:
    return f"{value:,.2f}" if value < 95 else f"{value:,.0f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", action="store_true", help="fit to the other sources' runs")
    if parser.parse_args().held_out:
        print_held_out(load_table())
    else:
        main()
