"""Models and layouts drawn at random among those that the config checks accept."""

from __future__ import annotations

from random import Random
from typing import Any

from documents import PATTERNS
from grid import MAX_PROCESSES
from parity import CAN_SPLIT_BACKWARD
from worlds import SEQ_LEN, Case

from triax.data.config import DataConfig, SourceConfig
from triax.launcher.checks import parallel as parallel_checks
from triax.launcher.checks.sections import CHECKS
from triax.launcher.config.problems import Problem
from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.stages import SCHEDULES
from triax.training.config import BatchConfig, OptimizerConfig

LAYOUT_CHECKS = [check for check in CHECKS if check.__module__ == parallel_checks.__name__]


def random_model(random: Random) -> dict[str, Any]:
    """A small model's `[model]` section."""
    num_kv_heads = random.choice((1, 2, 4))
    return {
        "num_layers": random.randint(2, 9),
        "hidden_size": random.choice((16, 24, 32)),
        "num_heads": num_kv_heads * random.choice((1, 2, 3)),
        "num_kv_heads": num_kv_heads,
        "head_dim": random.choice((4, 8, 12)),
        "ffn_hidden_size": random.choice((20, 48, 64)),
        "vocab_size": random.choice((64, 90, 96, 100)),
        "qk_norm": random.random() < 0.5,
        "tie_embeddings": random.random() < 0.5,
        "sliding_window": random.choice((None, 5)),
        "logit_softcap": random.choice((None, 5.0)),
        "z_loss": random.choice((0.0, 1e-3)),
        "init_std": 0.1,
    }


def random_case(random: Random, model: dict[str, Any], **given: Any) -> tuple[int, Case]:
    """A number of processes and a job of this model that `triax check` has nothing against."""
    while True:
        num_processes = random.choice((2, 4, 6, MAX_PROCESSES))
        parallel = {
            "tensor": random.choice((1, 1, 2, 4)),
            "sequence_parallel": random.random() < 0.7,
            "pipeline": random.choice((1, 2, 3, 4)),
            "pipeline_schedule": random.choice(tuple(SCHEDULES)),
            "stages_per_rank": random.choice((2, 3)),
            "context": random.choice((1, 2, 4)),
            "context_method": random.choice(("auto", "gather", "ring", "ulysses")),
            "replicate": random.choice((1, 1, 2)),
            "zero_stage": random.choice((0, 1, 2, 3)),
            "activation_checkpointing": random.choice(("none", "selective", "full")),
        }
        batch = {
            "global_batch_size": given.get("global_batch_size", random.choice((4, 8, 12))),
            "micro_batch_size": random.choice((1, 2)),
        }
        if not problems(num_processes, model, parallel, batch):
            documents = given.get("documents", random.choice(PATTERNS))
            changes = {**given, **batch, "documents": documents}
            return num_processes, Case(model=model, parallel=parallel, **changes)


def problems(
    num_processes: int, model: dict[str, Any], parallel: dict[str, Any], batch: dict[str, int]
) -> list[Problem]:
    """What the checks have against a layout."""
    schedule = SCHEDULES[parallel["pipeline_schedule"]]
    if schedule.splits_backward and not CAN_SPLIT_BACKWARD:
        return [Problem("parallel.pipeline_schedule", "needs a later torch")]
    sections = {
        "model": model_config(**model),
        "data": DataConfig(sources=(SourceConfig(path="any"),), seq_len=SEQ_LEN),
        "parallel": ParallelConfig(**parallel),
        "batch": BatchConfig(**batch),
        "precision": PrecisionConfig(compute="fp32"),
        "optimizer": OptimizerConfig(),
        "world_size": num_processes,
    }
    return [
        problem
        for check in LAYOUT_CHECKS
        for problem in check(**{name: sections[name] for name in names(check)})
    ]


def names(check: Any) -> tuple[str, ...]:
    """A check's parameters."""
    code = check.__code__
    return tuple(code.co_varnames[: code.co_argcount])
