"""Grouped-query self-attention.

Shape letters: B batch, T tokens, D hidden size, H query heads, G key/value heads, K head
dimension. A tensor without letters has the shape that its docstring gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from triax.models import architecture
from triax.models.layers.attention_op import attend_rows
from triax.models.layers.masks import Mask, Reach
from triax.models.layers.norm import make_norm
from triax.models.layers.rotary import rotate

_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask) -> Tensor:
    """Mix the values by softmax(q k^T / sqrt(K)); (B, H, T, K). Heads share G keys and values."""
    if isinstance(mask, Reach):
        return attend_rows(q_BHTK, k_BGTK, v_BGTK, mask.firsts_BT, mask.window, "")
    has_groups = q_BHTK.shape[1] != k_BGTK.shape[1]
    if isinstance(mask, BlockMask):
        mixed: Tensor = flex_attention(
            q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=has_groups
        )
        return mixed
    # With such masks cuDNN's backward pass can give NaN (pytorch issue 196678; torch 2.11 to 2.13).
    is_safe = mask is None or k_BGTK.shape[2] % 128 != 64
    with nullcontext() if is_safe else sdpa_kernel(_WITHOUT_CUDNN):
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, is_causal=mask is None, enable_gqa=has_groups
        )


def project_apart(x_BTD: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Each layer's output for the same input."""
    return [linear(x_BTD) for linear in linears]


class Attention(nn.Module):
    """Causal self-attention: query, key, value and output projections.

    With `qk_norm`, queries and keys are normalised over the head dimension before they are rotated,
    or over all heads at once.
    """

    project: Callable[..., Sequence[Tensor]] = staticmethod(project_apart)
    """How queries, keys and values come about: by `project_apart`, or by one larger product."""
    attend: Callable[..., Tensor] = staticmethod(attend)
    """How values are mixed: by `attend`, or by other kernels, or over several processes."""

    def __init__(self, layer: architecture.Attention, width: int) -> None:
        super().__init__()
        num_queries = layer.num_heads * layer.head_dim
        num_keys = layer.num_query_groups * layer.head_dim
        self.layer = layer
        self.query = nn.Linear(width, num_queries, bias=layer.has_bias)
        self.key = nn.Linear(width, num_keys, bias=layer.has_bias)
        self.value = nn.Linear(width, num_keys, bias=layer.has_bias)
        self.output = nn.Linear(num_queries, width, bias=layer.has_bias)
        self.query_norm, self.key_norm = (
            nn.Identity()
            if layer.qk_norm is None
            else make_norm(layer.qk_norm, size if layer.norms_heads_jointly else layer.head_dim)
            for size in (num_queries, num_keys)
        )

    def forward(self, x_BTD: Tensor, rotary: Tensor | None, mask: Mask) -> Tensor:
        """Attend over x (B, T, D).

        Args:
            rotary: from `rotary_table`; None where positions come otherwise.
            mask: from `attention_mask`, `block_mask` or `reach`.
        """
        heads = (*x_BTD.shape[:2], -1, self.layer.head_dim)
        q_BTD, k_BTD, v_BTD = self.project(x_BTD, (self.query, self.key, self.value))
        if self.layer.norms_heads_jointly:
            q_BTHK = self.query_norm(q_BTD).view(heads)
            k_BTGK = self.key_norm(k_BTD).view(heads)
        else:
            q_BTHK = self.query_norm(q_BTD.view(heads))
            k_BTGK = self.key_norm(k_BTD.view(heads))
        if rotary is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, rotary), rotate(k_BTGK, rotary)
        v_BTGK = v_BTD.view(heads)
        mixed_BHTK = self.attend(
            q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2), mask
        )
        y_BTD: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2))
        return y_BTD
