"""Configs drawn at random from the fields' own annotations, and a process that trains them.

What `triax check` accepts, `triax train` must run. Values are ordinary ones, those around a
field's bounds, and those at the ends of what a computer's numbers hold.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import logging
import math
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic.fields import FieldInfo

from triax.common.errors import ExitCode, UserError
from triax.common.quantities import Duration
from triax.launcher.checks.sections import load_checked
from triax.launcher.cluster.launchers import discover
from triax.launcher.config.overrides import section_class
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.run import run
from triax.models.config import ModelConfig
from triax.models.counts import num_parameters
from triax.models.families import FAMILIES
from triax.models.layers.transformer import Transformer
from triax.training.stability.faults import RehearsedError
from triax.training.stability_config import Fault

CONFIG = """\
[run]
name = "job"
[model]
num_layers = 1
hidden_size = 16
num_heads = 2
ffn_hidden_size = 16
vocab_size = 304
[data]
sources = [{ path = "data/train" }]
seq_len = 16
[budget]
tokens = 128
[batch]
global_batch_size = 2
[schedule]
warmup = 0
[metrics]
tensorboard = false
"""
"""The small run whose fields are overridden."""
_INTEGERS = (1, 1, 2, 2, 3, 4, 5, 8, 16, 17, 20, 32, 64, 100, 304, 320)
_FAR_INTEGERS = (
    -1, 0, 2**15, 2**16, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 10**12, 2**53 + 1, 10**18,
    2**62, 2**63 - 1, 2**63,
)  # fmt: skip
_FLOATS = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0, 1.5, 2.0, 10.0, 100.0)
_FAR_FLOATS = (
    -1.0, -0.0, 5e-324, 1e-300, 1e-46, 1e-45, 1e-38, 1e-20, 1e-8, 0.9999999999999999, 0.99999999,
    1.0000000000000002, 1e4, 65504.0, 7e4, 1e10, 1e18, 1e38, 3.4e38, 3.5e38, 1e100, 1e300,
    1.797e308,
)  # fmt: skip
_DURATIONS = ("1 steps", "2 steps", "3 steps", "1 tokens", "256 tokens", "300 tokens", "1 min")
_FAR_DURATIONS = (
    "0 steps", "1000000000000000000 steps", "1000000T tokens", "1000T steps", "0.000000001 s",
    "0.001 s", "2147483.648 s", "1000000000 s", "100000000000000 h", "9" * 300 + " s",
)  # fmt: skip
_TEXTS = ("x", "a b", "é", "$x", "\u202ex", "a\tb", "a" * 300, "%s", "{x}", "~", "-x")
_NAMES: dict[str, tuple[str | None, ...]] = {
    "data.validation": (None, "data/validation"),
    "data.tokenizer": (None, "tokenizer"),
}
"""What names something elsewhere: what it may name here."""
_FIXED = {
    "run.dir", "metrics.wandb_project", "checkpoint.init_from", "model.preset", "data.sources",
    "parallel.offload_path", "data.prepare",
}  # fmt: skip
"""What other tests are about."""
_KILLING = ("kill", "exception", "hang", "freeze")
_NUM_STEPS = 2
_LONGEST_SECONDS = 120
_MANY_PARAMETERS, _MANY_TOKENS, _MANY_LAYERS, _MANY_SEQUENCES = 1_000_000, 1 << 11, 16, 64
_numbers = itertools.count()


def random_overrides(random: Random) -> list[str]:
    """Overrides of a few fields of the small run, as they are typed."""
    fields = dict(_fields(RunConfig))
    count = min(len(fields), 1 + int(random.expovariate(0.4)))
    far = random.choice((0.1, 0.4, 0.9))
    values = {
        path: random_value(path, field.annotation, field.metadata, random, far)
        for path, field in random.sample(sorted(fields.items()), count)
    }
    return [f"{path}={_typed(value)}" for path, value in values.items()]


def _typed(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _fields(section: type[Any], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        path, inner = prefix + name, section_class(field.annotation)
        if path in _FIXED:
            continue
        if inner is ModelConfig:
            keys = [key for family in FAMILIES.values() for key in _fields(family, f"{path}.")]
            yield from dict(keys).items()
        elif inner is not None and get_origin(field.annotation) is None:
            yield from _fields(inner, f"{path}.")
        else:
            yield path, field


def random_value(
    path: str, annotation: Any, metadata: list[Any], random: Random, far: float
) -> Any:
    """Some value for an annotation; perhaps one that it doesn't allow.

    Args:
        path: the field's.
        metadata: the annotation's, with its bounds.
        far: how often the value is at the ends of all numbers.
    """
    if path in _NAMES:
        return random.choice(_NAMES[path])
    arguments, origin = get_args(annotation), get_origin(annotation)
    if hasattr(annotation, "__metadata__"):
        return random_value(path, arguments[0], [*metadata, *arguments[1:]], random, far)
    if origin is Literal:
        return random.choice(arguments)
    if (inner := section_class(annotation)) is not None and origin is not tuple:
        return {
            name: random_value(f"{path}.{name}", field.annotation, field.metadata, random, far)
            for name, field in inner.model_fields.items()
            if field.is_required() or random.random() < 0.5
        }
    if origin is tuple:
        is_open = arguments[-1] is ...
        parts = arguments[:1] * random.choice((0, 1, 1, 2, 3)) if is_open else arguments
        return [random_value(path, part, [], random, far) for part in parts]
    if origin is dict:
        keys, values = (
            [random_value(path, part, [], random, far) for _ in range(2)] for part in arguments
        )
        return dict(zip(keys, values, strict=True))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return random.choice(list(annotation)).value
    if arguments:  # a union
        chosen = random.choice(arguments)
        return None if chosen is type(None) else random_value(path, chosen, metadata, random, far)
    return _scalar(annotation, metadata, random, random.random() < far)


def _scalar(kind: Any, metadata: list[Any], random: Random, is_far: bool) -> Any:
    bounds = [
        getattr(item, name)
        for item in metadata
        for name in ("gt", "ge", "lt", "le")
        if getattr(item, name, None) is not None
    ]
    is_at_bound = bool(bounds) and random.random() < 0.3
    if kind is int:
        if is_at_bound:
            return int(random.choice(bounds)) + random.choice((-1, 0, 1))
        return random.choice(_FAR_INTEGERS if is_far else _INTEGERS)
    if kind is float:
        if is_at_bound:
            bound = float(random.choice(bounds))
            towards = random.choice((bound, math.inf, -math.inf))
            return math.nextafter(bound, towards)
        return random.choice(_FAR_FLOATS if is_far else _FLOATS)
    if kind is Duration:
        return random.choice(_FAR_DURATIONS if is_far else _DURATIONS)
    return {bool: random.random() < 0.5, str: random.choice(_TEXTS)}[kind]


def train_at_random(folder: Path, seed: int, count: int) -> None:
    """Draw configs, check each, and train for two steps what is accepted; for a fork.

    `report-SEED.jsonl` gets a line when a config is begun, and another that says how it ended; so
    a process that dies or hangs has named the config.
    """
    os.chdir(folder)
    torch._dynamo.config.disable = True  # other tests are about compiling, which takes long
    torch.set_num_threads(1)
    _leave_output(folder / f"output-{seed}.txt")
    random = Random(seed)
    with (folder / f"report-{seed}.jsonl").open("w") as report:
        for _ in range(count):
            overrides = random_overrides(random)
            print(json.dumps(["begun", overrides]), file=report, flush=True)
            faulthandler.dump_traceback_later(_LONGEST_SECONDS, exit=True)
            ended = end_of(overrides)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([ended, overrides]), file=report, flush=True)


def _leave_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w")


def end_of(overrides: list[str]) -> str:
    """How a config ends: refused, built, trained, or wrong with a traceback."""
    try:
        config = load_checked("run.toml", overrides, world_size=1)
    except UserError:
        return "refused"
    except Exception:
        return f"wrong: {traceback.format_exc()}"
    try:
        return _build(config) if _is_large(config) else _train(config)
    except Exception:
        return f"wrong: {traceback.format_exc()}"


def _is_large(config: RunConfig) -> bool:
    """Whether two steps of it take more time or memory than a test has."""
    sequences = config.batch.global_batch_size
    return (
        num_parameters(config.model) > _MANY_PARAMETERS
        or config.model.num_layers > _MANY_LAYERS
        or sequences * config.data.seq_len > _MANY_TOKENS
        or config.eval.batches * sequences > _MANY_SEQUENCES
        or any(fault.kind == "slow" and fault.seconds > 1 for fault in config.faults.plan)
    )


def _build(config: RunConfig) -> str:
    """The model, of two of its layers, without memory."""
    num_layers = min(config.model.num_layers, 2)
    with torch.device("meta"):
        Transformer(config.model.model_copy(update={"num_layers": num_layers}))
    return "built"


def _train(config: RunConfig) -> str:
    if config.parallel.engine != "native":
        return "another engine"
    plan = [fault for fault in config.faults.plan if fault.kind not in _KILLING]
    plan.append(Fault(kind="exception", step=_NUM_STEPS + 1))
    # A save may still be writing to the folder of the run before.
    folder = Path(f"runs-{os.getpid()}-{next(_numbers)}")
    changed = config.model_copy(
        update={
            "faults": config.faults.model_copy(update={"plan": tuple(plan)}),
            "run": config.run.model_copy(update={"dir": str(folder)}),
        }
    )
    gc.freeze()  # else the run's start looks at all of torch's objects
    try:
        code = run(changed, discover({}))
    except RehearsedError:
        return "trained"
    finally:
        _forget(folder)
    # The guard may have stopped it: weights of 1e38 give no finite loss.
    if code in (ExitCode.DONE, ExitCode.STOPPED_BY_GUARD):
        return "trained"
    return f"wrong: ended with {code}"


def _forget(folder: Path) -> None:
    """What a run leaves in its process and on the disk."""
    torch.use_deterministic_algorithms(False)
    logger = logging.getLogger("triax")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    shutil.rmtree(folder, ignore_errors=True)
