"""Rows of datasets as conversations, or as pairs of answers of which one is preferred.

| a row has | its conversation |
|---|---|
| `messages` | as it is: `role` and `content` each, with `tools` of the row |
| `conversations` of `from` and `value` (ShareGPT) | `human` is the user, `gpt` the assistant |
| `instruction`, `input`, `output` (Alpaca) | the user says the instruction and the input |
| `prompt`, `completion` | the user says the one, the assistant the other; each may be messages |
| `prompt`, `chosen`, `rejected` | two: the prompt with either answer; each may be messages |

Alpaca's input stands behind the instruction and an empty line, and may be missing; `system` is what
the system says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triax.common.errors import UserError
from triax.data.prepare.chat_template import Message
from triax.data.prepare.tokenizer import ROLES

_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "developer": "system",
}
_PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Conversation:
    """What was said, and with which tools."""

    messages: tuple[Message, ...]
    tools: Sequence[Any] | None = None
    num_given: int = 0
    """So many messages come before what is learned from."""


def conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of a row.

    Args:
        row: its fields.
        where: file and line, for errors.

    Raises:
        UserError: it has none of the known forms, or something in it is of another kind.
    """
    tools = _tools(row, where)
    for name in ("messages", "conversations", "conversation"):
        if row.get(name) is not None:
            return Conversation(_messages(row[name], f"{where}: {name}"), tools)
    if row.get("instruction") is not None and "output" in row:
        return Conversation(_alpaca(row, where), tools)
    if row.get("prompt") is not None and "completion" in row:
        prompt = _said(row["prompt"], "user", f"{where}: prompt")
        answer = _said(row["completion"], "assistant", f"{where}: completion")
        return Conversation((*prompt, *answer), tools, len(prompt))
    raise UserError(
        f"{where}: no conversation: expected `messages`, or `conversations` (ShareGPT), "
        "`instruction` and `output` (Alpaca), or `prompt` and `completion`; there are: "
        f"{_names(row)}"
    )


def preference(row: Mapping[str, Any], where: str) -> tuple[Conversation, Conversation]:
    """The preferred conversation of a row, and the other one.

    Without `prompt` it is what both begin with.

    Raises:
        UserError: as `conversation`; or the answers are the same.
    """
    missing = [name for name in _PAIR if row.get(name) is None]
    if missing:
        raise UserError(
            f"{where}: no {missing[0]!r}: a pair has `prompt`, `chosen` and `rejected`; there "
            f"are: {_names(row)}"
        )
    tools = _tools(row, where)
    answers = [_said(row[name], "assistant", f"{where}: {name}") for name in _PAIR]
    if row.get("prompt") is not None:
        prompt = _said(row["prompt"], "user", f"{where}: prompt")
        if all(answer[: len(prompt)] == prompt for answer in answers):
            answers = [answer[len(prompt) :] for answer in answers]
    else:
        prompt = _shared(*answers)
        answers = [answer[len(prompt) :] for answer in answers]
        if not prompt:
            raise UserError(f"{where}: no `prompt`, and `chosen` and `rejected` begin differently")
    if answers[0] == answers[1]:
        raise UserError(f"{where}: `chosen` and `rejected` are the same: nothing is preferred")
    chosen, rejected = (Conversation((*prompt, *answer), tools, len(prompt)) for answer in answers)
    return chosen, rejected


def _shared(first: tuple[Message, ...], second: tuple[Message, ...]) -> tuple[Message, ...]:
    num_same = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        num_same += 1
    return first[:num_same]


def _alpaca(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    fields = {
        name: _text(row.get(name), f"{where}: {name}")
        for name in ("system", "instruction", "input", "output")
    }
    asked = "\n\n".join(filter(None, (fields["instruction"], fields["input"])))
    system = [{"role": "system", "content": fields["system"]}] if fields["system"] else []
    return (
        *system,
        {"role": "user", "content": asked},
        {"role": "assistant", "content": fields["output"]},
    )


def _said(value: Any, role: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": role, "content": _text(value, where)},)
    return _messages(value, where)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}: expected a list of messages, got {_shown(value)}")
    if not value:
        raise UserError(f"{where}: no messages")
    return tuple(_message(each, f"{where}, message {n}") for n, each in enumerate(value, 1))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a role and a content, got {_shown(value)}")
    # Parquet fills up what other messages have.
    fields = {name: each for name, each in value.items() if each is not None}
    if "from" in fields and "role" not in fields:
        fields["role"] = fields.pop("from")
    if "value" in fields and "content" not in fields:
        fields["content"] = fields.pop("value")
    role = fields.get("role")
    known = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if known not in ROLES:
        raise UserError(f"{where}: role {_shown(role)}; expected one of {', '.join(ROLES)}")
    weight = fields.get("weight", 1)
    if not isinstance(weight, int | float) or not 0 <= weight <= 1000:
        raise UserError(f"{where}: weight {_shown(weight)}; expected a number from 0 to 1000")
    content = _content(fields.get("content"), where)
    return {**fields, "role": known, "content": content}


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):  # in parts, as models that see pictures have it
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: a part of the content is no text, and only text is read")
        value = "".join(map(str, texts))
    return _text(value, f"{where}: content")


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, got {_shown(value)}")
    # Half surrogate pairs, which JSON can spell and UTF-8 can't.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tools(row: Mapping[str, Any], where: str) -> Sequence[Any] | None:
    tools = row.get("tools")
    if tools is None or isinstance(tools, list):
        return tools or None
    raise UserError(f"{where}: tools: expected a list of schemas, got {_shown(tools)}")


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(list(row)[:10]) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
