"""Fine-tuning of a folder of transformers' by the engine: batches, steps, and plain references.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from worlds import Case, engine_class, make_engine, recording

from triax.checkpoint.folders import inspect
from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.importing import import_checkpoint
from triax.checkpoint.store import CheckpointStore
from triax.data.prepare.chat_template import ChatTemplate
from triax.data.prepare.conversations import ChatRules, Kind, prepare_conversations
from triax.data.prepare.tokenizer import train_tokenizer
from triax.data.read.conversations import Conversations
from triax.data.read.loader import make_batch
from triax.data.read.opening import open_source
from triax.models.batch import Batch
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.parallel.layout import Layout
from triax.training.objectives.config import ObjectiveConfig
from triax.training.objectives.registry import OBJECTIVES
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.step import StepContext, train_step

VOCAB_SIZE = 288
SEQ_LEN = 64
BATCH_SIZE = 8
LR = 2e-3
OPTIMIZER = {"lr": LR, "eps": 1e-5}


def make_start(folder: Path) -> None:
    """`tokenizer/`, `hf/`, the same as a checkpoint in `start/`, and `chats/` and `pairs/`."""
    import transformers

    chance = random.Random(5)
    words = ["the", "a", "cat", "dog", "sat", "on", "mat", "red", "blue", "tree", "river", "runs"]

    def some(low: int, high: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(low, high)))

    # More than half a window each: a window holds one, as a row does in TRL.
    chats = [{"prompt": some(3, 3), "completion": some(17, 19)} for _ in range(200)]
    pairs = [
        {"prompt": some(1, 2), "chosen": some(1, 4), "rejected": some(1, 5) + " mat"}
        for _ in range(24)
    ]
    (folder / "text").write_text("\n".join(row["completion"] for row in chats), encoding="utf-8")
    train_tokenizer([str(folder / "text")], VOCAB_SIZE, folder / "tokenizer")
    template = ChatTemplate.to_teach(folder / "tokenizer")
    kinds: dict[str, tuple[Kind, list[dict[str, str]]]] = {
        "chats": ("conversations", chats), "pairs": ("pairs", pairs),
    }  # fmt: skip
    for name, (kind, rows) in kinds.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        prepare_conversations(
            [str(path)], folder / "tokenizer", folder / name,
            ChatRules(kind, "answers", template), validation_fraction=0,
        )  # fmt: skip
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=128,
        initializer_range=0.1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "hf")
    import_checkpoint(folder / "hf", folder / "start")


def source_of(folder: Path, name: str) -> Conversations:
    source = open_source(folder / name / "train", SEQ_LEN, VOCAB_SIZE)
    assert isinstance(source, Conversations)
    return source


def batch_of(source: Conversations, numbers: list[int]) -> Batch:
    windows = [source.window(number) for number in numbers]
    return make_batch(windows, mask_documents=True, pin_memory=False, weighted=True)


@dataclass
class Tuned:
    """What a few steps gave, over all processes."""

    losses: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)
    """Of the first step."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Likewise."""


def tuned(
    folder: Path,
    name: str,
    parallel: dict[str, Any],
    objective: dict[str, Any],
    num_steps: int,
    changes: dict[str, Any] | None = None,
) -> Tuned:
    """Steps of an objective in a layout; the reference of pairs is the start.

    Args:
        changes: of the model: `lora` is trained beside the start, with `experts` it is a new one.
    """
    changes = changes or {}
    model = import_huggingface(folder / "hf")[0].model_dump() | changes
    case = Case(model=model, parallel=parallel, seq_len=SEQ_LEN, optimizer=OPTIMIZER)
    engine = make_engine(case, recording(engine_class(case)))
    group = dist.new_group(backend="gloo")
    store = CheckpointStore(
        folder / f"unused-{dist.get_rank()}", keep=1, asynchronous=False, deadline_seconds=60,
        group=group, say=print,
    )  # fmt: skip
    weights = {n: t for n, t in engine.state().items() if n.startswith("model.")}
    if "experts" not in changes:
        begin = engine.frozen_state() if "lora" in changes else weights
        store.load(inspect(folder / "start"), begin)
    context = StepContext(
        engine, LossScaler(PrecisionConfig(), engine.device), Guard(device=engine.device), 1.0,
        OBJECTIVES[objective["kind"]](ObjectiveConfig(**objective)),
    )  # fmt: skip
    source = source_of(folder, name)
    layout = Layout.of(ParallelConfig(**parallel), dist.get_world_size())
    if objective["kind"] == "dpo":
        # Not the start itself, or all margins would be 0 in the first step.
        source = source.with_reference(invented_reference(source))
    found = Tuned()
    for step in range(num_steps):
        share = BATCH_SIZE // layout.data_parallel
        first = step * BATCH_SIZE + layout.data_rank(dist.get_rank()) * share
        numbers = [number % source.num_windows for number in range(first, first + share)]
        batches = [batch_of(source, [a, b]) for a, b in zip(numbers[::2], numbers[1::2])]  # noqa: B905
        result = train_step(context, batches, LR)
        assert not result.skipped.item()
        found.losses.append(result.loss.item())
        if step == 0:
            found.extra = {
                n: float(value) for n, value in result.extra.items() if value.numel() == 1
            }
    found.gradients = engine.gradients
    return found


def several(
    folder: Path, name: str, layouts: list[dict[str, Any]], objective: dict[str, Any],
    num_steps: int, changes: dict[str, Any] | None = None,
) -> list[Tuned]:  # fmt: skip
    """Several layouts one after the other in the same processes."""
    return [tuned(folder, name, layout, objective, num_steps, changes) for layout in layouts]


def invented_reference(source: Conversations) -> Any:
    """Log-probabilities of answers that no model gave."""
    import numpy as np

    return np.linspace(-60, -20, source.num_documents, dtype=np.float32)
