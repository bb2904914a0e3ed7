"""Model folders of Hugging Face transformers, by our families and by their `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triax.checkpoint.formats import experts, gpt2, llama
from triax.checkpoint.formats.table import Format, Theirs
from triax.common.errors import UserError
from triax.models.config import ModelConfig

_BY_FAMILY: dict[str, Format] = {"llama": llama, "gpt2": gpt2}
_BY_TYPE: dict[str, Format] = {
    "llama": llama,
    "qwen3": llama,
    "mistral": llama,
    "gpt2": gpt2,
    **dict.fromkeys(experts.KINDS, experts),
}


def format_of(config: Mapping[str, Any], where: str) -> Format:
    """The table for the contents of a `config.json`.

    Args:
        where: the file's name for messages.

    Raises:
        UserError: no family is like that model.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        raise UserError(
            f"{where}: model_type {kind!r} cannot be imported; expected {', '.join(_BY_TYPE)}"
        )
    return _BY_TYPE[kind]


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
    return _format_for(model).to_huggingface(
        model, dtype=dtype, seq_len=seq_len, special_tokens=special_tokens
    )


def tensor_table(model: ModelConfig) -> list[Theirs]:
    """Their tensors and what of ours is in each, in the order of the model.

    Raises:
        UserError: the family has no table.
    """
    return list(_format_for(model).tensors(model))


def _format_for(model: ModelConfig) -> Format:
    if model.family not in _BY_FAMILY:
        raise UserError(
            f'the family "{model.family}" has no form at Hugging Face here: only '
            f"{' and '.join(_BY_FAMILY)} models can be exported"
        )
    has_experts = getattr(model, "experts", None) is not None
    return experts if has_experts else _BY_FAMILY[model.family]
