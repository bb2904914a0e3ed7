"""The dtypes behind the names that configs have for them."""

from __future__ import annotations

import torch

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""fp8: of all but the linear layers that it is for."""
