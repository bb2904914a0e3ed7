"""Finds processes that don't fit the others, and bad machines, before the model is built."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from triax.common.errors import UserError
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.data.read.identity import Identity
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.resolved import diff_configs
from triax.launcher.config.run_config import RunConfig
from triax.parallel.agreement import decided, reported
from triax.parallel.collectives import reduce_objects
from triax.training.records.hardware import device_name

_MATRIX_SIZE = {"cuda": 2048, "cpu": 256}
_NUM_PRODUCTS = 5
_WORST_SLOWNESS = 2.0
_LEAST_MEMORY = 0.9
_WORST_SKEW_SECONDS = 5.0
_MAX_NAMED = 8

Facts = Mapping[str, str]
"""What must be the same on every rank: name and value."""


def common_facts(config: RunConfig) -> Facts:
    """Versions, triax's own code and the config."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "triax's code": _code_digest(),
        "the config": _digest(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()),
    }


def data_facts(datasets: Sequence[Identity], tokenizer: str | None) -> Facts:
    """What each dataset and the tokenizer are, by their contents."""
    facts = {f"the data {dataset.path}": dataset.key[:12] for dataset in datasets}
    if tokenizer is not None:
        facts[f"the tokenizer {tokenizer}"] = _digest_or_problem(tokenizer)
    return facts


def refuse_differences(facts: Facts, processes: Processes, config: RunConfig) -> None:
    """Compare facts between all ranks. Collective.

    Raises:
        UserError: ranks differ; it names them, their hosts, and what differs.
    """
    rank, group = processes.environment.rank, processes.control_group
    # Equal sets of facts become one on the way: what is sent doesn't grow with the ranks.
    here = Alike(1, ((rank, processes.environment.hostname),))
    kinds = reduce_objects({tuple(facts.items()): here}, _joined, group)
    if len(kinds) == 1:
        return
    first_ranks = {alike.first[0][0] for alike in kinds.values()}
    configs = reported(
        lambda: config.model_dump(mode="json") if rank in first_ranks else None, group
    )
    problems = list(_differences(kinds))
    for other in sorted(configs):
        for change in diff_configs(configs[0], configs[other])[:_MAX_NAMED]:
            problems.append(f"config of rank 0 -> rank {other}: {change}")
    raise UserError(
        "the processes of this job disagree:\n"
        + "\n".join(f"  {problem}" for problem in problems)
        + "\ngive all of them the same config, data and installation"
    )


@dataclass(frozen=True)
class Alike:
    """Ranks with the same facts."""

    num_ranks: int
    first: tuple[tuple[int, str], ...]
    """The first few of them, and their hosts."""

    def __add__(self, later: Alike) -> Alike:
        first = (self.first + later.first)[: _MAX_NAMED + 1]
        return Alike(self.num_ranks + later.num_ranks, tuple(sorted(first)))


Kinds = dict[tuple[tuple[str, str], ...], Alike]
"""Who has which facts."""


def _joined(left: Kinds, right: Kinds) -> Kinds:
    return left | {facts: left[facts] + a if facts in left else a for facts, a in right.items()}


def _differences(kinds: Kinds) -> Iterator[str]:
    """Who differs from most ranks, fact by fact, one line each."""
    for name in dict.fromkeys(name for facts in kinds for name, _ in facts):
        by_value: dict[str, list[Alike]] = defaultdict(list)
        for facts, alike in kinds.items():
            by_value[dict(facts).get(name, "missing")].append(alike)
        counts = {value: sum(a.num_ranks for a in alike) for value, alike in by_value.items()}
        usual = max(counts, key=lambda value: counts[value])
        odd = sorted(
            (rank, host, value)
            for value, alike in by_value.items()
            if value != usual
            for a in alike
            for rank, host in a.first
        )
        for rank, host, value in odd[:_MAX_NAMED]:
            yield f"rank {rank} on {host}: {name} is {value}, elsewhere {usual}"
        if (num_more := sum(counts.values()) - counts[usual] - len(odd[:_MAX_NAMED])) > 0:
            yield f"... and {num_more} more ranks in {name}"


@dataclass(frozen=True)
class Machine:
    """One process's device and host, as measured."""

    rank: int
    host: str
    device: str
    memory_bytes: int
    """Free on the device; 0 where it isn't known."""
    clock: float
    """Seconds since 1970, when all had met."""
    matmul_seconds: float
    problem: str | None
    """What failed on it."""


def check_machines(processes: Processes, say: Callable[[str], None]) -> None:
    """Measure every process's device, host and connection, and compare. Collective.

    Raises:
        UserError: a device computes wrongly, is of another kind, has less memory or is far slower
            than the others; it names the rank and host.
    """
    began = time.monotonic()
    problems, news = decided(
        partial(_measure, processes),
        partial(_judge, is_shared=processes.device.type == "cpu"),
        processes.control_group,
    )
    if problems:
        raise UserError(
            "preflight found bad machines:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\ntake them out of the job (and tell their administrator)"
        )
    *warnings, verdict = news
    for warning in warnings:
        say(f"preflight: {warning}")
    say(f"preflight: {verdict}, in {time.monotonic() - began:.1f} s")


def _judge(machines: Sequence[Machine], *, is_shared: bool) -> tuple[list[str], list[str]]:
    """What is wrong with machines, and what there is to say of all of them."""
    skew = max(m.clock for m in machines) - min(m.clock for m in machines)
    news = []
    if skew > _WORST_SKEW_SECONDS:
        news.append(f"the hosts' clocks differ by {skew:.1f} s; times in logs won't match")
    seconds = [m.matmul_seconds for m in machines]
    news.append(
        f"{len(machines)} processes on {len({m.host for m in machines})} hosts are "
        f"good ({machines[0].device}; product {min(seconds) * 1e3:.2f} to "
        f"{max(seconds) * 1e3:.2f} ms; clocks within {skew:.2f} s)"
    )
    return find_bad_machines(machines, is_shared=is_shared), news


def find_bad_machines(machines: Sequence[Machine], *, is_shared: bool) -> list[str]:
    """What is wrong with which machine, one line each.

    Args:
        is_shared: processes share their device with others (a CPU): its speed tells nothing.
    """
    problems = []
    usual_device = Counter(m.device for m in machines).most_common(1)[0][0]
    memory = statistics.median(m.memory_bytes for m in machines)
    seconds = statistics.median(m.matmul_seconds for m in machines)
    for m in machines:
        name = f"rank {m.rank} on {m.host}"
        if m.problem is not None:
            problems.append(f"{name}: {m.problem}")
            continue
        if m.device != usual_device:
            problems.append(f"{name}: its device is {m.device}, elsewhere {usual_device}")
        if m.memory_bytes < _LEAST_MEMORY * memory:
            problems.append(
                f"{name}: {m.memory_bytes / 2**30:.1f} GiB of its device are free, elsewhere "
                f"{memory / 2**30:.1f}: does another process hold memory there?"
            )
        if not is_shared and m.matmul_seconds > _WORST_SLOWNESS * seconds:
            problems.append(
                f"{name}: a product takes {m.matmul_seconds * 1e3:.2f} ms, elsewhere "
                f"{seconds * 1e3:.2f}: throttled or shared?"
            )
    return problems


def _measure(processes: Processes) -> Machine:
    environment, device = processes.environment, processes.device
    seconds, problem = 0.0, None
    try:
        seconds, problem = _time_product(device)
    except RuntimeError as error:
        problem = f"a product fails: {error}"
    total = torch.full((8,), float(environment.rank), device=device)
    dist.all_reduce(total)
    expected = environment.world_size * (environment.world_size - 1) / 2
    if problem is None and not bool((total == expected).all()):
        problem = f"an all-reduce gives {total[0].item():g} instead of {expected:g}"
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    dist.barrier(group=processes.control_group)
    return Machine(
        environment.rank, environment.hostname, device_name(device), memory, time.time(), seconds,
        problem,
    )  # fmt: skip


def _time_product(device: torch.device) -> tuple[float, str | None]:
    """The fastest of a few products in seconds, and what is wrong with the result."""
    size = _MATRIX_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-8, 9, (size, size), generator=generator).float()
    exact = (left.double() @ left.double()).to(device)
    matrix, fastest = left.to(device), float("inf")
    for _ in range(_NUM_PRODUCTS):
        began = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
        # Small integers: every order of summation, and TF32 too, gives exactly this.
        if not torch.equal(product.double(), exact):
            return fastest, "a product of small integers is wrong"
    return fastest, None


def _digest_or_problem(tokenizer: str) -> str:
    """Never raises: the others would wait for this rank."""
    try:
        return tokenizer_fingerprint(tokenizer)[:12]
    except UserError as error:
        return str(error)


def _code_digest() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in sorted(root.glob("*/__init__.py")):
        for path in sorted(package.parent.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
