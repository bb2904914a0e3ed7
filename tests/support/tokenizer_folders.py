"""Tokenizer folders like those of models that people download, small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = ("<s>", "</s>", "<|endoftext|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def byte_tokenizer(special: Sequence[str], *, is_special: bool = True) -> Tokenizer:
    """Bytes without merges, and then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [AddedToken(name, special=is_special, normalized=False) for name in special]
    tokenizer.add_special_tokens(tokens) if is_special else tokenizer.add_tokens(tokens)
    return tokenizer


def tokenizer_folder(
    folder: Path, special: Sequence[str], config: dict[str, Any] | None, **changes: Any
) -> Path:
    """Write `tokenizer.json`, with these top-level entries changed, and maybe its config."""
    folder.mkdir()
    raw = json.loads(byte_tokenizer(special).to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    if config is not None:
        content = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def llama_3_instruct(folder: Path) -> Path:
    """Puts its first token before each text; its eos ends a turn."""
    first = LLAMA[0]
    number = byte_tokenizer(LLAMA).token_to_id(first)
    single = [
        {"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    puts_first = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {first: {"id": first, "ids": [number], "tokens": [first]}},
    }
    config = {"bos_token": first, "eos_token": LLAMA[2], "model_max_length": 131072}
    return tokenizer_folder(folder, LLAMA, config, post_processor=puts_first)


def qwen(folder: Path) -> Path:
    """Its eos ends a turn, its pad token is what others end documents with."""
    config = {"eos_token": QWEN[2], "pad_token": QWEN[0], "model_max_length": 32768}
    tokenizer_folder(folder, QWEN, config)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def sentences(folder: Path) -> Path:
    """Ends with </s>, though it has <|endoftext|> too."""
    special = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}
    tokenizer_folder(folder, SENTENCES, special)
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def alone(folder: Path) -> Path:
    """Nothing but tokenizer.json."""
    return tokenizer_folder(folder, SENTENCES, None)
