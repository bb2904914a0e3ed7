"""GPT-2's folders.

transformers keeps its matrices as `Conv1D`: (in features, out features), and query, key and value
as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from triax.checkpoint.formats.table import Theirs
from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.models.description import describe
from triax.models.families.gpt2 import GPT2Config

_GELU = ("gelu_new", "gelu_pytorch_tanh")
"""Names of GELU by a tanh."""
_SAME = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
"""What must be so, if it is there, for our GPT-2 to compute the same."""
_OUTER = {
    "embedding.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_PRODUCTS = {
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}


def to_huggingface(
    model: ModelConfig,
    *,
    dtype: str,
    seq_len: int,  # noqa: ARG001
    special_tokens: Mapping[str, int | list[int]],
) -> dict[str, Any]:
    """The contents of `config.json`; see `formats.to_huggingface`. The longest sequence is that of
    the positions, whatever was trained on."""
    assert isinstance(model, GPT2Config)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ffn_hidden_size,
        "n_positions": model.num_positions,
        "activation_function": _GELU[0],
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": special_tokens.get("bos_token_id"),
        "eos_token_id": special_tokens.get("eos_token_id"),
        "pad_token_id": special_tokens.get("pad_token_id"),
    }


def from_huggingface(
    config: Mapping[str, Any],
    *,
    is_tied: bool,  # noqa: ARG001 - tied is the default there
    where: str,
) -> ModelConfig:
    """The model of a `config.json`; see `formats.Format`.

    Raises:
        UserError: it computes something else, or a field is missing or wrong.
    """
    for key, value in _SAME.items():
        if config.get(key) not in (None, value):
            raise UserError(f"{where}: {key} is {config[key]!r}; only {value!r} can be imported")
    activation = config.get("activation_function", _GELU[0])
    if activation not in _GELU:
        raise UserError(
            f"{where}: activation_function is {activation!r}; only {_GELU[0]!r} can be imported"
        )
    fields = {
        "num_positions": config.get("n_positions", 1024),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "init_std": config.get("initializer_range", 0.02),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }
    if config.get("n_inner") is not None:
        fields["ffn_hidden_size"] = config["n_inner"]
    try:
        for ours, theirs in (
            ("num_layers", "n_layer"),
            ("hidden_size", "n_embd"),
            ("num_heads", "n_head"),
            ("vocab_size", "vocab_size"),
        ):
            fields[ours] = config[theirs]
        return GPT2Config.model_validate(fields)
    except KeyError as error:
        raise UserError(f"{where}: it has no {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{where}: " + "; ".join(problems)) from error


def tensors(model: ModelConfig) -> Iterator[Theirs]:
    """Their tensors."""
    rows = describe(model).parameters
    yield from (Theirs(_OUTER[name], (name,)) for name in rows if name in _OUTER)
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            for norm, name in _NORMS.items():
                yield Theirs(f"{theirs}.{name}.{kind}", (f"{ours}.{norm}.{kind}",))
            for name, parts in _PRODUCTS.items():
                yield Theirs(
                    f"{theirs}.{name}.{kind}",
                    tuple(f"{ours}.{part}.{kind}" for part in parts),
                    is_transposed=kind == "weight",
                )


def known_as(name: str) -> str | None:
    """A tensor's name in the table; None for the causal mask, which old files hold."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    # GPT-2's own files are of the model without a head, whose names are shorter.
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
