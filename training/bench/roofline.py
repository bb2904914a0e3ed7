"""The time below which a step can't come: its matrix products, attention and optimizer, each alone.

Shape letters: M tokens of a micro-batch, K a weight's inputs, N its outputs; B sequences of a
micro-batch, T tokens of a sequence, H heads, G key/value heads, C head dimension.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, current_flash_attention_impl, sdpa_kernel

from triax.common.errors import UserError
from triax.models.architecture import Attention
from triax.models.config import ModelConfig
from triax.models.description import EXPERTS, Parameter, Role, describe
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
        pipeline: processes that divide the layers or each sequence, evenly in the limit.
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
    counts = Counter(
        _product(work, readers) for readers in _readers_of_one_input(describe(work.model).table)
    )
    return [
        replace(product, count=num_layers * work.num_micro_batches)
        for product, num_layers in counts.items()
    ]


def _readers_of_one_input(table: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """The weights that multiply, those together that read the same input: the column-split ones of
    one module."""
    factors = [parameter for parameter in table if parameter.flops_per_token]

    def input_of(parameter: Parameter) -> tuple[str, bool]:
        module, _, _ = parameter.name.removesuffix(".weight").rpartition(".")
        return module, parameter.role in (Role.COLUMN, Role.EXPERT_COLUMN)

    for _, readers in itertools.groupby(factors, key=input_of):
        yield list(readers)


def _product(work: Work, readers: Sequence[Parameter]) -> Product:
    """One micro-batch's product of one layer."""
    first = readers[0]
    # Of experts, as many rows as tokens go through one, each divided alike.
    num_rows = work.micro_batch_size * work.seq_len
    if first.role in EXPERTS:
        num_rows = round(num_rows * first.active_share * first.shape[0])
    out_dimension = len(first.shape) - 2
    inputs = first.shape[-1] // (work.tensor if first.split_dimension == out_dimension + 1 else 1)
    split = work.tensor if first.split_dimension == out_dimension else 1
    is_head = first.role is Role.HEAD
    return Product(
        name=", ".join(each.name.split(".")[-2] for each in readers),
        num_rows=num_rows,
        num_inputs=inputs,
        num_outputs=tuple(each.shape[-2] // split for each in readers),
        count=1,
        compute="bf16" if is_head and work.compute == "fp8" else work.compute,
    )


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
    """Seconds of a step's attention by each layer's fastest kernel, and the kernels' names."""
    seconds, names = 0.0, []
    layers = Counter(layer.attention for layer in describe(work.model).architecture.layers)
    for layer, count in layers.items():
        found = dict(_attention_seconds(work, layer, _BACKENDS, device))
        # It keeps all scores: only where nothing else works.
        found = found or dict(_attention_seconds(work, layer, (SDPBackend.MATH,), device))
        if not found:
            raise UserError(f"no attention kernel of torch takes {work.compute} on {device}")
        names.append(min(found, key=lambda each: found[each]))
        seconds += found[names[-1]] * count * work.num_micro_batches
    return seconds, ", ".join(dict.fromkeys(names))


def _attention_seconds(
    work: Work, layer: Attention, backends: Iterable[SDPBackend], device: torch.device
) -> Iterator[tuple[str, float]]:
    for backend in backends:
        for is_grouped in (True, False):
            # Some kernels take equally many key/value heads only.
            try:
                run = _attention(work, layer, is_grouped, device)
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


def _attention(
    work: Work, layer: Attention, is_grouped: bool, device: torch.device
) -> Callable[[], object]:
    """Forward and backward of one block's attention, on tensors that lie as the model's do."""
    num_heads = layer.num_heads // work.tensor
    num_groups = layer.num_query_groups // work.tensor if is_grouped else num_heads
    q_BHTC, k_BGTC, v_BGTC = (
        torch.randn(
            (work.micro_batch_size, work.seq_len, num, layer.head_dim),
            device=device,
            dtype=DTYPES[work.compute],
        )
        .transpose(1, 2)
        .requires_grad_()
        for num in (num_heads, num_groups, num_groups)
    )
    grad_BHTC = torch.randn_like(q_BHTC)

    def run() -> object:
        mixed_BHTC = F.scaled_dot_product_attention(
            q_BHTC, k_BGTC, v_BGTC, is_causal=True, enable_gqa=num_heads != num_groups
        )
        return torch.autograd.grad(mixed_BHTC, (q_BHTC, k_BGTC, v_BGTC), grad_BHTC)

    return run


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    source.fill_(1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)
