"""The config that a plan is made for, and the run file that its best layout becomes. No torch."""

from __future__ import annotations

import copy
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from triax.common.errors import UserError
from triax.common.files import write_atomically
from triax.launcher.config.loading import parse_config, read_config
from triax.launcher.config.overrides import apply_overrides
from triax.launcher.config.run_config import RunConfig
from triax.models.config import ModelConfig
from triax.models.counts import num_active_parameters
from triax.models.description import describe
from triax.models.families import model_config
from triax.models.presets import PRESETS
from triax.planning.advice import hyperparameters
from triax.planning.setup import Setup

_SEQ_LEN = 8192
_MOST_BATCH_TOKENS = 1 << 24
"""The rule goes on, but nobody has published larger ones for such models (Llama 3's 405B)."""
_LAYOUT = (
    "tensor",
    "pipeline",
    "pipeline_schedule",
    "stages_per_rank",
    "zero_stage",
    "replicate",
    "expert",
    "context",
    "activation_checkpointing",
    "compile",
)
"""What a search decides of `[parallel]`."""


@dataclass(frozen=True)
class Planned:
    """A config and the tables that it came from.

    Attributes:
        source: what messages call it.
        tables: of the file, with overrides.
        config: the same, valid section by section; files that it names need not be there.
    """

    source: str
    tables: Mapping[str, Any]
    config: RunConfig


def setup_of(
    config: RunConfig,
    world_size: int,
    device: Literal["cuda", "cpu"] = "cuda",
    *,
    has_bf16: bool = True,
) -> Setup:
    """What the planner reads of a run's config.

    Args:
        has_bf16: whether `precision.compute = "auto"` means bf16 there.
    """
    return Setup(
        config.model,
        config.parallel,
        config.precision.resolved(has_bf16=has_bf16),
        config.batch,
        config.optimizer,
        config.data.seq_len,
        world_size,
        device,
        has_documents=config.data.mask_documents,
        passes_alone=int(config.objective.kind == "dpo"),
    )


def planned_from_file(path: str, overrides: Sequence[str]) -> Planned:
    """A run file's.

    Raises:
        ConfigError: its sections aren't valid.
        UserError: it can't be read or is no TOML.
    """
    return planned_from_text(path, read_config(path), overrides)


def planned_from_text(source: str, text: str, overrides: Sequence[str] = ()) -> Planned:
    """As `planned_from_file`, of the text of one.

    Args:
        source: what messages call it.
    """
    config = parse_config(source, text, overrides)
    tables, _, _ = apply_overrides(tomllib.loads(text), overrides)
    return Planned(source, tables, config)


def planned_from_preset(
    name: str,
    overrides: Sequence[str],
    *,
    seq_len: int | None,
    global_batch_size: int | None,
    tokens: int | None,
) -> Planned:
    """A preset's, with what a pretraining run on GPUs usually has, and names of data to come.

    Args:
        seq_len: 8192, or as long as the model's positions reach, if None.
        global_batch_size: by DeepSeek LLM's rule, rounded to a power of two and 16.8M tokens at
            most, if None.
        tokens: of the run; 20 a parameter if None.

    Raises:
        UserError: there is no such preset.
        ConfigError: overrides aren't valid.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"--preset {name}: no preset is called so; {hint}")
    model = model_config(preset=name)
    if seq_len is None:
        positions = describe(model).architecture.num_positions
        seq_len = min(_SEQ_LEN, positions or _SEQ_LEN)
    tables = _tables(name, model, seq_len, global_batch_size, tokens)
    config = parse_config(f"--preset {name}", tomli_w.dumps(tables), overrides)
    tables, _, _ = apply_overrides(tables, overrides)
    return Planned(f"preset {name}", tables, config)


def _tables(
    name: str, model: ModelConfig, seq_len: int, global_batch_size: int | None, tokens: int | None
) -> dict[str, Any]:
    count = num_active_parameters(model)
    if global_batch_size is None:
        advised = hyperparameters(count, tokens or 20 * count)[0].batch_tokens
        sequences = min(advised, _MOST_BATCH_TOKENS) / seq_len
        global_batch_size = 1 << max(0, round(math.log2(sequences)))
    return {
        "run": {"name": name},
        "model": {"preset": name},
        "data": {
            "sources": [{"path": "corpora/pretrain/train"}],
            "validation": "corpora/pretrain/validation",
            "tokenizer": "corpora/pretrain/tokenizer",
            "seq_len": seq_len,
            "prepare": {
                "inputs": ["texts/*.jsonl.zst"],
                "output": "corpora/pretrain",
                "vocab_size": model.vocab_size,
                "validation_fraction": 0.0001,
            },
        },
        "budget": {"tokens": "chinchilla" if tokens is None else tokens},
        "batch": {"global_batch_size": global_batch_size},
        "precision": {"compute": "bf16"},
        "parallel": {"compile": True},
    }


def with_layout(planned: Planned, setup: Setup) -> dict[str, Any]:
    """The config's tables with a layout of a search in them."""
    tables = copy.deepcopy(dict(planned.tables))
    parallel, default = setup.parallel, type(setup.parallel)()
    section = dict(tables.get("parallel", {}))
    section.pop("pipeline_split", None)
    for field in _LAYOUT:
        value = getattr(parallel, field)
        if field in section or value != getattr(default, field):
            section[field] = value
    if parallel.pipeline == 1:
        section.pop("pipeline_schedule", None)
    if not parallel.pipeline_schedule.startswith("interleaved") or parallel.pipeline == 1:
        section.pop("stages_per_rank", None)
    tables["parallel"] = section
    tables["batch"] = {**tables["batch"], "micro_batch_size": setup.batch.micro_batch_size}
    if setup.precision.compute != planned.config.precision.compute:
        tables["precision"] = {
            **tables.get("precision", {}),
            "compute": setup.precision.compute,
        }
    return tables


def write_layout(planned: Planned, setup: Setup, remark: str, path: Path) -> None:
    """Write the run file of a layout.

    Args:
        remark: its first lines.

    Raises:
        UserError: it can't be written.
    """
    comment = "".join(f"# {line}\n" for line in remark.splitlines())
    write_atomically(path, f"{comment}\n{tomli_w.dumps(with_layout(planned, setup))}")
