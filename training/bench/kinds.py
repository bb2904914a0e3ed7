"""What a kernel, an operation or a range of the host does in a training step, by its name."""

from __future__ import annotations

import re
from enum import StrEnum


class Kind(StrEnum):
    """What a device does. Where several run at once the first of this order gets the time, so that
    communication is what nothing else hides."""

    GEMM = "gemm"
    ATTENTION = "attention"
    LOSS = "loss"
    """Without the head's matrix products."""
    OPTIMIZER = "optimizer"
    """With the gradients' norm and clipping."""
    ELEMENTWISE = "elementwise"
    COPIES = "copies"
    """Plain copies, and ZeRO's gathering, casting and scattering of weights and gradients."""
    COMMUNICATION = "communication"
    IDLE = "idle"


_BY_NAME = (
    (Kind.COMMUNICATION, re.compile(r"nccl|rccl|nvshmem|^gloo:|^_?c10d(_functional)?::")),
    (
        Kind.ATTENTION,
        re.compile(
            r"flash_?(fwd|bwd|fprop|bprop|attn|attention)|flash::|fmha|sdpa|flex_attention"
            r"|cudnn::fusion::(compute_dot_do_o|convert_dq)"
            r"|^aten::_(scaled_dot_product|flash_attention|efficient_attention|cudnn_attention)"
        ),
    ),
    (
        Kind.GEMM,
        re.compile(
            r"gemm|gemv|nvjet|cutlass|cublas|xmma|splitk|tensorop|triton_(tem|mm|bmm)|scaled_mm"
            r"|^aten::(mm|addmm|bmm|baddbmm|mv)$|^mkldnn::_linear"
        ),
    ),
)
"""What a name alone decides, in lower case; the first that matches."""
_FUSED = re.compile(r"^triton_(poi|red|per|for)|at::native::(vectorized_|unrolled_)?elementwise")
"""Inductor names a kernel after all that it was fused from, attention and products too."""
_MULTI_TENSOR = re.compile(r"multi_tensor_apply|adam|lpnorm|^aten::_(foreach|fused_adam)")
_RANGES = (
    (Kind.LOSS, re.compile(r"crossentropy|nllloss|logsoftmax")),
    (Kind.OPTIMIZER, re.compile(r"^optimizer\.(step|zerograd)")),
    (Kind.COPIES, re.compile(r"^fsdp::")),
)
"""In lower case and without underscores: autograd functions, torch's optimizers, FSDP2."""


def kind_by_name(name: str) -> Kind | None:
    """What a kernel's or operation's name alone decides, wherever it was launched."""
    lower = name.lower()
    if _FUSED.search(lower):
        return None
    return next((kind for kind, pattern in _BY_NAME if pattern.search(lower)), None)


def kind_of_range(name: str) -> Kind | None:
    """What a range of the host is for: it decides about what its name doesn't."""
    bare = name.lower().replace("_", "")
    return next((kind for kind, pattern in _RANGES if pattern.search(bare)), None)


def kind_of_kernel(name: str, within: Kind | None) -> Kind:
    """What a kernel does, or an operation on a CPU.

    Args:
        name: the kernel's.
        within: what the range that it was launched in is for, if that is known.
    """
    if (by_name := kind_by_name(name)) is not None:
        return by_name
    if within is not None:
        return within
    if is_multi_tensor(name):
        return Kind.OPTIMIZER
    return Kind.LOSS if kind_of_range(name) is Kind.LOSS else Kind.ELEMENTWISE


def is_multi_tensor(name: str) -> bool:
    """Whether it works on a list of tensors, as optimizers, norms and clipping do."""
    return _MULTI_TENSOR.search(name.lower()) is not None
