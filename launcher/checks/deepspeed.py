"""What the deepspeed engine can't run, with the reason and what to use instead. Imports no torch.

Of each it is better to be told before the job than to be stopped by DeepSpeed in it, or not to be
stopped: some of these would train on wrong gradients without a word.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from triax.launcher.checks.parallel import reduced_dtypes
from triax.launcher.config.problems import Problem
from triax.models.config import ModelConfig
from triax.models.description import Role, describe
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.training.config import OptimizerConfig
from triax.training.stability_config import FaultsConfig

_PACKAGES = {"deepspeed": "deepspeed", "megatron": "megatron-core"}


def deepspeed_is_installed(parallel: ParallelConfig) -> Iterator[Problem]:
    """The packages of the `deepspeed` extra are there."""
    if parallel.engine != "deepspeed":
        return
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield Problem(
            "parallel.engine",
            f"{' and '.join(missing)} {verb} not installed; "
            '`pip install "triax[deepspeed]"` adds what the deepspeed engine needs',
        )


def deepspeed_runs_zero_stage(parallel: ParallelConfig) -> Iterator[Problem]:
    """The stages of ZeRO that DeepSpeed gets right."""
    if parallel.engine != "deepspeed":
        return
    if parallel.zero_stage == 0:
        yield Problem(
            "parallel.zero_stage",
            "DeepSpeed's stage 0 has no fp32 weights under bf16, and clips wrongly under a "
            'pipeline: use 1, or engine = "native"',
        )
    elif parallel.zero_stage > 1 and parallel.pipeline > 1:
        yield Problem(
            "parallel.zero_stage",
            f"DeepSpeed's pipeline needs whole gradients and weights on each stage, and stage "
            f'{parallel.zero_stage} divides them: use 1, or engine = "native"',
        )


def deepspeed_runs_layout(parallel: ParallelConfig) -> Iterator[Problem]:
    """What only the native engine has."""
    if parallel.engine != "deepspeed":
        return
    if parallel.pipeline > 1 and parallel.pipeline_schedule != "1f1b":
        yield Problem(
            "parallel.pipeline_schedule",
            f"DeepSpeed's pipeline runs 1f1b only, not {parallel.pipeline_schedule}: use 1f1b, or "
            'engine = "native"',
        )
    if parallel.replicate > 1:
        yield Problem(
            "parallel.replicate",
            "DeepSpeed shards over all data-parallel processes here: use 1, or "
            'engine = "native" for hybrid sharding',
        )
    for field in ("compile", "async_tensor"):
        if getattr(parallel, field):
            yield Problem(
                f"parallel.{field}",
                "megatron-core's layers send messages in the middle of what would be compiled: "
                'set it to false, or use engine = "native"',
            )


def deepspeed_splits_layers(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """Megatron-core's layers stand in for the model's under tensor parallelism."""
    if parallel.engine != "deepspeed" or parallel.tensor == 1:
        return
    table = describe(model).parameters
    whole = [name for name, row in table.items() if row.role is Role.POSITIONS]
    biases = [name for name in table if name.endswith(".bias")]
    for what, names in (("learned positions", whole), ("biases", biases)):
        if names:
            yield Problem(
                "parallel.tensor",
                f"megatron-core's layers are used without {what} here, and model.family = "
                f'"{model.family}" has {names[0]}: use 1, or parallel.engine = "native"',
            )


def deepspeed_recomputes(parallel: ParallelConfig) -> Iterator[Problem]:
    """What selective checkpointing remembers comes again in the backward pass as it was."""
    if parallel.engine != "deepspeed" or parallel.activation_checkpointing != "selective":
        return
    if parallel.tensor > 1 and not parallel.sequence_parallel:
        yield Problem(
            "parallel.activation_checkpointing",
            "selective keeps results that megatron-core's sums overwrite, and gradients would be "
            'wrong: use full, or parallel.sequence_parallel = true, or engine = "native"',
        )
    if parallel.zero_stage == 3:
        yield Problem(
            "parallel.activation_checkpointing",
            "DeepSpeed's stage 3 gathers weights within the blocks, in the backward pass at other "
            "moments than before, and torch stops at messages that selective hasn't seen: use "
            'full, or parallel.zero_stage = 2, or engine = "native"',
        )


def deepspeed_runs_precision(
    parallel: ParallelConfig, precision: PrecisionConfig, optimizer: OptimizerConfig
) -> Iterator[Problem]:
    """The precisions that DeepSpeed is run with."""
    if parallel.engine != "deepspeed":
        return
    for path, dtype in reduced_dtypes(optimizer, precision):
        yield Problem(
            path,
            f'DeepSpeed keeps its own buffers, in fp32: {dtype} needs parallel.engine = "native"',
        )
    if optimizer.implementation == "compiled":
        yield Problem(
            "optimizer.implementation",
            'DeepSpeed steps by host flags, through buffers of its own: use "auto" or "torch", or '
            'parallel.engine = "native"',
        )
    if precision.compute == "fp8":
        yield Problem(
            "precision.compute",
            "fp8 replaces the layers that megatron-core's stand in for: use bf16, or "
            'parallel.engine = "native"',
        )


def offload_fits_engine(parallel: ParallelConfig) -> Iterator[Problem]:
    """Weights and optimizer state off the device are DeepSpeed's, from stage 2 on."""
    if parallel.offload == "nvme" and parallel.offload_path is None:
        yield Problem(
            "parallel.offload_path", "nvme needs it: use a folder on a local drive of every machine"
        )
    elif parallel.offload != "nvme" and parallel.offload_path is not None:
        yield Problem("parallel.offload_path", 'use it with parallel.offload = "nvme" only')
    if parallel.offload == "none":
        return
    if parallel.engine != "deepspeed":
        yield Problem("parallel.offload", 'needs parallel.engine = "deepspeed"')
    elif parallel.pipeline > 1:
        yield Problem(
            "parallel.offload",
            "DeepSpeed's pipeline needs stage 1, whose whole gradients would stay on the device: "
            'use parallel.pipeline = 1 with parallel.zero_stage = 3, or "none"',
        )
    elif parallel.zero_stage < 2:
        stages = "2 (optimizer state leaves it) or 3 (weights too)"
        yield Problem(
            "parallel.offload",
            f"with parallel.zero_stage = {parallel.zero_stage} whole gradients would stay on the "
            f"device: use {'3' if parallel.offload == 'nvme' else stages}",
        )
    elif parallel.offload == "nvme" and parallel.zero_stage < 3:
        yield Problem(
            "parallel.offload",
            "DeepSpeed's stage 2 would keep in the machine's memory what is meant for the drive: "
            'use parallel.zero_stage = 3, or "cpu"',
        )


def apex_is_nvidias(optimizer: OptimizerConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """NVIDIA's apex is there if it is asked for, and the engine has tensors that it takes."""
    if optimizer.implementation != "apex":
        return
    if parallel.engine != "deepspeed":
        yield Problem(
            "optimizer.implementation",
            "apex's kernels don't take the native engine's DTensors: "
            'use "torch", whose kernel is fused too, or parallel.engine = "deepspeed"',
        )
    if parallel.offload != "none":
        yield Problem(
            "optimizer.implementation",
            "apex updates on the device only, and parallel.offload has the update made in the "
            'machine\'s memory: use "auto" or "torch"',
        )
    spec = importlib.util.find_spec("apex")
    folders = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    offered = ("optimizers", "normalization")
    if any(all((folder / each).is_dir() for each in offered) for folder in folders):
        return
    found = "apex is not installed" if spec is None else f"the apex in {spec.origin} is another one"
    yield Problem(
        "optimizer.implementation",
        f"{found}: NVIDIA's, which has apex.optimizers and apex.normalization, is built from "
        'https://github.com/NVIDIA/apex and comes with NVIDIA\'s images; or use "torch"',
    )


def deepspeed_flips_together(parallel: ParallelConfig, faults: FaultsConfig) -> Iterator[Problem]:
    """All processes reach into the engine's weights at once: one alone would wait for the rest."""
    if parallel.engine != "deepspeed":
        return
    for number, fault in enumerate(faults.plan):
        if fault.kind == "flip-weight" and fault.rank is not None:
            yield Problem(
                f"faults.plan.{number}.rank",
                "one process alone can't reach the deepspeed engine's weights: leave rank out, or "
                'use engine = "native"',
            )
