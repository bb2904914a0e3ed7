"""Conversations are written as `transformers` writes them, and talked through a terminal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from triax.common.errors import UserError
from triax.data.prepare.chat_template import ChatTemplate
from triax.data.prepare.tokenizer import train_tokenizer
from triax.launcher.cli import main

TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{ bos_token }}{% endif %}
{% for message in messages %}
    {% if message.role == 'tool' %}
        {{ raise_exception('no tools here') }}
    {% endif %}
<|{{ message.role }}|> {{ message.content | trim }} {{ {"é": 1} | tojson }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MESSAGES = [
    {"role": "user", "content": " What is é? \n"},
    {"role": "assistant", "content": "A letter."},
    {"role": "user", "content": "{{ 1 + 1 }}"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of transformers with a tokenizer and a template."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "text").write_text("user assistant", encoding="utf-8")
    train_tokenizer([str(folder / "text")], 264, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[:1]])
def test_a_conversation_is_written_as_transformers_does(
    folder: Path, messages: list[dict[str, str]]
) -> None:
    theirs: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.of(folder).render(messages) == expected


def test_what_a_template_refuses_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match="no tools here"):
        ChatTemplate.of(folder).render([{"role": "tool", "content": ""}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for a in range(999999999) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{% unfinished",
    ],
)
def test_hostile_templates_do_nothing(source: str) -> None:
    with pytest.raises(UserError, match="chat template can't write this"):
        ChatTemplate(source, {}, True).render(MESSAGES)


def test_a_conversation_line_by_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(*lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        command = ["chat", str(folder), "--max-new-tokens", "6", "--temperature", "0"]
        assert main(command) == 0
        return capsys.readouterr().out.splitlines()

    assert talk("one", "/new", "one")[:1] == talk("one")[:1], "the same question, the same answer"
    assert len(talk("one", "", "two")) >= 2


def test_a_closed_standard_input_says_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(folder)]) == 0


def test_a_tokenizer_without_a_template_is_noted(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "chat_template" not in config
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["chat", str(tmp_path), "--max-new-tokens", "2"]) == 0
    assert "has no chat template" in capsys.readouterr().err
