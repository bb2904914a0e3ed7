"""ModelConfig with experts to and from the `config.json` of Hugging Face transformers.

Four architectures there are Llama's blocks with experts: Mixtral; Qwen3-MoE, with QK-norm; OLMoE,
with a norm over all heads; dots.llm1, which is Qwen3-MoE with DeepSeek-V3's router. Their files
hold a matrix for each expert, ours a tensor for all of a layer's. What balances the load is no part
of these models, so an imported one gets the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from triax.checkpoint.formats.llama import (
    BLOCK_NAMES,
    OUTER_NAMES,
    common_fields,
    common_keys,
    known_as,
    reading,
    refuse_others,
)
from triax.checkpoint.formats.table import Theirs
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, describe
from triax.models.experts_config import ExpertsConfig
from triax.models.families.llama import LlamaConfig

__all__ = ["KINDS", "from_huggingface", "known_as", "tensors", "to_huggingface"]

_ARCHITECTURES = {
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
}
KINDS = tuple(_ARCHITECTURES)
"""Their `model_type`s."""
_BIAS_RATE = 0.001
"""DeepSeek-V3's, for an imported model whose router has a bias."""
_REST = {
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.e_score_correction_bias",
    "mlp.shared.gate.weight": "mlp.shared_experts.gate_proj.weight",
    "mlp.shared.up.weight": "mlp.shared_experts.up_proj.weight",
    "mlp.shared.down.weight": "mlp.shared_experts.down_proj.weight",
}
_EXPERT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRALS = {"gate": "w1", "up": "w3", "down": "w2"}


def to_huggingface(
    model: ModelConfig, *, dtype: str, seq_len: int, special_tokens: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """The contents of `config.json`; see `formats.to_huggingface`."""
    assert isinstance(model, LlamaConfig) and model.experts is not None
    kind, experts = _kind(model), model.experts
    common = common_keys(model, dtype=dtype, seq_len=seq_len, special_tokens=special_tokens)
    keys: dict[str, Any] = {
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalise,
        "router_aux_loss_coef": experts.batch_loss,
        "sliding_window": model.sliding_window,
    }
    match kind:
        case "mixtral":
            keys |= {
                "num_local_experts": experts.num_experts,
                "intermediate_size": experts.ffn_hidden_size,
            }
        case "olmoe":
            keys |= {
                "num_experts": experts.num_experts,
                "intermediate_size": experts.ffn_hidden_size,
                "clip_qkv": None,
            }
        case "qwen3_moe":
            dense = [n for n in range(model.num_layers) if not experts.has_experts(n)]
            keys |= {
                "num_experts": experts.num_experts,
                "moe_intermediate_size": experts.ffn_hidden_size,
                "decoder_sparse_step": 1,
                "mlp_only_layers": dense,
                "use_sliding_window": False,
            }
        case "dots1":
            keys |= {
                "n_routed_experts": experts.num_experts,
                "n_shared_experts": experts.num_shared_experts,
                "moe_intermediate_size": experts.ffn_hidden_size,
                "first_k_dense_replace": experts.first_dense_layers,
                "n_group": experts.num_groups,
                "topk_group": experts.num_chosen_groups,
                "routed_scaling_factor": experts.scale,
                "layer_types": ["full_attention"] * model.num_layers,
            }
    return common | keys | {"model_type": kind, "architectures": [_ARCHITECTURES[kind]]}


def _kind(model: LlamaConfig) -> str:
    """The architecture there that computes this model.

    Raises:
        UserError: there is none.
    """
    experts = model.experts
    assert experts is not None
    if experts.scores == "sigmoid":
        kind = "dots1"
    elif model.qk_norm:
        kind = "qwen3_moe"
    else:
        kind = "olmoe" if model.joint_qk_norm else "mixtral"
    all_layers = experts.first_dense_layers == 0 and _has_no_pattern(experts)
    queries = model.num_heads * model.head_dim
    takes = {
        "experts.bias_rate": experts.bias_rate > 0 if kind == "dots1" else experts.bias_rate == 0,
        "experts.num_shared_experts": (experts.num_shared_experts > 0) == (kind == "dots1"),
        "experts.scale": kind == "dots1" or experts.scale == 1,
        "experts.num_groups": kind == "dots1" or experts.num_groups == 1,
        "experts.normalise": kind != "mixtral" or experts.normalise,
        "experts.first_dense_layers": kind in ("qwen3_moe", "dots1") or all_layers,
        "experts.dense_layers": kind == "qwen3_moe" or _has_no_pattern(experts),
        "qk_norm": kind != "dots1" or model.qk_norm,
        "head_dim": kind != "olmoe" or queries == model.hidden_size,
        "sliding_window": kind == "mixtral" or model.sliding_window is None,
    }
    for field, is_taken in takes.items():
        if not is_taken:
            raise UserError(
                f"model.{field}: no architecture of transformers that is known here computes this "
                f"model: the nearest, {_ARCHITECTURES[kind]}, has it otherwise (docs/experts.md)"
            )
    return kind


def _has_no_pattern(experts: ExpertsConfig) -> bool:
    return experts.layer_step == 1 and not experts.dense_layers


def tensors(model: ModelConfig) -> Iterator[Theirs]:
    """Their tensors, in the order of the model."""
    assert isinstance(model, LlamaConfig) and model.experts is not None
    is_mixtral = _kind(model) == "mixtral"
    names = BLOCK_NAMES | _REST
    mlp, parts = ("block_sparse_moe", _MIXTRALS) if is_mixtral else ("mlp", _EXPERT)
    for name, row in describe(model).parameters.items():
        if name in OUTER_NAMES:
            yield Theirs(OUTER_NAMES[name], (name,))
            continue
        _, layer, rest = name.split(".", 2)
        prefix = f"model.layers.{layer}"
        if row.role in EXPERTS:
            part = parts[rest.rpartition(".")[2]]
            for number in range(row.shape[0]):
                theirs = f"{prefix}.{mlp}.experts.{number}.{part}.weight"
                yield Theirs(theirs, (name,), expert=number)
        elif rest == "mlp.router.weight":
            yield Theirs(f"{prefix}.{mlp}.gate.weight", (name,))
        elif rest in names:
            yield Theirs(f"{prefix}.{names[rest]}", (name,))


def from_huggingface(config: Mapping[str, Any], *, is_tied: bool, where: str) -> LlamaConfig:
    """The model of a `config.json`; see `formats.Format`.

    Raises:
        UserError: it computes something else, or a field is missing or wrong.
    """
    kind = config["model_type"]
    refuse_others(config, where, {"clip_qkv": None, "use_sliding_window": False})
    if kind == "dots1" and "sliding_attention" in (config.get("layer_types") or ()):
        raise UserError(f"{where}: layer_types: sliding attention can't be imported here")
    with reading(where):
        experts: dict[str, Any] = {"top_k": config["num_experts_per_tok"], **_experts(config, kind)}
        heads = config["num_attention_heads"]
        fields = common_fields(config, is_tied=is_tied, where=where) | {
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            "qk_norm": kind in ("qwen3_moe", "dots1"),
            "joint_qk_norm": kind == "olmoe",
            "sliding_window": config.get("sliding_window") if kind == "mixtral" else None,
            "experts": experts,
        }
        if kind == "qwen3_moe" and "head_dim" not in fields:
            raise KeyError("head_dim")
        return LlamaConfig.model_validate(fields)


def _experts(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Fields of the `[model.experts]` section."""
    if kind in ("mixtral", "olmoe"):
        number = "num_local_experts" if kind == "mixtral" else "num_experts"
        return {
            "num_experts": config[number],
            "ffn_hidden_size": config["intermediate_size"],
            "normalise": kind == "mixtral" or config.get("norm_topk_prob", False),
        }
    fields = {
        "ffn_hidden_size": config["moe_intermediate_size"],
        "normalise": config.get("norm_topk_prob", False),
    }
    if kind == "qwen3_moe":
        number = "num_experts" if "num_experts" in config else "num_local_experts"
        return fields | {
            "num_experts": config[number],
            "layer_step": config.get("decoder_sparse_step", 1),
            "dense_layers": tuple(config.get("mlp_only_layers") or ()),
        }
    return fields | {
        "num_experts": config["n_routed_experts"],
        "num_shared_experts": config["n_shared_experts"],
        "first_dense_layers": config.get("first_k_dense_replace") or 0,
        "num_groups": config.get("n_group") or 1,
        "num_chosen_groups": config.get("topk_group") or 1,
        "scale": config.get("routed_scaling_factor", 1.0),
        "scores": "sigmoid",
        "bias_rate": _BIAS_RATE,
    }
