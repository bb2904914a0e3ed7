"""SFT and DPO against plain loops over transformers' model and against TRL, and in layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fine_tuning import (
    BATCH_SIZE,
    LR,
    OPTIMIZER,
    invented_reference,
    make_start,
    several,
    source_of,
    tuned,
)
from fleet import run_fleet
from safetensors.torch import load_file
from torch.nn import functional as F
from worlds import SEED

from triax.checkpoint.huggingface import import_huggingface
from triax.checkpoint.peft import export_peft
from triax.models.description import describe
from triax.models.init import initialise
from triax.models.lora import LoraConfig

SFT = {"kind": "sft"}
NUM_STEPS = 20
LAYOUTS: list[dict[str, Any]] = [
    {"tensor": 2},
    {"pipeline": 2, "activation_checkpointing": "full"},
    {"zero_stage": 3},
    {"context": 2},
]
DEEPSPEED: dict[str, Any] = {"engine": "deepspeed", "zero_stage": 2}
PREFERENCES: list[dict[str, Any]] = [
    {"kind": "dpo", "beta": 0.1},
    {"kind": "dpo", "beta": 0.3, "loss": "ipo"},
    {"kind": "dpo", "beta": 0.2, "length_normalised": True},
    {"kind": "dpo", "beta": 0.2, "label_smoothing": 0.2},
]
TRL_LOSSES = ["sigmoid", "ipo", "sigmoid_norm", None]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_start(folder)
    return folder


def their_model(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)


def examples(folder: Path, name: str, number: int) -> list[tuple[list[int], list[int]]]:
    """The conversations of a window: tokens, and labels that are -100 where nothing is learned."""
    window = source_of(folder, name).window(number)
    assert window.weights is not None
    found = []
    for document in range(int(window.document_ids[-1]) + 1):
        here = window.document_ids == document
        if window.weights[here].any():
            labels = np.where(window.weights > 0, window.tokens, -100)[here]
            found.append((window.tokens[here].tolist(), labels.tolist()))
    return found


def plain_losses(folder: Path, model: Any) -> list[float]:
    """A loop over conversations, each by itself, with torch's AdamW and clipping."""
    num_windows = source_of(folder, "chats").num_windows
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim < 2) == is_other] for is_other in (0, 1))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=LR, eps=OPTIMIZER["eps"], betas=(0.9, 0.95),
    )  # fmt: skip
    losses = []
    for step in range(NUM_STEPS):
        numbers = [n % num_windows for n in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)]
        total, count = torch.zeros(()), 0
        for tokens, labels in (each for n in numbers for each in examples(folder, "chats", n)):
            logits = model(torch.tensor([tokens])).logits[0, :-1]
            targets = torch.tensor(labels[1:])
            total = total + F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            count += int((targets != -100).sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()) / count)
    return losses


def test_fine_tuning_is_that_of_a_plain_loop_in_every_layout(start: Path) -> None:
    expected = plain_losses(start, their_model(start))
    [alone] = run_fleet(1, tuned, start, "chats", {}, SFT, NUM_STEPS)
    assert alone.losses == pytest.approx(expected, rel=1e-5)
    layouts = [*LAYOUTS, DEEPSPEED]
    by_rank = run_fleet(2, several, start, "chats", layouts, SFT, NUM_STEPS, timeout=240)
    for of_rank in by_rank:
        for found, layout in zip(of_rank, layouts, strict=True):
            assert found.losses == pytest.approx(expected, rel=1e-5), layout


def test_adapters_are_those_of_peft_in_every_layout(start: Path) -> None:
    peft = pytest.importorskip("peft")
    lora: dict[str, Any] = {"rank": 4, "alpha": 12.0}
    config = import_huggingface(start / "hf")[0].model_copy(update={"lora": LoraConfig(**lora)})
    settings = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, target_modules="all-linear")
    model = peft.get_peft_model(their_model(start), settings)
    rows = describe(config).trained
    factors = {name: torch.empty(row.shape) for name, row in rows.items()}
    for name, tensor in factors.items():
        initialise(tensor, rows[name], [0, 0], SEED)
    export_peft(factors, config, start / "adapters", base="")
    peft.set_peft_model_state_dict(
        model, load_file(start / "adapters" / "adapter_model.safetensors")
    )
    assert sum(p.requires_grad for p in model.parameters()) == len(factors)
    expected = plain_losses(start, model)
    [alone] = run_fleet(1, tuned, start, "chats", {}, SFT, NUM_STEPS, {"lora": lora})
    assert alone.losses == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.1
    by_rank = run_fleet(
        2, several, start, "chats", LAYOUTS, SFT, NUM_STEPS, {"lora": lora}, timeout=240
    )
    for of_rank in by_rank:
        for found, layout in zip(of_rank, LAYOUTS, strict=True):
            assert found.losses == pytest.approx(expected, rel=1e-5), layout


def test_fine_tuning_is_that_of_trl(start: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset  # type: ignore[import-untyped]
    from trl import SFTConfig, SFTTrainer

    num_windows = source_of(start, "chats").num_windows
    rows = [
        pair
        for number in range(NUM_STEPS * BATCH_SIZE)
        for pair in examples(start, "chats", number % num_windows)
    ]
    assert len(rows) == NUM_STEPS * BATCH_SIZE, "a window holds one"
    trainer = SFTTrainer(
        model=their_model(start),
        args=SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=BATCH_SIZE, max_steps=NUM_STEPS,
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95,
            adam_epsilon=OPTIMIZER["eps"], max_grad_norm=1.0, logging_steps=1, use_cpu=True,
            bf16=False, report_to=[], save_strategy="no", packing=False, max_length=None,
            gradient_checkpointing=False, train_sampling_strategy="sequential",
            optim="adamw_torch", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": x, "labels": y} for x, y in rows]),
        processing_class=transformers.AutoTokenizer.from_pretrained(
            start / "tokenizer", pad_token="<|endoftext|>"
        ),
    )  # fmt: skip
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    [alone] = run_fleet(1, tuned, start, "chats", {}, SFT, NUM_STEPS)
    # The console's numbers, as they are logged, may be rounded.
    assert alone.losses == pytest.approx(expected, rel=1e-5, abs=5e-5)


def their_pairs(start: Path) -> tuple[list[Any], Any]:
    """The first global batch's pairs, and their places among all answers."""
    source = source_of(start, "pairs")
    pairs: list[Any] = []
    numbers: list[int] = []
    for window in range(min(BATCH_SIZE, source.num_windows)):
        found = examples(start, "pairs", window)
        pairs += zip(found[::2], found[1::2], strict=True)
        numbers += source.documents_of(window).tolist()
    return pairs, np.array(numbers).reshape(-1, 2)


def plain_preference(start: Path, objective: dict[str, Any]) -> tuple[float, dict[str, Any], Any]:
    """Loss, figures and gradients by the papers' formulas over transformers' model."""
    model = their_model(start)
    pairs, numbers = their_pairs(start)
    reference = invented_reference(source_of(start, "pairs"))
    scores = []
    for pair, places in zip(pairs, numbers, strict=True):
        gains = []
        for (tokens, labels), place in zip(pair, places, strict=True):
            log_probs = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
            targets = torch.tensor(labels[1:])
            chosen = log_probs.gather(1, targets.clamp(min=0)[:, None])[:, 0][targets != -100]
            gain = chosen.sum() - float(reference[place])
            means = objective.get("loss") == "ipo" or objective.get("length_normalised")
            gains.append(gain / (len(chosen) if means else 1))
        scores.append(torch.stack(gains))
    gains_P2 = torch.stack(scores)
    margin = gains_P2[:, 0] - gains_P2[:, 1]
    beta, smoothing = objective["beta"], objective.get("label_smoothing", 0.0)
    if objective.get("loss") == "ipo":
        loss = (margin - 1 / (2 * beta)).square().mean()
    else:
        agrees, differs = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
        loss = -((1 - smoothing) * agrees + smoothing * differs).mean()
    loss.backward()
    figures = {
        "dpo_chosen": float(beta * gains_P2[:, 0].sum()),
        "dpo_rejected": float(beta * gains_P2[:, 1].sum()),
        "dpo_accuracies": float((margin > 0).sum()),
        "dpo_pairs": float(len(pairs)),
    }
    return float(loss.detach()), figures, model


def gradients_of(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Their gradients under our names: brought over as weights would be."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder)
    return import_huggingface(folder)[1]


def compare(found: Any, expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("number", range(len(PREFERENCES)))
def test_preferences_are_those_of_the_formulas_and_of_trl(
    start: Path, tmp_path: Path, number: int
) -> None:
    objective = PREFERENCES[number]
    [found] = run_fleet(1, tuned, start, "pairs", {}, objective, 1)
    loss, figures, model = plain_preference(start, objective)
    assert found.losses == pytest.approx([loss], rel=1e-5)
    for name, value in figures.items():
        assert found.extra[name] == pytest.approx(value, rel=1e-5), name
    compare(found.gradients, gradients_of(model, tmp_path / "plain"))
    if (loss_type := TRL_LOSSES[number]) is not None:
        trl_loss, trl_model = preference_by_trl(start, tmp_path, objective, loss_type)
        assert found.losses == pytest.approx([trl_loss], rel=1e-5)
        compare(found.gradients, gradients_of(trl_model, tmp_path / "trl"))


def preference_by_trl(
    start: Path, tmp_path: Path, objective: dict[str, Any], loss_type: str
) -> tuple[float, Any]:
    """The loss of TRL's trainer, and its model with gradients."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pairs, numbers = their_pairs(start)
    reference = invented_reference(source_of(start, "pairs"))
    rows = []
    for (chosen, rejected), places in zip(pairs, numbers, strict=True):
        num_asked = next(n for n, label in enumerate(chosen[1]) if label != -100)
        ends = [
            len(labels) - next(n for n, x in enumerate(labels[::-1]) if x != -100)
            for _, labels in (chosen, rejected)
        ]
        rows.append({
            "prompt_ids": chosen[0][:num_asked],
            "chosen_ids": chosen[0][num_asked : ends[0]],
            "rejected_ids": rejected[0][num_asked : ends[1]],
            "ref_chosen_logps": float(reference[places[0]]),
            "ref_rejected_logps": float(reference[places[1]]),
        })  # fmt: skip
    model = their_model(start)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), beta=objective["beta"], loss_type=[loss_type],
            use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=transformers.AutoTokenizer.from_pretrained(
            start / "tokenizer", pad_token="<|endoftext|>"
        ),
    )  # fmt: skip
    trainer.precompute_ref_logps = True
    inputs = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), trainer.model


def test_preferences_in_every_layout(start: Path) -> None:
    objective = PREFERENCES[0]
    [alone] = run_fleet(1, tuned, start, "pairs", {}, objective, 4)
    layouts = [*LAYOUTS, DEEPSPEED]
    by_rank = run_fleet(2, several, start, "pairs", layouts, objective, 4, timeout=240)
    for number, layout in enumerate(layouts):
        gradients = {n: g for of_rank in by_rank for n, g in of_rank[number].gradients.items()}
        assert gradients.keys() == alone.gradients.keys()
        compare(gradients, alone.gradients)
        for of_rank in by_rank:
            assert of_rank[number].losses == pytest.approx(alone.losses, rel=1e-5), layout
            assert of_rank[number].extra == pytest.approx(alone.extra, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["chats", "pairs"])
def test_a_model_with_experts_in_layouts(start: Path, name: str) -> None:
    experts = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 32, "sequence_loss": 0.01}
    objective, changes = {"chats": SFT, "pairs": PREFERENCES[0]}[name], {"experts": experts}
    [alone] = run_fleet(1, tuned, start, name, {}, objective, 4, changes)
    layouts: list[dict[str, Any]] = [{"expert": 2, "zero_stage": 2}, {"tensor": 2}]
    for of_rank in run_fleet(2, several, start, name, layouts, objective, 4, changes, timeout=240):
        for found, layout in zip(of_rank, layouts, strict=True):
            assert found.losses == pytest.approx(alone.losses, rel=1e-5), layout
