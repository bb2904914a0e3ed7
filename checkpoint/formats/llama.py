"""ModelConfig to and from the `config.json` of Hugging Face transformers.

The same weights and shapes are, there, one of three architectures: Llama; Qwen3, which is Llama
with QK-norm; Mistral, which is Llama with a sliding window and a free head dimension. RoPE is
written under the keys of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which
transformers 5 reads as well; both are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from triax.checkpoint.formats.table import Theirs
from triax.common.errors import UserError
from triax.models.config import MOST_LAYERS, ModelConfig
from triax.models.description import describe
from triax.models.families.llama import LlamaConfig

_MISTRAL_DEFAULT_WINDOW = 4096
_DEFAULT_EPS = 1e-6
_DEFAULT_THETA = 10_000.0
"""What transformers takes where config.json is silent."""
OUTER_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SAME = {
    "hidden_act": "silu",
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""What must be so, if it is there, for our models to compute the same."""
_ROPE_KEYS = {
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_seq_len",
    },
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "original_max_position_embeddings": "original_seq_len",
    },
}
"""By kind of scaling: their keys, and the fields of `RopeScaling`."""
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}


def to_huggingface(
    model: ModelConfig, *, dtype: str, seq_len: int, special_tokens: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """The contents of `config.json`; see `formats.to_huggingface`.

    Raises:
        UserError: no architecture there computes this model.
    """
    assert isinstance(model, LlamaConfig)
    return _architecture(model) | common_keys(
        model, dtype=dtype, seq_len=seq_len, special_tokens=special_tokens
    )


def common_keys(
    model: LlamaConfig, *, dtype: str, seq_len: int, special_tokens: Mapping[str, int | list[int]]
) -> dict[str, Any]:
    """What `config.json` says whichever the architecture.

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
            "rope_type": scaling.kind,
            **{key: getattr(scaling, name) for key, name in _ROPE_KEYS[scaling.kind].items()},
        },
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": special_tokens.get("bos_token_id"),
        "eos_token_id": special_tokens.get("eos_token_id"),
        "pad_token_id": special_tokens.get("pad_token_id"),
    }


def tensors(model: ModelConfig) -> Iterator[Theirs]:
    """Their tensors, in the order of the model: each is one of ours, as it is.

    RoPE pairs dimension i with i + head_dim/2 here as there.
    """
    for name in describe(model).parameters:
        if name in OUTER_NAMES:
            yield Theirs(OUTER_NAMES[name], (name,))
        else:
            _, layer, rest = name.split(".", 2)
            yield Theirs(f"model.layers.{layer}.{BLOCK_NAMES[rest]}", (name,))


def known_as(name: str) -> str | None:
    """A tensor's name in the table; None for RoPE's frequencies, which old exports hold."""
    return None if name.endswith("rotary_emb.inv_freq") else name


def _architecture(model: LlamaConfig) -> dict[str, Any]:
    if model.joint_qk_norm:
        raise UserError(
            "model.joint_qk_norm: of Hugging Face's models with Llama's blocks only OLMoE has it, "
            "and this model has no experts"
        )
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


def from_huggingface(config: Mapping[str, Any], *, is_tied: bool, where: str) -> LlamaConfig:
    """Read the contents of a `config.json`.

    Args:
        is_tied: whether the embedding is the head too, where the config doesn't say.
        where: the file's name for messages.

    Raises:
        UserError: the model is of another architecture, or a field is missing or wrong.
    """
    _refuse_what_differs(config, where)
    kind = config["model_type"]
    with reading(where):
        fields = common_fields(config, is_tied=is_tied, where=where) | {
            "num_kv_heads": config.get("num_key_value_heads") or _only_llama(config),
            "qk_norm": kind == "qwen3",
            "sliding_window": _window(config, where),
        }
        if kind == "qwen3" and "head_dim" not in fields:
            raise KeyError("head_dim")
        return LlamaConfig.model_validate(fields)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Says what is wrong with a config in the words of `UserError`."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: it has no {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{where}: " + "; ".join(problems)) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: a field has the wrong type: {error}") from error


def common_fields(config: Mapping[str, Any], *, is_tied: bool, where: str) -> dict[str, Any]:
    """Fields of ours that `config.json` tells alike whichever the architecture.

    Raises:
        KeyError, UserError: one is missing, or can't be.
    """
    heads, num_layers = config["num_attention_heads"], config["num_hidden_layers"]
    if not isinstance(num_layers, int) or num_layers > MOST_LAYERS:
        raise UserError(
            f"{where}: num_hidden_layers: expected a number up to {MOST_LAYERS:,}, "
            f"got {str(num_layers)[:20]}"
        )
    fields = {
        "num_layers": num_layers,
        "hidden_size": config["hidden_size"],
        "num_heads": heads,
        "ffn_hidden_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tie_embeddings": config.get("tie_word_embeddings", is_tied),
        "norm_eps": config.get("rms_norm_eps", _DEFAULT_EPS),
        "init_std": config.get("initializer_range", 0.02),
        **_rope(config, where),
    }
    if config.get("head_dim") is not None:
        fields["head_dim"] = config["head_dim"]
    return fields


def _only_llama(config: Mapping[str, Any]) -> Any:
    """Llama has as many key/value heads as heads by default; the others have no such default."""
    if config["model_type"] != "llama":
        raise KeyError("num_key_value_heads")
    return config["num_attention_heads"]


def _refuse_what_differs(config: Mapping[str, Any], where: str) -> None:
    kinds = ("llama", "qwen3", "mistral")
    if config.get("model_type") not in kinds:
        raise UserError(
            f"{where}: model_type {config.get('model_type')!r} cannot be imported; "
            f"expected {', '.join(kinds)}"
        )
    refuse_others(config, where, {"mlp_bias": False})


def refuse_others(config: Mapping[str, Any], where: str, more: Mapping[str, Any]) -> None:
    """Let through a config with these values, or without, besides those of all architectures.

    Raises:
        UserError: it has another.
    """
    for key, value in {**_SAME, **more}.items():
        if config.get(key) not in (None, value):
            raise UserError(f"{where}: {key} is {config[key]!r}; only {value!r} can be imported")


def _window(config: Mapping[str, Any], where: str) -> Any:
    """The sliding window of all layers, None for none."""
    kind, window = config["model_type"], config.get("sliding_window")
    if kind == "mistral":
        window = config.get("sliding_window", _MISTRAL_DEFAULT_WINDOW)
    elif not config.get("use_sliding_window", kind == "llama"):
        window = None
    if kind == "llama" and window is not None:
        raise UserError(f"{where}: sliding_window is {window!r}, and transformers' Llama has none")
    types = _layer_types(config, window, where)
    if len(types) > 1:
        raise UserError(
            f"{where}: only some layers have a sliding window; all or none can be imported"
        )
    if window is None and types != {_FULL}:
        raise UserError(f"{where}: layer_types are {types.pop()!r} without a sliding window")
    if types not in ({_FULL}, {_SLIDING}) or (kind == "mistral" and window and types == {_FULL}):
        raise UserError(f"{where}: layer_types are {types.pop()!r} with a window of {window!r}")
    return window if types == {_SLIDING} else None


def _layer_types(config: Mapping[str, Any], window: Any, where: str) -> set[str]:
    """The kinds of attention that there are among the layers."""
    num_layers, given = config["num_hidden_layers"], config.get("layer_types")
    default = _FULL if window is None else _SLIDING
    by_index = [default] * num_layers
    if window is not None and config["model_type"] == "qwen3":
        if given is None or "max_window_layers" in config:
            first = config["max_window_layers"]
            by_index = [_SLIDING if layer >= first else _FULL for layer in range(num_layers)]
        else:
            by_index = given
    if given is None:
        return set(by_index)
    if not isinstance(given, list) or len(given) != num_layers:
        raise UserError(f"{where}: layer_types: expected a list of {num_layers}, one a layer")
    if config["model_type"] == "qwen3" and given != by_index:
        raise UserError(
            f"{where}: layer_types contradict use_sliding_window, sliding_window and "
            "max_window_layers: versions of transformers would differ; correct one of them"
        )
    return set(given)


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """RoPE's settings from wherever they stand: versions of transformers read them from different
    places, so where several speak they must agree."""
    keys = ("rope_parameters", "rope_scaling")
    tables = [_rope_table(config[key], f"{where}: {key}") for key in keys if config.get(key)]
    scalings = [{k: v for k, v in table.items() if k != "rope_theta"} for table in tables]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise UserError(
            f"{where}: rope_scaling contradicts rope_parameters: versions of transformers would "
            "differ; correct one of them"
        )
    given = [table["rope_theta"] for table in (*tables, config) if table.get("rope_theta")]
    if any(theta != given[0] for theta in given):
        raise UserError(f"{where}: rope_theta is given as {' and '.join(map(repr, given))}")
    theta = given[0] if given else _DEFAULT_THETA
    scaling = scalings[0] if scalings else {"rope_type": "default"}
    if scaling["rope_type"] == "default":
        return {"rope_theta": theta}
    outside = config.get("original_max_position_embeddings")
    if outside not in (None, scaling.get("original_max_position_embeddings")):
        raise UserError(f"{where}: original_max_position_embeddings is given twice, differently")
    kind = scaling["rope_type"]
    fields = {name: scaling[key] for key, name in _ROPE_KEYS[kind].items()}
    return {"rope_theta": theta, "rope_scaling": {"kind": kind, **fields}}


def _rope_table(given: Any, where: str) -> dict[str, Any]:
    """`rope_parameters` or `rope_scaling`, without what says nothing; only what is understood."""
    if not isinstance(given, dict):
        raise UserError(f"{where}: has the wrong type: expected a table, got {given!r}")
    table = {key: value for key, value in given.items() if value is not None}
    kind = table.pop("type", table.get("rope_type", "default"))
    if table.setdefault("rope_type", kind) != kind:
        raise UserError(f"{where}: type {kind!r} contradicts rope_type {table['rope_type']!r}")
    if kind not in ("default", *_ROPE_KEYS):
        raise UserError(
            f"{where}: RoPE scaling {kind!r} cannot be imported; expected none, "
            f"{' or '.join(map(repr, _ROPE_KEYS))}"
        )
    if table.pop("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: partial_rotary_factor: only 1 can be imported")
    if kind == "yarn":
        table = {**_YARN_DEFAULTS, **table}
        if table.pop("truncate", True) is not True:
            raise UserError(f"{where}: truncate: only true can be imported")
    known = {"rope_type", "rope_theta", *_ROPE_KEYS.get(kind, ())}
    if unknown := sorted(map(str, table.keys() - known)):
        raise UserError(f"{where}: {unknown[0]} isn't understood with RoPE scaling {kind!r}")
    return table
