"""The five lines of docs/finetuning.md, word for word, on a folder of transformers'."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jobs import read_rows, train

from triax.launcher.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
WORDS = ["the cat sat on the mat", "a dog runs fast", "what is red?", "the river is blue"]
TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def make_qwen(folder: Path) -> None:
    """A small Qwen3 with a tokenizer of its own, a chat template and generation settings."""
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(WORDS * 20, trainer)
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = transformers.Qwen3ForCausalLM(config)
    model.to(torch.bfloat16)
    end, text_end = (tokenizer.convert_tokens_to_ids(f"<|{x}|>") for x in ("im_end", "endoftext"))
    model.generation_config = transformers.GenerationConfig(
        **GENERATION, eos_token_id=[end, text_end], pad_token_id=text_end, bos_token_id=text_end
    )
    model.save_pretrained(folder)


def commands() -> list[list[str]]:
    """The five lines, as arguments of `triax`."""
    block = re.search(r"in five lines\n\n((?:    triax .*\n){5})", PAGE)
    assert block is not None
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def config_of(page: str) -> str:
    block = re.search(r"```toml\n(\[run\]\n.*?)```", page, re.DOTALL)
    assert block is not None
    return block[1]


def test_five_lines_tune_a_folder_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    import_, conversations, training, chat, export = commands()
    make_qwen(tmp_path / import_[2])
    chats: list[dict[str, Any]] = [
        {"messages": [
            {"role": "user", "content": f"what is {number}?"},
            {"role": "assistant", "content": WORDS[number % 4]},
        ]}
        for number in range(80)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in chats)
    Path("chats.jsonl").write_text(text, encoding="utf-8")
    assert main(import_) == 0
    section = re.search(r"\[model\]\n.*", capsys.readouterr().out, re.DOTALL)
    assert section is not None
    Path("run.toml").write_text(section[0] + config_of(PAGE), encoding="utf-8")
    assert main(conversations) == 0
    assert training[:2] == ["train", "run.toml"]
    fewer = ("--data.seq_len=128", "--budget.tokens=8192", "--batch.global_batch_size=8")
    ended = train(tmp_path, *training[2:], *fewer, "--optimizer.lr=1e-2")
    assert ended.code == 0, ended.text
    losses = [row["loss"] for row in read_rows(tmp_path / "runs/mine")]
    assert losses[-1] < losses[0] - 0.1
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("what is 3?\n"))
    assert main([*chat, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(export) == 0
    same_as_before(tmp_path / import_[2], tmp_path / "exported")


def same_as_before(start: Path, exported: Path) -> None:
    """The chat template, the settings of generation and the kind of model; not the weights."""
    before, after = (transformers.AutoTokenizer.from_pretrained(each) for each in (start, exported))
    chat = [{"role": "user", "content": "what is red?"}]
    shown = [each.apply_chat_template(chat, add_generation_prompt=True) for each in (before, after)]
    assert shown[0] == shown[1] and after.eos_token == "<|im_end|>"
    models = [transformers.AutoModelForCausalLM.from_pretrained(each) for each in (start, exported)]
    assert [type(each).__name__ for each in models] == ["Qwen3ForCausalLM"] * 2
    settings = [each.generation_config for each in models]
    for name in ("do_sample", "temperature", "top_k", "top_p", "pad_token_id"):
        assert getattr(settings[0], name) == getattr(settings[1], name), name
    assert set(settings[0].eos_token_id) == set(settings[1].eos_token_id)
    weights = [each.model.embed_tokens.weight for each in models]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)
