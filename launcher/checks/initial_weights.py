"""The checkpoint whose weights a new run begins with, and whether they mean the same there.

A checkpoint's tensors alone don't say what they mean: the same shapes hold another number of
heads, and nothing in them tells RoPE's base. So its recorded settings are compared. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from triax.checkpoint.config import CheckpointConfig
from triax.checkpoint.folders import has_begun, inspect, resolve_checkpoint
from triax.common.errors import UserError
from triax.common.files import is_file
from triax.launcher.checks.data import exists
from triax.launcher.config.problems import Problem
from triax.launcher.config.run_config import RunSection
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.families import recorded_model
from triax.models.upcycling import dense_shapes, has_shared_experts, is_upcycled

_WITHOUT_MEANING = {
    *("preset", "z_loss", "init_std"),
    *(f"experts.{name}" for name in ("sequence_loss", "batch_loss", "z_loss", "bias_rate")),
}
"""Settings that act on training alone."""
_OF_FEED_FORWARD = {"experts", "ffn_hidden_size"}
"""Those that differ where a dense model's weights begin one with experts."""


def find_initial(path: Path) -> Mapping[str, Any]:
    """The record of the checkpoint that `checkpoint.init_from` names; of its files only sizes are
    looked at.

    Raises:
        UserError: there is no good one.
    """
    if is_file(path / "config.json"):
        raise UserError(
            f"{path}: a model of transformers, no checkpoint of triax: `triax checkpoint import "
            f"{path} --output DIR` makes one, and prints the [model] section that fits"
        )
    info = inspect(resolve_checkpoint(path, contents=False))
    if info.manifest is None:
        raise UserError(str(info.problem))
    return info.manifest.record


def initial_weights_fit(
    run: RunSection, checkpoint: CheckpointConfig, model: ModelConfig
) -> Iterator[Problem]:
    """The checkpoint whose weights a new run starts from is there, and of this model."""
    if checkpoint.init_from is None or has_begun(Path(run.dir) / run.name):
        return
    path = Path(checkpoint.init_from)
    if not exists(path):
        yield Problem("checkpoint.init_from", f"{checkpoint.init_from}: no such checkpoint")
        return
    try:
        compare_settings(find_initial(path), model, checkpoint)
    except UserError as error:
        yield Problem("checkpoint.init_from", str(error))


def adapters_have_a_base(
    run: RunSection, model: ModelConfig, checkpoint: CheckpointConfig
) -> Iterator[Problem]:
    """Adapters stand beside the weights of a trained model."""
    if model.lora is None:
        return
    if checkpoint.init_from is None and not has_begun(Path(run.dir) / run.name):
        yield Problem(
            "checkpoint.init_from",
            "not set, but adapters (model.lora) stand beside a trained model: name its checkpoint",
        )
    if checkpoint.init_from_noise:
        yield Problem(
            "checkpoint.init_from_noise",
            "is for experts that are made of a dense model, and adapters (model.lora) need a model "
            "as it is",
        )


def compare_settings(
    record: Mapping[str, Any], model: ModelConfig, checkpoint: CheckpointConfig
) -> list[str]:
    """What a checkpoint's record and the run's `[model]` say differently of its weights, to show.

    A record without a model (DeepSpeed's) says nothing.

    Raises:
        UserError: the shapes differ, or the weights would mean something else and
            `checkpoint.init_from_other_settings` isn't set; or experts can't be made of them.
    """
    recorded = _recorded_model(record)
    if recorded is None:
        return []
    if recorded.lora is None:
        model = model.without_adapters
    elif model.lora is None:
        raise UserError(
            "it holds adapters, not a model: add its [model.lora], or merge them into their "
            "model with `triax checkpoint export`, and import that"
        )
    is_dense = is_upcycled(recorded, model)
    if is_dense:
        _refuse_shared_experts(model)
    elif checkpoint.init_from_noise:
        raise UserError(
            "checkpoint.init_from_noise is for experts that begin as copies of a dense model's "
            "layers, and here there are none: leave it out"
        )
    old, new = recorded.model_dump(mode="json"), model.model_dump(mode="json")
    ignored = _WITHOUT_MEANING | (_OF_FEED_FORWARD if is_dense else set())
    changes = [
        f"model.{name}: {_shown(there)} there, {_shown(here)} here"
        for name, there, here in _differences(old, new)
        if name not in ignored
    ]
    expected = dense_shapes(model) if is_dense else _shapes(model)
    if recorded.num_layers != model.num_layers or _shapes(recorded) != expected:
        listed = "; ".join(changes + (_widths(old, new) if is_dense else []))
        raise UserError(
            f"its weights are of another model: {listed}. Take over its settings, or begin "
            "without it"
        )
    if changes and not checkpoint.init_from_other_settings:
        raise UserError(
            f"its weights would mean something else: {'; '.join(changes)}. Take over its "
            "settings, or set checkpoint.init_from_other_settings = true if that is what you want"
        )
    return changes


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Settings with other values, by name, as they are there and here."""
    for name in new:
        if name not in old or old[name] == new[name]:
            continue
        if isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            yield from _differences(old[name], new[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", old[name], new[name]


def gets_experts(record: Mapping[str, Any], model: ModelConfig) -> bool:
    """Whether a checkpoint's record tells of a dense model, and this one has experts."""
    recorded = _recorded_model(record)
    return recorded is not None and is_upcycled(recorded, model)


def has_adapters(record: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's record tells of adapters alone."""
    recorded = _recorded_model(record)
    return recorded is not None and recorded.lora is not None


def _refuse_shared_experts(model: ModelConfig) -> None:
    if has_shared_experts(model):
        raise UserError(
            "a dense model, of whose layers experts can be copies, but model.experts."
            "num_shared_experts needs one layer more than it has: use 0"
        )


def _widths(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The widths of feed-forward layers, which experts are copies of."""
    here = new["experts"]["ffn_hidden_size"]
    return [
        f"model.ffn_hidden_size: {_shown(old.get('ffn_hidden_size'))} there, here {here} in "
        f"experts and {new['ffn_hidden_size']} in layers without"
    ]


def _recorded_model(record: Mapping[str, Any]) -> ModelConfig | None:
    """None where the record tells of no model."""
    config = record.get("config")
    if not isinstance(config, Mapping) or config.get("model") is None:
        return None
    try:
        return recorded_model(config["model"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("model", *first["loc"]))
        raise UserError(f"its recorded {where} is not valid: {first['msg']}") from None


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, by name."""
    return {name: row.shape for name, row in describe(model).parameters.items()}


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
