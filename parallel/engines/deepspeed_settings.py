"""The config by which DeepSpeed does its part of a step and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from triax.common.errors import UserError
from triax.parallel.config import ParallelConfig
from triax.parallel.engines.nvme import SwapFolder

_NEVER = 1 << 60
"""Steps between DeepSpeed's own progress lines."""

_SWAPPED_ELEMENTS = 100_000_000
"""Elements that are on their way between memory and drive at once: four fp32 buffers of so many."""


def deepspeed_settings(
    config: ParallelConfig, compute: str, device: torch.device
) -> tuple[dict[str, Any], SwapFolder | None]:
    """DeepSpeed's own config, and the folder that it swaps to for as long as that is kept.

    Raises:
        UserError: DeepSpeed doesn't compute in this dtype on this device.
    """
    swapped_to = SwapFolder(config.offload_path) if config.offload == "nvme" else None
    if compute == "fp16" and device.type == "cpu":
        raise UserError(
            'precision.compute: DeepSpeed computes in fp16 on CUDA devices only; use "bf16" here'
        )
    zero: dict[str, Any] = {"stage": config.zero_stage}
    in_memory = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if config.offload != "none":
        zero["offload_optimizer"] = in_memory
        if config.zero_stage == 3:
            zero["offload_param"] = in_memory
    if swapped_to is not None:
        on_drive = {"device": "nvme", "nvme_path": str(swapped_to.path)}
        zero["offload_optimizer"] = in_memory | on_drive
        zero["sub_group_size"] = _SWAPPED_ELEMENTS
    settings = {
        # DeepSpeed multiplies these; how many micro-batches there are, we tell it step by step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": _NEVER,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": compute == "bf16"},
        # A scale of 1: the loss carries our own scaler's.
        "fp16": {"enabled": compute == "fp16", "loss_scale": 1.0},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # With sequence parallelism, activations differ between the tensor axis's processes.
        # DeepSpeed would send each a part of one of them, silently.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    return settings, swapped_to
