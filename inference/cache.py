"""Keys and values of the tokens that a model has seen, so that each is computed once.

Rows of prompts of unequal length are aligned at their ends: a shorter one begins with slots that
hold nothing, which no token sees, and positions count from a row's own first token. So every row
appends at the same slot.

Shape letters: B rows, T new tokens, S slots, H query heads, G key/value heads, N query heads that
share a key, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from triax.models.layers.attention import Attention
from triax.models.layers.block import Block
from triax.models.layers.transformer import Transformer

_TOKENS_AT_ONCE = 1024
"""Of a prompt, in each row."""


class KeyValueCache:
    """The keys and values of some rows, in each layer.

    Everything is kept for the whole context; a layer with a sliding window reads that alone.
    """

    def __init__(
        self, model: Transformer, num_rows: int, capacity: int, device: torch.device
    ) -> None:
        """Args:
        model: whole in depth; of its heads a process may hold some.
        num_rows: B.
        capacity: slots a row: the longest context.
        device: that the model computes on.
        """
        layers = model.description.architecture.layers
        self._windows = {str(number): one.attention.window for number, one in enumerate(layers)}
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self.capacity = capacity
        self.length = 0
        """Slots in use, of every row."""
        self.num_empty_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """Slots at a row's beginning that hold nothing."""
        self._has_empty = False

    def begin(self, lengths: Sequence[int]) -> None:
        """Forget everything; the next tokens are the rows' first, so many in each."""
        self.length = 0
        empty = [max(lengths) - length for length in lengths]
        self._has_empty = any(empty)
        self.num_empty_B = torch.tensor(empty, device=self.num_empty_B.device)

    def held(self) -> list[int]:
        """Tokens of each row; the host waits for the device."""
        held: list[int] = (self.length - self.num_empty_B).tolist()
        return held

    def positions_BT(self, num_tokens: int) -> Tensor:
        """The next tokens' positions in their own rows; 0 for slots that hold nothing."""
        slots = torch.arange(self.length, self.length + num_tokens, device=self.num_empty_B.device)
        return (slots - self.num_empty_B[:, None]).clamp(min=0)

    def mask(self, num_tokens: int, window: int | None) -> Tensor | None:
        """Which of the slots that are read the next tokens see: bool (B or 1, 1, T, S); None for
        all up to their own."""
        length, first = self.length + num_tokens, self._first_read(window)
        has_window = window is not None and window < length
        if not self._has_empty and (num_tokens == 1 or (self.length == 0 and not has_window)):
            return None
        slots = torch.arange(first, length, device=self.num_empty_B.device)
        own = slots[self.length - first :, None]
        visible_BTS = (slots <= own)[None]
        if window is not None and has_window:
            visible_BTS = visible_BTS & (own - slots < window)
        if self._has_empty:
            visible_BTS = visible_BTS & (slots >= self.num_empty_B[:, None, None])
            # A slot that holds nothing sees itself, lest its softmax be 0/0.
            visible_BTS = visible_BTS | (slots == own)
        return visible_BTS[:, None]

    def _first_read(self, window: int | None) -> int:
        """The first slot that any of the next tokens may see."""
        return 0 if window is None else max(0, self.length - window + 1)

    def attend(
        self, layer: str, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Keep the new tokens' keys and values, and mix all values so far; (B, H, T, K)."""
        if layer not in self._kept:
            # As many heads as this process has, in the dtype that they come in.
            shape = (*k_BGTK.shape[:2], self.capacity, k_BGTK.shape[3])
            self._kept[layer] = k_BGTK.new_zeros(shape), v_BGTK.new_zeros(shape)
        keys_BGSK, values_BGSK = self._kept[layer]
        num_tokens = q_BHTK.shape[2]
        new = slice(self.length, self.length + num_tokens)
        keys_BGSK[:, :, new], values_BGSK[:, :, new] = k_BGTK, v_BGTK
        read = slice(self._first_read(self._windows[layer]), new.stop)
        k_BGSK, v_BGSK = keys_BGSK[:, :, read], values_BGSK[:, :, read]
        if num_tokens == 1:
            # The heads that share a key stand side by side as if they were several queries of it.
            q_BGNK = q_BHTK.squeeze(2).unflatten(1, (k_BGSK.shape[1], -1))
            mixed_BGNK = F.scaled_dot_product_attention(q_BGNK, k_BGSK, v_BGSK, attn_mask=mask)
            return mixed_BGNK.flatten(1, 2).unsqueeze(2)
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    def advance(self, num_tokens: int) -> None:
        """The tokens are in all layers."""
        self.length += num_tokens


def next_logits(model: Transformer, cache: KeyValueCache, tokens_BT: Tensor) -> Tensor:
    """Logits (B, V) in fp32 of what follows the given tokens, which the cache then holds.

    Many tokens are read in parts, so that no mask and no activation grows with their square.
    """
    assert model.norm is not None and model.head is not None
    with _reading(model, cache):
        for part_BT in tokens_BT.split(_TOKENS_AT_ONCE, dim=1):
            num_tokens = part_BT.shape[1]
            h_BTD = model.hidden_states(
                part_BT, num_tokens, positions_BT=cache.positions_BT(num_tokens)
            )
            cache.advance(num_tokens)
    return model.head.logits(model.norm(h_BTD[:, -1:]))[:, 0]


@contextmanager
def _reading(model: Transformer, cache: KeyValueCache) -> Iterator[None]:
    """Within it the model's attention looks at the cache, too."""

    def make_mask(
        _ids: object, num_tokens: int, window: int | None, _device: object
    ) -> Tensor | None:
        return cache.mask(num_tokens, window)

    attentions: list[tuple[str, Attention]] = []
    for name, block in model.blocks.items():
        assert isinstance(block, Block)
        attentions.append((name, block.attention))
    before = [attention.attend for _, attention in attentions], model.make_mask
    try:
        model.make_mask = make_mask
        for name, attention in attentions:
            attention.attend = partial(cache.attend, name)
        yield
    finally:
        for (_, attention), attend in zip(attentions, before[0], strict=True):
            attention.attend = attend
        model.make_mask = before[1]
