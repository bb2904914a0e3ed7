"""What a block keeps for its backward pass, by `parallel.activation_checkpointing`.

    python benchmarks/activation_memory.py --preset llama3-8b

Runs one block of the preset's shape forward on the CPU in bf16 and adds up the storages that it
made and that still live. Bytes a token and block; multiply by tokens of a micro-batch and layers
of a stage.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from triax.models.config import ModelConfig
from triax.models.families import model_config
from triax.models.layers.block import Block
from triax.models.layers.rotary import rotary_table
from triax.parallel.recompute import checkpoint_activations


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations have made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def bytes_per_token(config: ModelConfig, what: str, num_tokens: int) -> float:
    """What one block keeps after its forward pass, its output not counted."""
    layer = config.architecture().layers[0]
    block = Block(layer, config.hidden_size).to(torch.bfloat16)
    checkpoint_activations(block, what)
    x_BTD = torch.randn(1, num_tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    rotary = rotary_table(layer.attention, num_tokens, x_BTD.device)
    assert rotary is not None
    parameters = {p.untyped_storage()._cdata for p in block.parameters()}
    with LiveStorages() as live:
        live._known |= parameters | {x.untyped_storage()._cdata for x in (x_BTD, rotary)}
        output = block(x_BTD, rotary, None)
        kept = live.bytes - output.untyped_storage().nbytes()
    # The block's input is the former block's output: full keeps it, and so do the others.
    return float(kept + x_BTD.untyped_storage().nbytes()) / num_tokens


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="llama3-8b")
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    config = model_config(preset=args.preset)
    print(f"{args.preset}, bf16, {args.tokens} tokens: bytes a token and block")
    for what in ("none", "selective", "full"):
        print(f"  {what:<10} {bytes_per_token(config, what, args.tokens):>12,.0f}")


if __name__ == "__main__":
    main()
