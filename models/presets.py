"""Published model shapes by name, as fields of the `[model]` section. Imports nothing.

Llama and GPT-2 shapes are those of the models' published config files. `llama-124m` has GPT-2's
size in Llama's architecture: a SwiGLU of width 2048 has as many weights as an MLP of width 3072.
The `-untied` ones have a head of their own: 1.5B and 3.6B parameters, for benchmarks.
"""

from __future__ import annotations

from typing import Any

_LLAMA3 = {"vocab_size": 128256, "rope_theta": 500_000.0, "norm_eps": 1e-5}


def _llama3_1_rope(factor: float) -> dict[str, float | int]:
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_seq_len": 8192,
    }


def _llama(
    num_layers: int, hidden_size: int, num_heads: int, num_kv_heads: int, ffn_hidden_size: int
) -> dict[str, Any]:
    return {
        "family": "llama",
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "ffn_hidden_size": ffn_hidden_size,
    }


_MINI = {"tie_embeddings": True, "qk_norm": True}

PRESETS: dict[str, dict[str, Any]] = {
    "mini-10m": _llama(6, 384, 6, 2, 896) | _MINI | {"vocab_size": 4096},
    "mini-30m": _llama(8, 512, 8, 4, 1536) | _MINI | {"vocab_size": 16384},
    "mini-50m": _llama(12, 576, 9, 3, 1536) | _MINI | {"vocab_size": 16384},
    "mini-moe-20m": _llama(6, 256, 4, 2, 1024)
    | _MINI
    | {
        "vocab_size": 4096,
        "experts": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 512},
    },
    "gpt2-124m": {
        "family": "gpt2",
        "num_layers": 12,
        "hidden_size": 768,
        "num_heads": 12,
        "vocab_size": 50257,
    },
    "llama-124m": _llama(12, 768, 12, 12, 2048) | {"vocab_size": 50257, "tie_embeddings": True},
    "llama3.2-1b": _llama(16, 2048, 32, 8, 8192)
    | _LLAMA3
    | {"tie_embeddings": True, "rope_scaling": _llama3_1_rope(32.0)},
    "llama3.2-3b": _llama(28, 3072, 24, 8, 8192)
    | _LLAMA3
    | {"tie_embeddings": True, "rope_scaling": _llama3_1_rope(32.0)},
    "llama3.2-1b-untied": _llama(16, 2048, 32, 8, 8192)
    | _LLAMA3
    | {"rope_scaling": _llama3_1_rope(32.0)},
    "llama3.2-3b-untied": _llama(28, 3072, 24, 8, 8192)
    | _LLAMA3
    | {"rope_scaling": _llama3_1_rope(32.0)},
    "llama3-8b": _llama(32, 4096, 32, 8, 14336) | _LLAMA3,
    "llama3-70b": _llama(80, 8192, 64, 8, 28672) | _LLAMA3,
    "llama3-405b": _llama(126, 16384, 128, 8, 53248)
    | _LLAMA3
    | {"rope_scaling": _llama3_1_rope(8.0)},
    "mixtral-8x7b": _llama(32, 4096, 32, 8, 14336)
    | {
        "vocab_size": 32000,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "experts": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 14336},
    },
    "qwen3-30b-a3b": _llama(48, 2048, 32, 4, 6144)
    | {
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "norm_eps": 1e-6,
        "qk_norm": True,
        "experts": {"num_experts": 128, "top_k": 8, "ffn_hidden_size": 768},
    },
}
