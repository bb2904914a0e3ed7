"""Tasks of lm-eval in local files, and a random model exported for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from triax.checkpoint.huggingface import export_huggingface
from triax.checkpoint.huggingface_tokenizer import TokenizerExport
from triax.data.prepare.tokenizer import train_tokenizer
from triax.models.families import model_config
from triax.models.layers.transformer import Transformer

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "no", "dog", "ran", "past", "red", "river")
CONTEXT = 24
TASKS = {
    "choose": """\
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
""",
    "rolling": """\
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte}
""",
    "write": """\
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list:
  - {metric: exact_match}
""",
}


def sentence(chance: torch.Generator, length: int) -> str:
    return " ".join(
        WORDS[int(torch.randint(len(WORDS), (), generator=chance))] for _ in range(length)
    )


def make_tasks(root: Path, num_rows: int = 6) -> None:
    """A tokenizer, and task files in `own/` with their data."""
    chance = torch.Generator().manual_seed(3)
    (root / "text.txt").write_text("\n".join(sentence(chance, 12) for _ in range(40)))
    train_tokenizer([str(root / "text.txt")], 300, root / "tokenizer")
    rows = [
        {
            "question": sentence(chance, 2 + 3 * (number % 6)),
            "choices": [" " + sentence(chance, 1 + choice) for choice in range(4)],
            "label": number % 4,
            "text": sentence(chance, 4 + 6 * (number % 6)),
        }
        for number in range(num_rows)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "own").mkdir()
    for name, text in TASKS.items():
        (root / "own" / f"{name}.yaml").write_text(text.replace("FILE", str(root / "data.jsonl")))


def export_random(root: Path) -> None:
    """The model, in `hf/`, with the tokenizer."""
    torch.manual_seed(1)
    config = model_config(
        num_layers=2, hidden_size=32, num_heads=2, ffn_hidden_size=64, vocab_size=300
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids: dict[str, int | list[int]] = {"bos_token_id": 0, "eos_token_id": 0}
    tokenizer = TokenizerExport(root / "tokenizer", {"eos_token": "<|endoftext|>"}, ids)
    export_huggingface(
        {name: p.detach() for name, p in model.named_parameters()},
        config, root / "hf", dtype=None, tokenizer=tokenizer, seq_len=CONTEXT,
    )  # fmt: skip
