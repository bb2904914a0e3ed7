"""Figures of the llama family that no change of structure may move: `tests/golden.json`.

    python tests/support/golden.py     # writes them anew; only for a change that means to move them

Losses, gradient norms and the whole saved state of layouts of every kind; counts and FLOPs; names
and first values of parameters; how stages are divided; Hugging Face's config files.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fleet import run_fleet
from worlds import SEED, SMALL, Case, make_context, make_engine, micro_batches, whole

from triax.checkpoint.formats import to_huggingface
from triax.models.config import ModelConfig
from triax.models.counts import flops_per_token, num_non_embedding_parameters, num_parameters
from triax.models.families import model_config
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer
from triax.models.presets import PRESETS
from triax.parallel.config import ParallelConfig
from triax.parallel.stages import split_layers
from triax.training.step.step import train_step

PATH = Path(__file__).parent.parent / "golden.json"
NUM_STEPS = 3
_TIED = {"tie_embeddings": True}
_PLAIN = {"qk_norm": False, "z_loss": 0.0}
_WINDOW = {"sliding_window": 5, "logit_softcap": 5.0}
_WIDE = {"num_kv_heads": 4}
_SCALED = {"rope_scaling": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_seq_len": 8}}  # fmt: skip
LAYOUTS: dict[int, list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]] = {
    1: [
        ({"zero_stage": 0}, {}, {}),
        ({"zero_stage": 1}, _TIED | _PLAIN, {"compute": "bf16"}),
        ({"zero_stage": 3, "activation_checkpointing": "full"}, _WINDOW, {"compute": "bf16"}),
        ({"zero_stage": 1}, _SCALED, {"gradients": "bf16"}),
    ],
    2: [
        ({"zero_stage": 0}, _PLAIN, {}),
        ({"zero_stage": 1}, _TIED, {}),
        ({"zero_stage": 2}, _WINDOW, {}),
        ({"zero_stage": 3}, _SCALED | _TIED, {"compute": "bf16"}),
        ({"tensor": 2}, {}, {}),
        ({"tensor": 2, "sequence_parallel": False}, _TIED | _WINDOW, {}),
        ({"tensor": 2, "activation_checkpointing": "selective"}, _PLAIN, {"compute": "bf16"}),
        ({"pipeline": 2, "pipeline_schedule": "gpipe"}, _TIED, {}),
        ({"pipeline": 2}, _WINDOW, {"compute": "bf16"}),
        ({"pipeline": 2, "pipeline_schedule": "interleaved-1f1b"}, _TIED | _PLAIN, {}),
        ({"pipeline": 2, "pipeline_split": (1, 3), "zero_stage": 3}, {}, {}),
    ],
    4: [
        ({"zero_stage": 2, "replicate": 2}, {}, {}),
        ({"tensor": 2, "zero_stage": 3}, _TIED, {}),
        ({"tensor": 4}, _WIDE, {}),
        ({"tensor": 2, "pipeline": 2}, _TIED | _WINDOW, {}),
        ({"pipeline": 2, "zero_stage": 2}, _SCALED, {}),
        ({"pipeline": 4}, {}, {}),
    ],
}  # fmt: skip
"""By number of processes: `[parallel]`, changes to the small model, `[precision]`."""
DEEPSPEED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"zero_stage": 1, "tensor": 2}, _PLAIN, {}),
    ({"zero_stage": 3}, _WINDOW, {"compute": "bf16"}),
    ({"pipeline": 2}, _TIED, {}),
]
"""The same for the deepspeed engine on two processes, which runs one layout a process."""


def machine() -> dict[str, str]:
    """What decides the last bits of a sum."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _label(
    num_processes: int, parallel: dict[str, Any], model: dict[str, Any], precision: dict[str, Any]
) -> str:
    parts = [f"{key}={value}" for key, value in (parallel | model | precision).items()]
    return f"{num_processes} processes: {', '.join(parts)}"


def layout_figures(num_processes: int) -> dict[str, Any]:
    """Losses, norms and the state's checksum of all layouts of so many processes."""
    return run_fleet(num_processes, _run_layouts, LAYOUTS[num_processes], timeout=600)[0]


def deepspeed_figures(number: int) -> dict[str, Any]:
    """The same of one of the deepspeed engine's layouts."""
    parallel, model, precision = DEEPSPEED[number]
    layout = ({"engine": "deepspeed"} | parallel, model, precision)
    return run_fleet(2, _run_layouts, [layout], timeout=300)[0]


def _run_layouts(
    layouts: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]],
) -> dict[str, Any]:
    found = {}
    for parallel, model, precision in layouts:
        case = Case(
            model=SMALL | model, parallel=parallel, precision=precision, num_steps=NUM_STEPS,
            optimizer={"lr": 2e-3, "eps": 1e-5} | (
                {"state_dtype": "bf16"} if "gradients" in precision else {}
            ),
        )  # fmt: skip
        engine = make_engine(case)
        context = make_context(case, engine)
        losses, norms = [], []
        for step in range(NUM_STEPS):
            result = train_step(context, micro_batches(case, step), lr=2e-3)
            losses.append(result.loss.item())
            norms.append(result.grad_norm.item())
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, whole(engine.state()))
        merged = {name: tensor for state in states for name, tensor in state.items()}
        found[_label(dist.get_world_size(), parallel, model, precision)] = {
            "losses": losses, "grad_norms": norms, "state": checksum(merged),
        }  # fmt: skip
    return found


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and bits."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shape_figures() -> dict[str, Any]:
    """What is said of models without running them."""
    return {
        name: {
            "parameters": num_parameters(config),
            "non_embedding": num_non_embedding_parameters(config),
            "flops": [flops_per_token(config, seq_len) for seq_len in (3, 1024)],
            "names": names_checksum(config),
            "stages": stages_of(config),
            "huggingface": to_huggingface(config, dtype="float32", seq_len=64, special_tokens={})
            if config.architecture().logit_softcap is None
            else None,
        }
        for name, config in models().items()
    }


def models() -> dict[str, ModelConfig]:
    """Presets, and the small model with each of the changes."""
    changes: dict[str, dict[str, Any]] = {
        "plain": _PLAIN,
        "tied": _TIED,
        "window": _WINDOW,
        "wide": _WIDE,
        "scaled": _SCALED,
    }
    found = {
        name: model_config(preset=name)
        for name, fields in PRESETS.items()
        if name.startswith(("mini", "llama3")) and "experts" not in fields
    }
    return found | {name: model_config(**SMALL | change) for name, change in changes.items()}


def names_checksum(config: ModelConfig) -> str:
    """Of the parameters' names and shapes, in order."""
    with torch.device("meta"):
        model = Transformer(config)
    rows = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return hashlib.blake2b(repr(rows).encode(), digest_size=8).hexdigest()


def stages_of(config: ModelConfig) -> list[int]:
    """The layers of each of three stages."""
    split = split_layers(config, ParallelConfig(pipeline=3), 512)
    return [len(layers) for layers in split]


def initial_checksum() -> str:
    """Of the small model's initial weights."""
    config = model_config(**SMALL)
    model = Transformer(config)
    initialise_model(model, model.description, SEED)
    return checksum(dict(model.named_parameters()))


def all_figures() -> dict[str, Any]:
    """Everything that is stored."""
    layouts: dict[str, Any] = {}
    for num_processes in LAYOUTS:
        layouts |= layout_figures(num_processes)
    for number in range(len(DEEPSPEED)):
        layouts |= deepspeed_figures(number)
    return {
        "machine": machine(),
        "shapes": shape_figures(),
        "initial": initial_checksum(),
        "layouts": layouts,
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(all_figures(), indent=1) + "\n", encoding="utf-8")
