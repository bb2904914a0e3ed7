"""Finds processes that don't fit the others, and bad machines, before the model is built."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from triax.common.errors import UserError
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.data.read.identity import Identity
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.resolved import diff_configs
from triax.launcher.config.run_config import RunConfig
from triax.parallel.collectives import gather_objects
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
    host = processes.environment.hostname
    found = gather_objects((host, dict(facts)), processes.control_group)
    problems = []
    for name in facts:
        values = [rank_facts.get(name, "missing") for _, rank_facts in found]
        usual, _ = Counter(values).most_common(1)[0]
        odd = [rank for rank, value in enumerate(values) if value != usual]
        for rank in odd[:_MAX_NAMED]:
            problems.append(
                f"rank {rank} on {found[rank][0]}: {name} is {values[rank]}, elsewhere {usual}"
            )
        if len(odd) > _MAX_NAMED:
            problems.append(f"... and {len(odd) - _MAX_NAMED} more ranks in {name}")
    if not problems:
        return
    configs = gather_objects(config.model_dump(mode="json"), processes.control_group)
    for rank, other in enumerate(configs):
        for change in diff_configs(configs[0], other)[:_MAX_NAMED]:
            problems.append(f"config of rank 0 -> rank {rank}: {change}")
    raise UserError(
        "the processes of this job disagree:\n"
        + "\n".join(f"  {problem}" for problem in problems)
        + "\ngive all of them the same config, data and installation"
    )


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
    machine = _measure(processes)
    machines = gather_objects(machine, processes.control_group)
    problems = find_bad_machines(machines, is_shared=processes.device.type == "cpu")
    if problems:
        raise UserError(
            "preflight found bad machines:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\ntake them out of the job (and tell their administrator)"
        )
    skew = max(m.clock for m in machines) - min(m.clock for m in machines)
    if skew > _WORST_SKEW_SECONDS:
        say(f"preflight: the hosts' clocks differ by {skew:.1f} s; times in logs won't match")
    seconds = [m.matmul_seconds for m in machines]
    say(
        f"preflight: {len(machines)} processes on {len({m.host for m in machines})} hosts are "
        f"good ({machine.device}; product {min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f} ms;"
        f" clocks within {skew:.2f} s), in {time.monotonic() - began:.1f} s"
    )


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
