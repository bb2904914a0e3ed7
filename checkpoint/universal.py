"""DeepSpeed's universal checkpoints: one folder a parameter, with its weight and moments whole.

Layout: `zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt` and `zero/optimizer_state.pt`, as DeepSpeed
0.19 reads them at any number of processes; `triax.json` besides, with the record of the run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, ValidationError
from torch import Tensor

from triax.checkpoint.folders import new_folder, refuse_existing
from triax.checkpoint.manifest import read_manifest
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import UserError
from triax.common.files import open_regular, read_regular
from triax.common.section import Section
from triax.models.description import Parameter, describe
from triax.models.families import recorded_model

_WEIGHT = "fp32"
_RECORD = "triax.json"
_VERSION = "0.19.8"
"""Of the DeepSpeed whose files these are."""
_MOST_RECORD_BYTES = 1 << 28
_NUM_GROUPS = 2
"""Parameter groups of the optimizer: matrices, which decay, and norms."""


class _Saved(Section):
    """What `triax.json` says."""

    step: NonNegativeInt
    record: dict[str, Any]


def export_universal(checkpoint: Path, output: Path) -> int:
    """Write a checkpoint as DeepSpeed's; returns the number of weight tensors.

    Raises:
        UserError: something is at `output`, it can't be written, or the checkpoint can't be read
            or doesn't say what model it holds.
    """
    manifest = read_manifest(checkpoint)
    names, steps = set(), []
    table = _table(manifest.record, checkpoint)
    with new_folder(output) as folder:
        for name, tensor in read_tensors(checkpoint).items():
            parameter, key = _split(name)
            place = folder / "zero" / parameter
            place.mkdir(parents=True, exist_ok=True)
            names.add(parameter)
            if key == "step":
                steps.append(tensor)
                _save(tensor, place / "step.pt")
            else:
                _save(
                    {"param": tensor, "cat_dim": _dimension(parameter, table)}, place / f"{key}.pt"
                )
        state = {"step": steps[0]} if steps else {}
        groups: list[dict[str, Any]] = [{} for _ in range(_NUM_GROUPS)]
        inner = {"state": {0: state}, "param_groups": groups}
        _save(
            {"ds_version": _VERSION, "optimizer_state_dict": inner, "param_groups": groups},
            folder / "zero" / "optimizer_state.pt",
        )
        text = json.dumps({"step": manifest.step, "record": manifest.record}, indent=1)
        (folder / _RECORD).write_text(text, encoding="utf-8")
    return len(names)


def import_universal(folder: Path, output: Path) -> int:
    """Write DeepSpeed's universal checkpoint as a triax one; returns the number of weight tensors.

    Without `triax.json` it holds weights and moments to start from, but no place in the data.

    Raises:
        UserError: something is at `output`, or the folder holds no universal checkpoint.
    """
    refuse_existing(output)
    places = sorted(path.parent for path in folder.glob(f"zero/*/{_WEIGHT}.pt"))
    if not places:
        raise UserError(f"{folder}: no universal checkpoint: zero/NAME/{_WEIGHT}.pt is missing")
    tensors = {
        _joined(place.name, path.stem): _read(path)
        for place in places
        for path in sorted(place.glob("*.pt"))
    }
    saved = _Saved(step=0, record={"imported_from": str(folder), "step": 0})
    if (folder / _RECORD).exists():
        saved = _read_record(folder / _RECORD)
    shards = {name: whole(tensor) for name, tensor in tensors.items()}
    write_checkpoint(output, shards, saved.record, step=saved.step)
    return len(places)


def _save(value: object, path: Path) -> None:
    try:
        torch.save(value, path)
    except RuntimeError as error:  # torch's word for what the disk refuses
        raise OSError(str(error)) from error


def _read_record(path: Path) -> _Saved:
    try:
        return _Saved.model_validate(json.loads(read_regular(path, _MOST_RECORD_BYTES)))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'{path}: expected JSON with "step", a whole number, and "record", an object'
        ) from error


def _read(path: Path) -> Tensor:
    try:
        with open_regular(path) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: can't be read as tensors: {error}") from error
    value = found.get("param") if isinstance(found, dict) else found
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    if not isinstance(value, Tensor):
        raise UserError(
            f'{path}: expected a tensor or a number, by itself or as "param" of a dictionary'
        )
    return value


def _split(name: str) -> tuple[str, str]:
    """Parameter and DeepSpeed's file of a tensor's name."""
    kind, _, rest = name.partition(".")
    if kind == "model":
        return rest, _WEIGHT
    parameter, _, key = rest.rpartition(".")
    return parameter, key


def _joined(parameter: str, key: str) -> str:
    return f"model.{parameter}" if key == _WEIGHT else f"optimizer.{parameter}.{key}"


def _table(record: Mapping[str, Any], checkpoint: Path) -> Mapping[str, Parameter]:
    """The parameters of the model that a record describes: how they are cut is noted too."""
    config = record.get("config")
    if not isinstance(config, dict) or "model" not in config:
        raise UserError(f"{checkpoint}: its record holds no model config; it was not made by a run")
    try:
        model = recorded_model(config["model"])
    except ValidationError as error:
        raise UserError(f"{checkpoint}: its record holds no valid model: {error}") from None
    if model.lora is not None:
        raise UserError(
            f"{checkpoint}: holds adapters, which the deepspeed engine doesn't train: `triax "
            "checkpoint export` writes them for others, or the model with them merged in"
        )
    return describe(model).parameters


def _dimension(name: str, table: Mapping[str, Parameter]) -> int:
    """Along which dimension tensor-parallel processes cut a parameter, if they do."""
    return (table[name].split_dimension or 0) if name in table else 0
