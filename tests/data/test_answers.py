"""What of a conversation is learned: by the templates that people use, against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from triax.common.errors import UserError
from triax.data.prepare.answers import LossOn, taught
from triax.data.prepare.chat_rows import Conversation, conversation, preference
from triax.data.prepare.chat_template import ChatTemplate
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} "
    "[/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only users and assistants') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Writes the last answer in another way than those before, as Qwen3's does."""
MARKED = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n"
    "{% endfor %}"
)
MESSAGES = (
    {"role": "user", "content": "What is é?"},
    {"role": "assistant", "content": "A letter 漢."},
    {"role": "user", "content": "A letter 漢. And this?"},
    {"role": "assistant", "content": "A letter 漢."},
)


def learned(source: str, messages: Any, loss_on: LossOn = "answers") -> list[str]:
    template = ChatTemplate(source, NAMES, True)
    found = taught(template, Conversation(tuple(messages)), loss_on)
    return [found.text[begin:end] for (begin, end), _ in found.answers]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, ["A letter 漢.<|im_end|>"] * 2),
        (LLAMA2, [" A letter 漢. </s>"] * 2),
        (THINKING, ["A letter 漢.<|end|>", "<think></think>A letter 漢.<|end|>"]),
        (MARKED, ["A letter 漢.</s>"] * 2),
    ],
)
def test_an_answer_is_what_the_template_writes_after_the_prompt(
    source: str, expected: list[str]
) -> None:
    assert learned(source, MESSAGES) == expected
    assert learned(source, MESSAGES, "contents") == ["A letter 漢."] * 2


def test_answers_are_where_generation_blocks_are_for_transformers(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a letter and this", encoding="utf-8")
    train_tokenizer([str(tmp_path / "text")], 280, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(MARKED, encoding="utf-8")
    theirs: Any = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    expected = theirs.apply_chat_template(
        list(MESSAGES), return_dict=True, return_assistant_tokens_mask=True
    )
    template = ChatTemplate.of(tmp_path)
    found = taught(template, Conversation(MESSAGES), "answers")
    encoding = load_tokenizer(tmp_path).encode(found.text, add_special_tokens=False)
    assert encoding.ids == expected["input_ids"]
    # Theirs counts the token in which an answer's last character lies, ours none behind it.
    assert found.weights(encoding).tolist() == expected["assistant_masks"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "assistant", "content": "first"}], ["first<|im_end|>"]),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}], ["<|im_end|>"]),
        ([{"role": "user", "content": "only asked"}], []),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a"}],
            ["a<|im_end|>", "a<|im_end|>"],
        ),
        (
            [
                {"role": "assistant", "content": "no", "weight": 0},
                {"role": "tool", "content": "<|im_end|>"},
                {"role": "assistant", "content": "yes"},
            ],
            ["yes<|im_end|>"],
        ),
    ],
)
def test_odd_turns(messages: list[dict[str, Any]], expected: list[str]) -> None:
    assert learned(CHATML, messages) == expected


def test_what_a_template_refuses_or_rewrites_is_said() -> None:
    with pytest.raises(UserError, match="only users and assistants"):
        learned(LLAMA2, [{"role": "tool", "content": "?"}])
    hidden = "{% for m in messages %}{{ loop.revindex }}{% endfor %}"
    with pytest.raises(UserError, match=r"message 2: this answer isn't found.*generation"):
        learned(hidden, MESSAGES)


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in conversation(row, "f, line 1").messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}], "tool_calls": None},
            {"role": "assistant", "content": "a"},
        ]},
    ],
)  # fmt: skip
def test_known_forms_of_rows(row: dict[str, Any]) -> None:
    assert said(row) == [("user", "q"), ("assistant", "a")]


def test_an_input_stands_behind_the_instruction() -> None:
    row = {"system": "s", "instruction": "q", "input": "i", "output": "a"}
    assert said(row) == [("system", "s"), ("user", "q\n\ni"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "?"}, "f, line 1: no conversation: expected `messages`.*there are: text"),
        ({"messages": "hello"}, "messages: expected a list of messages, got 'hello'"),
        ({"messages": []}, "no messages"),
        ({"messages": ["hello"]}, "message 1: expected a role and a content"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "role 'wizard'; expected one of"),
        ({"messages": [{"role": ["user"], "content": ""}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "content: expected text, got 3"),
        ({"messages": [{"role": "user", "content": [{"image": 1}]}]}, "only text is read"),
        ({"messages": [{"role": "assistant", "content": "", "weight": "x"}]}, "weight 'x'"),
        ({"messages": [{"role": "user", "content": ""}], "tools": 3}, "tools: expected a list"),
    ],
)
def test_other_rows_are_refused_in_words(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        conversation(row, "f, line 1")


def test_half_characters_become_whole_ones() -> None:
    row = json.loads('{"prompt": "\\ud83d", "completion": "\\ud83d\\ude00"}')
    assert said(row) == [("user", "\N{REPLACEMENT CHARACTER}"), ("assistant", "\N{GRINNING FACE}")]


QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [QUESTION], "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]},
        {
            "chosen": [QUESTION, {"role": "assistant", "content": "a"}],
            "rejected": [QUESTION, {"role": "assistant", "content": "b"}],
        },
        {
            "prompt": "q",
            "chosen": [QUESTION, {"role": "assistant", "content": "a"}],
            "rejected": [QUESTION, {"role": "assistant", "content": "b"}],
        },
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    chosen, rejected = preference(row, "f, line 1")
    assert [m["content"] for m in chosen.messages] == ["q", "a"]
    assert [m["content"] for m in rejected.messages] == ["q", "b"]
    assert chosen.num_given == rejected.num_given == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a"}, "no 'rejected': a pair has"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"chosen": "a", "rejected": "b"}, "no `prompt`"),
    ],
)
def test_other_pairs_are_refused_in_words(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        preference(row, "f, line 1")
