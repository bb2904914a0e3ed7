"""The time below which a step can't come: its matrix products, attention and optimizer, each alone.

Shape letters: M tokens of a micro-batch, K a weight's inputs, N its outputs; B sequences of a
micro-batch, T tokens of a sequence, H heads, G key/value heads, C head dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, current_flash_attention_impl, sdpa_kernel

from triax.common.errors import UserError
from triax.models.config import ModelConfig
from triax.parallel.config import PrecisionConfig
from triax.parallel.dtypes import DTYPES
from triax.parallel.flat_shards import local_parts
from triax.training.bench.timing import seconds_of

_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}
_MAX_ROWS = 16384
"""Beyond, a product's time grows with its rows, and only memory would be lost."""


@dataclass(frozen=True)
class Work:
    """What one process has to do in a step, at best.

    Attributes:
        model: the transformer's shape.
        num_micro_batches, micro_batch_size, seq_len: of this process's part of the batch.
        compute: `precision.compute`.
        tensor: processes that divide every layer.
        pipeline: processes that divide the layers, evenly in the limit.
        optimizer_bytes: what the update reads and writes here.
    """

    model: ModelConfig
    num_micro_batches: int
    micro_batch_size: int
    seq_len: int
    compute: str
    tensor: int
    pipeline: int
    optimizer_bytes: int


@dataclass(frozen=True)
class Product:
    """The matrix products of weights that read the same input: forward, and two backward.

    Attributes:
        name: of the layer.
        num_rows: M.
        num_inputs: K.
        num_outputs: N of each weight; they are also tried as one weight.
        count: times a step, over the whole depth.
        compute: what it is multiplied in.
    """

    name: str
    num_rows: int
    num_inputs: int
    num_outputs: tuple[int, ...]
    count: int
    compute: str

    @property
    def flops(self) -> int:
        """2 MKN each for output, input gradient and weight gradient, over the step."""
        return 6 * self.num_rows * self.num_inputs * sum(self.num_outputs) * self.count


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step; nothing is computed twice, and nothing waits for peers."""

    gemm: float
    attention: float
    optimizer: float
    gemm_flops: int
    attention_backend: str
    copy_bytes_per_second: float

    @property
    def total(self) -> float:
        return self.gemm + self.attention + self.optimizer


def products(work: Work) -> list[Product]:
    """The step's matrix products. The head stays in half precision where blocks are in fp8."""
    model, split = work.model, work.tensor
    width, ffn = model.hidden_size, model.ffn_hidden_size // split
    queries = model.num_heads * model.head_dim // split
    keys = model.num_kv_heads * model.head_dim // split
    rows = work.micro_batch_size * work.seq_len
    each_block = model.num_layers * work.num_micro_batches
    head_compute = "bf16" if work.compute == "fp8" else work.compute
    return [
        Product("query, key, value", rows, width, (queries, keys, keys), each_block, work.compute),
        Product("output", rows, queries, (width,), each_block, work.compute),
        Product("gate, up", rows, width, (ffn, ffn), each_block, work.compute),
        Product("down", rows, ffn, (width,), each_block, work.compute),
        Product("head", rows, width, (model.vocab_size // split,), work.num_micro_batches,
                head_compute),
    ]  # fmt: skip


def optimizer_bytes(state: Mapping[str, Tensor], precision: PrecisionConfig) -> int:
    """What an update moves at least, in bytes: it reads weights, gradients and moments, and writes
    weights and moments, and the weights once more in the compute dtype where that is another.

    Args:
        state: `Engine.state()`; each process counts its own part.
        precision: the `[precision]` section.
    """
    num_weights = num_state_bytes = 0
    for name, tensor in state.items():
        for part in local_parts(tensor):
            num_state_bytes += part.nbytes
            num_weights += part.numel() if name.startswith("model.") else 0
    gradient_bytes = DTYPES[precision.gradients].itemsize
    copy_bytes = 0 if precision.compute == "fp32" else DTYPES[precision.compute].itemsize
    return 2 * num_state_bytes + num_weights * (gradient_bytes + copy_bytes)


def measure_roofline(work: Work, device: torch.device) -> Roofline:
    """Time each kind of the step's work alone on this device.

    Attention is causal over the whole sequence, by the fastest of torch's kernels: documents and
    sliding windows, which leave some of it out, aren't deducted.
    """
    gemms = products(work)
    attention, backend = _best_attention(work, device)
    bandwidth = _copy_bandwidth(device)
    return Roofline(
        gemm=sum(_gemm_seconds(product, device) for product in gemms) / work.pipeline,
        attention=attention / work.pipeline,
        optimizer=work.optimizer_bytes / bandwidth,
        gemm_flops=sum(product.flops for product in gemms) // work.pipeline,
        attention_backend=backend,
        copy_bytes_per_second=bandwidth,
    )


def _gemm_seconds(product: Product, device: torch.device) -> float:
    """Over the step, with the weights apart or as one, whichever is faster."""
    ways = {product.num_outputs, (sum(product.num_outputs),)}
    seconds = (sum(_three_products(product, num, device) for num in way) for way in ways)
    return min(seconds) * product.count


def _three_products(product: Product, num_outputs: int, device: torch.device) -> float:
    rows = min(product.num_rows, _MAX_ROWS)
    operations = _multiplications(rows, product.num_inputs, num_outputs, product.compute, device)
    return sum(seconds_of(each, device) for each in operations) * product.num_rows / rows


def _multiplications(
    m: int, k: int, n: int, compute: str, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    """Output (M, N), input gradient (M, K) and weight gradient (N, K)."""
    if compute == "fp8":
        yield from (_fp8_product(*shape, device) for shape in ((m, k, n), (m, n, k), (n, m, k)))
        return
    x_MK, weight_NK, grad_MN = (
        torch.randn(shape, device=device, dtype=DTYPES[compute])
        for shape in ((m, k), (n, k), (m, n))
    )
    yield lambda: x_MK @ weight_NK.T
    yield lambda: grad_MN @ weight_NK
    yield lambda: grad_MN.T @ x_MK


def _fp8_product(m: int, k: int, n: int, device: torch.device) -> Callable[[], Tensor]:
    """(M, K) by (K, N) with one scale a tensor, quantised and laid out already."""
    a_MK, b_NK = (
        torch.randn(shape, device=device).to(torch.float8_e4m3fn) for shape in ((m, k), (n, k))
    )
    scale = torch.ones((), device=device)
    return lambda: torch._scaled_mm(
        a_MK, b_NK.T, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _best_attention(work: Work, device: torch.device) -> tuple[float, str]:
    """Seconds of a step's attention by the fastest kernel, and that kernel's name."""
    found = dict(_attention_seconds(work, _BACKENDS, device))
    # It keeps all scores: only where nothing else works.
    found = found or dict(_attention_seconds(work, (SDPBackend.MATH,), device))
    if not found:
        raise UserError(f"no attention kernel of torch takes {work.compute} on {device}")
    name = min(found, key=lambda each: found[each])
    return found[name] * work.model.num_layers * work.num_micro_batches, name


def _attention_seconds(
    work: Work, backends: Iterable[SDPBackend], device: torch.device
) -> Iterator[tuple[str, float]]:
    for backend in backends:
        for is_grouped in (True, False):
            # Some kernels take equally many key/value heads only.
            try:
                run = _attention(work, is_grouped, device)
                with sdpa_kernel(backend), warnings.catch_warnings(action="ignore"):
                    seconds = seconds_of(run, device)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                continue
            yield _shown(backend), seconds
            break


def _shown(backend: SDPBackend) -> str:
    name = backend.name.removesuffix("_ATTENTION").lower()
    chosen = current_flash_attention_impl() if backend is SDPBackend.FLASH_ATTENTION else None
    return f"{name} ({chosen})" if chosen else name


def _attention(work: Work, is_grouped: bool, device: torch.device) -> Callable[[], object]:
    """Forward and backward of one block's attention, on tensors that lie as the model's do."""
    num_heads = work.model.num_heads // work.tensor
    num_kv_heads = work.model.num_kv_heads // work.tensor if is_grouped else num_heads
    q_BHTC, k_BGTC, v_BGTC = (
        torch.randn(
            (work.micro_batch_size, work.seq_len, num, work.model.head_dim),
            device=device,
            dtype=DTYPES[work.compute],
        )
        .transpose(1, 2)
        .requires_grad_()
        for num in (num_heads, num_kv_heads, num_kv_heads)
    )
    grad_BHTC = torch.randn_like(q_BHTC)

    def run() -> object:
        mixed_BHTC = F.scaled_dot_product_attention(
            q_BHTC, k_BGTC, v_BGTC, is_causal=True, enable_gqa=num_heads != num_kv_heads
        )
        return torch.autograd.grad(mixed_BHTC, (q_BHTC, k_BGTC, v_BGTC), grad_BHTC)

    return run


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    source.fill_(1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)
