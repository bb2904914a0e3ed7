"""Adapters as PEFT's folders have them, and merged into the weights that they stand beside.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors have the names
of transformers' modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from triax.checkpoint.folders import new_folder
from triax.checkpoint.formats import tensor_table
from triax.checkpoint.huggingface import read_json, save_tensors, write_json
from triax.checkpoint.huggingface_tokenizer import TokenizerExport, copy_tokenizer
from triax.common.errors import UserError
from triax.common.files import open_regular
from triax.models.architecture import Experts
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.lora import (
    ALL_TARGETS,
    ATTENTION_TARGETS,
    FACTORS,
    LoraConfig,
    target_of,
)

CONFIG_FILE = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_THEIR_FACTORS = dict(zip(FACTORS, ("lora_A.weight", "lora_B.weight"), strict=True))
"""Their names of the factors within a layer, by ours."""
_MUST_BE_EMPTY = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("trainable_token_indices", "target_parameters", "layer_replication", "megatron_config"),
    *("alora_invocation_tokens", "use_qalora", "arrow_config", "use_bdlora"),
)
"""Keys of theirs that would make the adapters compute something else."""
_PLAIN_STARTS = (None, True, False, "gaussian")
"""Of `init_lora_weights`: others change the weights that adapters stand beside."""


@torch.no_grad()
def merged(
    base: Mapping[str, torch.Tensor], adapters: Mapping[str, torch.Tensor], lora: LoraConfig
) -> dict[str, torch.Tensor]:
    """The weights of a model that computes with the adapters within, in the base's dtypes.

    Args:
        base: the model's parameters, by our names.
        adapters: the factors, likewise.
    """
    weights = dict(base)
    first, second = FACTORS
    for name, a_RD in adapters.items():
        module, _, factor = name.rpartition(".")
        if factor == first:
            weight, b_FR = base[f"{module}.weight"], adapters[f"{module}.{second}"]
            change = lora.scale * (b_FR.double() @ a_RD.double())
            weights[f"{module}.weight"] = (weight.double() + change).to(weight.dtype)
    return weights


def export_peft(
    adapters: Mapping[str, torch.Tensor],
    model: ModelConfig,
    output: Path,
    *,
    base: str,
    dtype: torch.dtype | None = None,
    tokenizer: TokenizerExport | None = None,
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        adapters: whole factors by our names, on the CPU.
        model: with its adapters.
        base: where the model that they stand beside is to be found.
        dtype: cast the factors to it; None keeps each as it is.
        tokenizer: it is copied.

    Raises:
        UserError: the model has no adapters, or PEFT can't have them; or the folder can't be
            written.
    """
    if model.lora is None:
        raise UserError("no adapters to export: the run trained the model itself (--format hf)")
    names = _their_modules(model)
    weights = {
        f"{_PREFIX}{names[module]}.{_THEIR_FACTORS[factor]}": tensor.to(dtype=dtype).contiguous()
        for name, tensor in adapters.items()
        for module, _, factor in (name.rpartition("."),)
    }
    with new_folder(output) as folder:
        write_json(folder / CONFIG_FILE, _their_config(model.lora, names, base))
        save_tensors(weights, folder / _WEIGHTS)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)


def _their_config(lora: LoraConfig, names: Mapping[str, str], base: str) -> dict[str, Any]:
    alpha = lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rslora,
        "target_modules": sorted({name.rpartition(".")[2] for name in names.values()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _their_modules(model: ModelConfig) -> dict[str, str]:
    """Their names of the modules that have adapters, by ours.

    Raises:
        UserError: one is no module of its own there.
    """
    theirs = {ours: each for each in tensor_table(model.without_adapters) for ours in each.ours}
    has_experts = _has_experts(model)
    found = {}
    for name in describe(model).trained:
        module = name.rpartition(".")[0]
        if has_experts and ".mlp." in module:
            raise UserError(
                f"{module}: in a model with experts PEFT gives adapters to all feed-forward layers "
                "or none, the experts among them: use --format hf, which merges ours, or train "
                "attention's alone"
            )
        tensor = theirs[f"{module}.weight"]
        if len(tensor.ours) > 1 or tensor.is_transposed:
            raise UserError(
                f"{module}: a part of {tensor.name} in transformers' {model.family}, which PEFT "
                "can't give adapters of its own: use --format hf, which merges them"
            )
        found[module] = tensor.name.removesuffix(".weight")
    return found


def _has_experts(model: ModelConfig) -> bool:
    layers = describe(model).architecture.layers
    return any(isinstance(layer.feed_forward, Experts) for layer in layers)


def import_peft(folder: Path, base: ModelConfig) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read a local folder of PEFT's.

    Args:
        base: the model that the adapters stand beside.

    Returns:
        The model with adapters, and their factors by our names, each in its own dtype.

    Raises:
        UserError: files are missing or damaged, the adapters are of another kind or compute
            otherwise, or they don't fit the model.
    """
    config = read_json(folder / CONFIG_FILE)
    _refuse_what_differs(config, str(folder / CONFIG_FILE))
    read = dict(_read_factors(folder / _WEIGHTS))
    targets = ATTENTION_TARGETS if _has_experts(base) else ALL_TARGETS
    every = LoraConfig(rank=1, alpha=1, targets=targets)
    all_targets = base.model_copy(update={"lora": every})
    ours = {theirs: module for module, theirs in _their_modules(all_targets).items()}
    tensors = {}
    for name, tensor in read.items():
        module, end = _split(name)
        if module not in ours or end is None:
            raise UserError(
                f"{folder / _WEIGHTS}: {name} is no adapter of a layer that can have one here: "
                "attention's or the feed-forward layer's of this base"
            )
        tensors[f"{ours[module]}.{end}"] = tensor
    model = base.model_copy(update={"lora": _our_config(config, tensors, folder)})
    shapes = {name: row.shape for name, row in describe(model).trained.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        name = next(n for n in (*shapes, *found) if shapes.get(n) != found.get(n))
        raise UserError(
            f"{folder / _WEIGHTS}: {name}: {found.get(name, 'missing')}, expected "
            f"{shapes.get(name, 'none')} for this base and the rank of {CONFIG_FILE}"
        )
    return model, tensors


def _split(name: str) -> tuple[str, str | None]:
    """Their module, and our name of the factor, of a tensor's name."""
    inner = name.removeprefix(_PREFIX)
    for factor, theirs in _THEIR_FACTORS.items():
        if inner.endswith(f".{theirs}"):
            return inner.removesuffix(f".{theirs}"), factor
    return inner, None


def _our_config(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: Path
) -> LoraConfig:
    targets = {target_of(name.rpartition(".")[0]) for name in tensors}
    fields = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "rslora": config.get("use_rslora", False),
        "targets": sorted(target for target in targets if target is not None),
    }
    try:
        return LoraConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{folder / CONFIG_FILE}: {first['loc'][0]}: {first['msg']}") from None


def _refuse_what_differs(config: Mapping[str, Any], where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {config.get('peft_type')!r}; expected 'LORA'")
    for key in _MUST_BE_EMPTY:
        if config.get(key):
            raise UserError(f"{where}: {key} is {config[key]!r}; only LoRA without it is read")
    if config.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {config['bias']!r}; only 'none' is read")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UserError(
            f"{where}: init_lora_weights is {start!r}, which changes the weights that the adapters "
            "stand beside: let PEFT convert them to plain LoRA (`save_pretrained` with "
            "`path_initial_model_for_weight_conversion`)"
        )


def _read_factors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
