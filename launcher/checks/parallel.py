"""Checks of the layout against processes, batch and model. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.metadata import version

from triax.common.errors import UserError
from triax.data.config import DataConfig
from triax.launcher.config.problems import Problem
from triax.models.config import ModelConfig
from triax.models.description import Width, describe
from triax.models.lora import target_of
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.context.methods import has_whole_shares
from triax.parallel.layout import Layout
from triax.parallel.stages import (
    SCHEDULES,
    SPLIT_BACKWARD_NEEDS_TORCH,
    schedule_problem,
    split_layers,
)
from triax.training.config import BatchConfig, OptimizerConfig


def world_fits(parallel: ParallelConfig, world_size: int | None) -> Iterator[Problem]:
    """Every axis must divide the number of processes."""
    unit = Layout.unit_of(parallel)
    if world_size is None or world_size % unit == 0:
        return
    axes = ("pipeline", "replicate", "context", "tensor")
    shown = [a for a in axes if a != "context" or parallel.context > 1]
    degrees = " x ".join(f"{axis} {getattr(parallel, axis)}" for axis in shown)
    path = next(f"parallel.{axis}" for axis in axes if getattr(parallel, axis) > 1)
    yield Problem(
        path,
        f"the number of processes, {world_size}, is not a multiple of {degrees} = {unit}; "
        f"start {_nearest_multiples(world_size, unit)} processes or lower a degree",
    )


def batch_divides(
    batch: BatchConfig, parallel: ParallelConfig, world_size: int | None
) -> Iterator[Problem]:
    """An update is whole micro-batches, equally many on every data-parallel rank."""
    data_ranks = Layout.data_parallel_of(parallel, world_size) or 1
    unit = batch.micro_batch_size * data_ranks
    if batch.global_batch_size % unit == 0:
        return
    product = f"micro_batch_size {batch.micro_batch_size}"
    if data_ranks > 1:
        product += f" x {data_ranks} data-parallel processes = {unit}"
    yield Problem(
        "batch.global_batch_size",
        f"{batch.global_batch_size} is not a multiple of {product}; "
        f"use {_nearest_multiples(batch.global_batch_size, unit)}",
    )


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def gradients_are_summed_exactly(
    batch: BatchConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    world_size: int | None,
) -> Iterator[Problem]:
    """Many micro-batches' gradients are not added up in bf16."""
    data_ranks = Layout.data_parallel_of(parallel, world_size) or 1
    count = batch.global_batch_size // (batch.micro_batch_size * data_ranks)
    is_alone = data_ranks * parallel.context * parallel.tensor == 1
    is_in_bf16 = parallel.zero_stage >= 2 or is_alone
    if precision.gradients == "bf16" and is_in_bf16 and count > 1:
        where = f"at parallel.zero_stage = {parallel.zero_stage}" if data_ranks > 1 else "here"
        yield Problem(
            "precision.gradients",
            f"{where} the {count} micro-batches of a step are added up in bf16, of whose 8 bits "
            "small gradients lose some: raise batch.micro_batch_size, or on several data-parallel "
            "processes use parallel.zero_stage 0 or 1",
        )


def optimizer_takes_dtypes(
    optimizer: OptimizerConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> Iterator[Problem]:
    """torch's kernels update with fp32 gradients and moments only."""
    if optimizer.implementation != "torch" or parallel.engine != "native":
        return
    for path, dtype in reduced_dtypes(optimizer, precision):
        yield Problem(
            "optimizer.implementation",
            f'torch\'s kernels take no {dtype} here, as {path} says: use "auto" or "compiled"',
        )


def recipe_is_used(precision: PrecisionConfig) -> Iterator[Problem]:
    """An fp8 recipe that was chosen does nothing in another precision."""
    if precision.fp8_recipe != "tensorwise" and precision.compute != "fp8":
        yield Problem(
            "precision.fp8_recipe",
            f'means nothing with precision.compute = "{precision.compute}": make that "fp8", or '
            "leave this out",
        )


def reduced_dtypes(
    optimizer: OptimizerConfig, precision: PrecisionConfig
) -> Iterator[tuple[str, str]]:
    """Config paths and dtypes of what the update reads in less than fp32."""
    if precision.gradients != "fp32":
        yield "precision.gradients", precision.gradients
    if optimizer.state_dtype != "fp32":
        yield "optimizer.state_dtype", optimizer.state_dtype


def tensor_divides_model(
    model: ModelConfig, data: DataConfig, parallel: ParallelConfig
) -> Iterator[Problem]:
    """Every process of the tensor axis gets equally many heads, features, rows and tokens."""
    if parallel.async_tensor and not (parallel.tensor > 1 and parallel.compile):
        yield Problem(
            "parallel.async_tensor", "needs parallel.tensor above 1 and parallel.compile = true"
        )
    divided = {f"model.{width.fields[0]}": width.num_units for width in _widths(model)}
    divided["model.vocab_size"] = model.vocab_size
    if parallel.sequence_parallel:
        divided |= _lengths(data)
    for path, value in divided.items():
        if value % parallel.tensor:
            yield Problem(path, _not_divided(path, value, parallel.tensor))


def _lengths(data: DataConfig) -> dict[str, int]:
    """Of sequences, by where they are given."""
    of_phases = {f"data.phases.{n}.seq_len": x.seq_len for n, x in enumerate(data.phases)}
    given = {path: length for path, length in of_phases.items() if length is not None}
    return {"data.seq_len": data.seq_len, **given}


def context_divides_sequences(
    model: ModelConfig, data: DataConfig, parallel: ParallelConfig
) -> Iterator[Problem]:
    """Every process of the context axis gets two equal stretches of each sequence."""
    context, method = parallel.context, parallel.context_method
    if context == 1:
        if method != "auto":
            yield Problem("parallel.context_method", "needs parallel.context above 1")
        return
    unit, product = 2 * context, f"2 x parallel.context {context}"
    if parallel.tensor > 1 and parallel.sequence_parallel:
        unit = math.lcm(unit, context * parallel.tensor)
        product = f"{product}, and of parallel.context x parallel.tensor {parallel.tensor}"
    for path, length in _lengths(data).items():
        if length % unit:
            yield Problem(
                path,
                f"{length} is not a multiple of {product}, by which each process has as early "
                f"tokens of a sequence as late ones: use {_nearest_multiples(length, unit)}",
            )
    layers = {layer.attention for layer in describe(model).architecture.layers}
    if method == "ulysses" and not all(
        has_whole_shares(layer, context, parallel.tensor) for layer in layers
    ):
        product = f"parallel.context {context} x parallel.tensor {parallel.tensor}"
        yield Problem(
            "parallel.context_method",
            f"ulysses divides the heads, and model.num_heads {model.num_heads} is not a multiple "
            f'of {product}: use "gather", "ring" or "auto"',
        )


def sequence_has_positions(model: ModelConfig, data: DataConfig) -> Iterator[Problem]:
    """Every token of a sequence has a position, where those are learned."""
    num_positions = describe(model).architecture.num_positions
    if num_positions is not None and data.seq_len > num_positions:
        yield Problem(
            "data.seq_len",
            f"{data.seq_len} is more than the model's {num_positions} learned positions: lower it, "
            "or raise model.num_positions",
        )


def _widths(model: ModelConfig) -> Iterator[Width]:
    """The numbers of features within the layers that the model's section has a field for."""
    fields = type(model).model_fields
    return (w for w in describe(model).widths() if w.fields[0].partition(".")[0] in fields)


_FLOAT8_UNIT = 16
"""What the sizes of fp8 products are multiples of."""


def float8_fits_shapes(
    model: ModelConfig,
    data: DataConfig,
    batch: BatchConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> Iterator[Problem]:
    """The matrices that fp8 multiplies have sizes that the hardware takes."""
    if precision.compute != "fp8":
        return
    share = " / parallel.tensor" if parallel.tensor > 1 else ""
    sizes = {"model.hidden_size": model.hidden_size}
    for width in _widths(model):
        product = " x ".join(f"model.{field}" for field in width.fields)
        sizes[f"{product}{share}"] = width.num_features // parallel.tensor
    part = " / parallel.context" if parallel.context > 1 else ""
    num_rows = batch.micro_batch_size * data.seq_len // parallel.context
    sizes[f"batch.micro_batch_size x data.seq_len{part}"] = num_rows
    for product, size in sizes.items():
        if size % _FLOAT8_UNIT:
            yield Problem(
                product.split()[0],
                f"{product} = {size} is not a multiple of {_FLOAT8_UNIT}, as "
                'precision.compute = "fp8" needs: change it, or use bf16',
            )


def _not_divided(path: str, value: int, tensor: int) -> str:
    text = f"{value} is not a multiple of parallel.tensor = {tensor}"
    if path == "model.vocab_size":
        return f"{text}; {-(-value // tensor) * tensor} is (rows beyond the tokenizer's are unused)"
    if path.endswith("seq_len"):
        return f"{text}, which divides the tokens; or set parallel.sequence_parallel = false"
    return text


def stages_fit_layers(
    model: ModelConfig, data: DataConfig, parallel: ParallelConfig
) -> Iterator[Problem]:
    """The layers can be divided over the pipeline's stages."""
    if parallel.pipeline == 1:
        if parallel.pipeline_split is not None:
            yield Problem("parallel.pipeline_split", "needs parallel.pipeline above 1")
        return
    try:
        split_layers(model, parallel, data.seq_len)
    except UserError as error:
        path, _, text = str(error).partition(": ")
        yield Problem(path, text)


def schedule_fits_batch(
    batch: BatchConfig, parallel: ParallelConfig, world_size: int | None
) -> Iterator[Problem]:
    """The schedule can run the number of micro-batches of a step."""
    data_ranks = Layout.data_parallel_of(parallel, world_size)
    if parallel.pipeline == 1 or data_ranks is None:
        return
    unit = batch.micro_batch_size * data_ranks
    if batch.global_batch_size % unit:
        return
    num_micro_batches = batch.global_batch_size // unit
    problem = schedule_problem(parallel, num_micro_batches)
    if problem is not None:
        yield Problem(
            "parallel.pipeline_schedule",
            f"{problem}; there are {num_micro_batches} (batch.global_batch_size / "
            f"micro_batch_size / data-parallel processes)",
        )


def recomputation_fits_schedule(parallel: ParallelConfig) -> Iterator[Problem]:
    """What a backward pass in two halves can't be combined with."""
    if parallel.pipeline == 1 or not SCHEDULES[parallel.pipeline_schedule].splits_backward:
        return
    installed = version("torch")
    if tuple(int(part) for part in installed.split(".")[:2]) < SPLIT_BACKWARD_NEEDS_TORCH:
        needed = ".".join(map(str, SPLIT_BACKWARD_NEEDS_TORCH))
        yield Problem(
            "parallel.pipeline_schedule",
            f"{parallel.pipeline_schedule} needs torch {needed} to split the backward pass, "
            f"{installed} is installed: use interleaved-1f1b",
        )
    if parallel.activation_checkpointing == "selective":
        yield Problem(
            "parallel.activation_checkpointing",
            f"selective keeps its results for one backward pass, {parallel.pipeline_schedule} "
            "makes it in two: use full or none, or interleaved-1f1b",
        )
    if parallel.compile:
        yield Problem(
            "parallel.compile",
            f"a compiled block's backward pass can't be split as {parallel.pipeline_schedule} "
            "does: use interleaved-1f1b, or set it to false",
        )


def adapters_have_layers(model: ModelConfig) -> Iterator[Problem]:
    """Every target that isn't there by default is a layer of the model."""
    if model.lora is None:
        return
    has = {target_of(name.rpartition(".")[0]) for name in describe(model).parameters}
    asked = model.lora.targets if "targets" in model.lora.model_fields_set else ()
    for missing in (target for target in asked if target not in has):
        why = "its feed-forward layers are experts" if getattr(model, "experts", None) else (
            f'the family "{model.family}" has no such layer'
        )  # fmt: skip
        yield Problem("model.lora.targets", f'"{missing}", but {why}: leave it out')
    if has == {None}:
        yield Problem("model.lora.targets", "none of them is a layer of the model")


def adapters_are_computed(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> Iterator[Problem]:
    """What adapters can't be combined with."""
    if model.lora is None:
        return
    if parallel.engine == "deepspeed":
        yield Problem(
            "model.lora",
            "the deepspeed engine keeps fp32 copies and gradients of all weights, and adapters are "
            'there to do without: use parallel.engine = "native"',
        )
    if precision.compute == "fp8":
        yield Problem(
            "model.lora",
            'precision.compute = "fp8" multiplies whole layers, without adapters: use "bf16"',
        )
