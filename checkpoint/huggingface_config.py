"""ModelConfig to and from the `config.json` of Hugging Face transformers.

The same weights and shapes are, there, one of three architectures: Llama; Qwen3, which is Llama
with QK-norm; Mistral, which is Llama with a sliding window and a free head dimension. RoPE is
written under the keys of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which
transformers 5 reads as well; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from triax.common.errors import UserError
from triax.models.config import ModelConfig

_MISTRAL_DEFAULT_WINDOW = 4096
_DEFAULT_EPS = 1e-6
_DEFAULT_THETA = 10_000.0
"""What transformers takes where config.json is silent."""


def to_huggingface(
    model: ModelConfig, *, dtype: str, seq_len: int, special_tokens: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """The contents of `config.json`.

    Args:
        dtype: torch's name of the weights' dtype, as in `"bfloat16"`.
        seq_len: the longest sequence trained on, in tokens.
        special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id`, where known.

    Raises:
        UserError: no architecture there computes this model.
    """
    if model.logit_softcap is not None:
        raise UserError(
            "model.logit_softcap: Hugging Face's Llama, Qwen3 and Mistral have no logit soft-cap, "
            "so an exported model would compute other logits; train without it to export"
        )
    scaling = model.rope_scaling
    return {
        **_architecture(model),
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_seq_len,
        },
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": special_tokens.get("bos_token_id"),
        "eos_token_id": special_tokens.get("eos_token_id"),
        "pad_token_id": special_tokens.get("pad_token_id"),
    }


def _architecture(model: ModelConfig) -> dict[str, Any]:
    window = model.sliding_window
    if model.qk_norm:
        layer_type = "full_attention" if window is None else "sliding_attention"
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": model.num_layers if window is None else 0,
            "layer_types": [layer_type] * model.num_layers,
        }
    # transformers' Llama refuses a hidden size that its heads don't divide; Mistral takes it.
    if window is not None or model.hidden_size % model.num_heads:
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": window,
        }
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False}


def from_huggingface(config: Mapping[str, Any], *, is_tied: bool, where: str) -> ModelConfig:
    """Read the contents of a `config.json`.

    Args:
        is_tied: whether the embedding is the head too, where the config doesn't say.
        where: the file's name for messages.

    Raises:
        UserError: the model is of another architecture, or a field is missing or wrong.
    """
    _refuse_what_differs(config, where)
    kind = config["model_type"]
    try:
        heads = config["num_attention_heads"]
        fields = {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or _only_llama(kind, heads),
            "ffn_hidden_size": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "tie_embeddings": config.get("tie_word_embeddings", is_tied),
            "qk_norm": kind == "qwen3",
            "norm_eps": config.get("rms_norm_eps", _DEFAULT_EPS),
            "init_std": config.get("initializer_range", 0.02),
            "sliding_window": _window(config, where),
            **_rope(config, where),
        }
        if config.get("head_dim") is not None:
            fields["head_dim"] = config["head_dim"]
        elif kind == "qwen3":
            raise KeyError("head_dim")
        return ModelConfig.model_validate(fields)
    except KeyError as error:
        raise UserError(f"{where}: it has no {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{where}: " + "; ".join(problems)) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: a field has the wrong type: {error}") from error


def _only_llama(kind: str, heads: Any) -> Any:
    """Llama has as many key/value heads as heads by default; the others have no such default."""
    if kind != "llama":
        raise KeyError("num_key_value_heads")
    return heads


def _refuse_what_differs(config: Mapping[str, Any], where: str) -> None:
    kinds = ("llama", "qwen3", "mistral")
    if config.get("model_type") not in kinds:
        raise UserError(
            f"{where}: model_type {config.get('model_type')!r} cannot be imported; "
            f"expected {', '.join(kinds)}"
        )
    same = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
    }
    for key, value in same.items():
        if config.get(key) not in (None, value):
            raise UserError(f"{where}: {key} is {config[key]!r}; only {value!r} can be imported")


def _window(config: Mapping[str, Any], where: str) -> Any:
    kind, window = config["model_type"], config.get("sliding_window")
    if kind == "mistral":
        return config.get("sliding_window", _MISTRAL_DEFAULT_WINDOW)
    if kind == "llama" or not config.get("use_sliding_window") or window is None:
        return None
    num_layers, first = config["num_hidden_layers"], config["max_window_layers"]
    by_index = ["full_attention"] * first + ["sliding_attention"] * (num_layers - first)
    layer_types = set((config.get("layer_types") or by_index)[:num_layers])
    if len(layer_types) > 1:
        raise UserError(
            f"{where}: only some layers have a sliding window; all or none can be imported"
        )
    return window if layer_types == {"sliding_attention"} else None


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", _DEFAULT_THETA))
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind != "llama3":
        raise UserError(
            f"{where}: RoPE scaling {kind!r} cannot be imported; expected none or 'llama3'"
        )
    return {
        "rope_theta": theta,
        "rope_scaling": {
            "factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "original_seq_len": scaling["original_max_position_embeddings"],
        },
    }
