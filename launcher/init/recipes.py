"""The recipes by name: what each is for, what it begins with, and which layouts it tries."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from triax.common.errors import UserError
from triax.launcher.config.problems import did_you_mean

Takes = Literal["text", "conversations", "pairs"]


@dataclass(frozen=True)
class Recipe:
    """A run file to begin with.

    Attributes:
        purpose: a line.
        gpus: numbers of them that it is written for, the first for its example; 0 is the CPU.
        takes: what its data hold.
        has_start: whether it begins with the weights of another model.
        tensor, pipeline, context, expert: degrees that are tried.
        zero_stages, checkpointing, micro_batch_sizes: likewise.
        measured: what was measured of it, and where.
    """

    purpose: str
    gpus: tuple[int, ...]
    takes: Takes = "text"
    has_start: bool = False
    tensor: tuple[int, ...] = (1,)
    pipeline: tuple[int, ...] = (1,)
    context: tuple[int, ...] = (1,)
    expert: tuple[int, ...] = (1,)
    zero_stages: tuple[int, ...] = (1, 2, 3)
    checkpointing: tuple[str, ...] = ("none", "selective", "full")
    micro_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    measured: str = "nothing of it, on no GPU: these figures are arithmetic"


_WITHIN_NODE = (1, 2, 4, 8)
_QUICKSTART = (
    "its step is the quickstart's, which README.md's first command takes on two CPU cores; this "
    "length was not run"
)

RECIPES: dict[str, Recipe] = {
    "laptop-10m": Recipe(
        "10M parameters on a laptop's CPU, or one GPU: see that all of it works",
        (0, 1),
        measured=_QUICKSTART,
    ),
    "laptop-50m": Recipe(
        "50M parameters on a billion characters of stories, on one GPU or a patient CPU", (1, 0)
    ),
    "gpt2-124m": Recipe("GPT-2's smallest, from nothing, on one GPU or a node", (8, 1)),
    "llama-1b": Recipe("Llama 3.2's shape of 1.2B parameters, from nothing", (8,)),
    "llama-8b": Recipe("Llama 3's shape of 8B parameters, from nothing", (32, 16, 64)),
    "llama-70b": Recipe(
        "Llama 3's shape of 70B parameters, from nothing",
        (256, 128, 512),
        tensor=(2, 4, 8),
        pipeline=(1, 2, 4),
        micro_batch_sizes=(1, 2),
    ),
    "experts": Recipe(
        "a mixture of 128 experts, Qwen3's shape of 30B parameters with 3B in use",
        (64, 32),
        expert=(1, 4, 8),
        micro_batch_sizes=(1, 2, 4, 8),
    ),
    "long-context": Recipe(
        "a model of 8,192 tokens goes on at 131,072, each sequence over several GPUs",
        (32, 16),
        has_start=True,
        tensor=(1, 8),
        context=(2, 4, 8, 16),
        micro_batch_sizes=(1,),
    ),
    "continued-pretraining": Recipe(
        "an imported model learns more text", (8, 1), has_start=True, tensor=_WITHIN_NODE
    ),
    "sft": Recipe(
        "an imported model learns to answer, from conversations",
        (8, 1),
        takes="conversations",
        has_start=True,
        tensor=_WITHIN_NODE,
    ),
    "dpo": Recipe(
        "a model that answers learns which answers are preferred",
        (8, 1),
        takes="pairs",
        has_start=True,
        tensor=_WITHIN_NODE,
    ),
    "deepspeed-offload": Recipe(
        "more model than the GPUs hold: DeepSpeed keeps weights and moments in the machine's "
        "memory",
        (1, 2),
        has_start=True,
        zero_stages=(3,),
        checkpointing=("full",),
        micro_batch_sizes=(1, 2, 4),
    ),
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES) or f"; there are {', '.join(RECIPES)}"
        raise UserError(f"--recipe {name}: no recipe is called so{hint}")
    return RECIPES[name]


def template_of(name: str) -> str:
    """A recipe's run file, with names in the place of what is yours."""
    return (files("triax.launcher.init") / "templates" / f"{name}.toml").read_text("utf-8")
