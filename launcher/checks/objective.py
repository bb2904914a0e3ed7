"""Checks of what a run is to learn against the data that it reads. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triax.checkpoint.config import CheckpointConfig
from triax.common.errors import UserError
from triax.data.config import DataConfig
from triax.data.read.shards import find_shards
from triax.data.read.token_weights import recorded_group_size
from triax.launcher.config.problems import Problem
from triax.models.config import ModelConfig
from triax.training.config import EvalConfig
from triax.training.objectives.config import ObjectiveConfig


def objective_has_its_data(
    objective: ObjectiveConfig, data: DataConfig, eval: EvalConfig
) -> Iterator[Problem]:
    """Text is for pretraining, conversations for fine-tuning, pairs for preferences."""
    prefixes = {f"data.sources.{n}.path": source.path for n, source in enumerate(data.sources)}
    num_sources = len(prefixes)
    if data.validation is not None:
        prefixes["data.validation"] = data.validation
    prefixes |= {f"eval.sets.{n}.path": one.path for n, one in enumerate(eval.sets)}
    held = {path: _held(prefix) for path, prefix in prefixes.items()}
    for path, kind in held.items():
        if kind is not None and kind not in _TAKES[objective.kind]:
            wanted = next(name for name, kinds in _TAKES.items() if kind in kinds)
            yield Problem(
                path,
                f'{prefixes[path]} holds {kind}, which objective.kind = "{wanted}" learns from; '
                f'"{objective.kind}" takes {" and ".join(_TAKES[objective.kind])}',
            )
    if objective.kind == "sft" and list(held.values())[:num_sources] == ["text"] * num_sources:
        yield Problem(
            "objective.kind",
            '"sft" learns from conversations, and all sources hold text: make some with `triax '
            "data conversations`",
        )
    if {"conversations", "pairs"} & set(held.values()) and not data.mask_documents:
        yield Problem(
            "data.mask_documents",
            "false, but conversations that share a window must not see each other; set it to true",
        )


def conversations_stay_whole(data: DataConfig) -> Iterator[Problem]:
    """No phase cuts samples in which conversations lie whole."""
    cuts = [number for number, phase in enumerate(data.phases) if phase.seq_len is not None]
    kinds = {_held(source.path) for source in data.sources}
    if cuts and {"conversations", "pairs"} & kinds:
        yield Problem(
            f"data.phases.{cuts[0]}.seq_len",
            "set, but a phase of shorter sequences cuts samples, and conversations are never cut",
        )


def preferences_have_a_reference(
    objective: ObjectiveConfig, checkpoint: CheckpointConfig, model: ModelConfig
) -> Iterator[Problem]:
    """Preferences are learned by a model that can answer, and by their own loss alone."""
    if objective.kind != "dpo":
        return
    if checkpoint.init_from is None:
        yield Problem(
            "checkpoint.init_from",
            'none, but objective.kind = "dpo" begins with a model that answers, which is its '
            "reference, too: name its run or checkpoint",
        )
    if getattr(model, "z_loss", 0):
        yield Problem(
            "model.z_loss",
            'objective.kind = "dpo" has weights of both signs, which z-loss makes no sense of; '
            "set it to 0",
        )


def objective_settings_are_used(objective: ObjectiveConfig) -> Iterator[Problem]:
    """What is set has an effect. The run's own config.toml names all keys, with their defaults."""
    if objective.kind != "dpo":
        changed = objective.model_dump(exclude_defaults=True).keys()
        for name in objective.model_fields_set & changed - {"kind"}:
            yield Problem(f"objective.{name}", 'only objective.kind = "dpo" reads it')
    elif objective.loss == "ipo" and objective.label_smoothing:
        yield Problem("objective.label_smoothing", 'only objective.loss = "sigmoid" reads it')


_TAKES = {
    "pretrain": ("text",),
    "sft": ("text", "conversations"),
    "dpo": ("pairs",),
}
"""What each objective learns from."""
_KINDS = {1: "conversations", 2: "pairs"}


def _held(prefix: str) -> str | None:
    """What a dataset holds; None where it isn't there."""
    try:
        sizes = {recorded_group_size(Path(shard)) for shard in find_shards(prefix)} - {None}
    except (UserError, OSError):
        return None  # `shards_are_sane` says it, or it will be made
    return _KINDS.get(max(filter(None, sizes)), "conversations") if sizes else "text"
