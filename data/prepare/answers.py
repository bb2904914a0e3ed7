"""Which of a conversation's text is learned from: what the assistant says.

A template that has `generation` blocks says it itself. Of another one an answer is what it writes
between the prompt for it and the next message. That is found by writing the conversation up to the
answer, and with it; templates that write former turns in another way than the last one (as Qwen3's
leaves out what was thought) are followed by the answers' own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Encoding

from triax.common.errors import UserError
from triax.data.prepare.chat_rows import Conversation
from triax.data.prepare.chat_template import ChatTemplate, Message, Span
from triax.data.read.shard_index import Array

LossOn = Literal["answers", "contents"]
"""Whether the marks with which a template ends an answer are learned, too: a model that isn't
taught them doesn't stop."""


@dataclass(frozen=True)
class Taught:
    """A conversation as text, and what of it is learned from."""

    text: str
    answers: tuple[tuple[Span, float], ...]
    """With the weight of each."""

    def weights(self, encoding: Encoding) -> Array:
        """How much each token counts, (num_tokens,) fp32: a token that begins in an answer has
        the answer's weight."""
        weights = np.zeros(len(encoding.ids), np.float32)
        starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(weights))
        stops = np.fromiter((stop for _, stop in encoding.offsets), np.int64, len(weights))
        for (begin, end), weight in self.answers:
            weights[(starts >= begin) & (starts < end) & (stops > begin)] = weight
        return weights


def taught(template: ChatTemplate, conversation: Conversation, loss_on: LossOn) -> Taught:
    """Write a conversation, and find the answers in it.

    Raises:
        UserError: the template can't write it, or writes it so that an answer isn't found.
    """
    messages, tools = conversation.messages, conversation.tools
    whole = template.write(messages, tools=tools)
    if whole.answers is None:
        answers = tuple(_find(template, conversation, whole.text))
    else:
        said = [m for m in messages if m["role"] == "assistant"]
        are_all = len(said) == len(whole.answers)
        found = zip(whole.answers, said if are_all else [{}] * len(whole.answers), strict=True)
        answers = tuple((span, message) for span, message in found)
    num_before = sum(m["role"] == "assistant" for m in messages[: conversation.num_given])
    kept = answers[num_before:]
    if loss_on == "contents":
        kept = tuple((_content_in(whole.text, span, message), message) for span, message in kept)
    weighed = tuple((span, float(message.get("weight", 1))) for span, message in kept)
    return Taught(whole.text, tuple((span, weight) for span, weight in weighed if weight > 0))


def _find(
    template: ChatTemplate, conversation: Conversation, text: str
) -> Iterator[tuple[Span, Message]]:
    messages, tools = conversation.messages, conversation.tools
    behind = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _written(template, messages[:number], tools, prompt=True)
        answered = _written(template, messages[: number + 1], tools, prompt=False)
        content = str(message["content"]).strip()
        if asked is not None and text.startswith(asked) and len(asked) >= behind:
            begin = len(asked)
        else:
            begin = _place(text, content, behind, number)
        if answered is not None and text.startswith(answered) and len(answered) >= begin:
            end = len(answered)
        else:
            end = _place(text, content, begin, number) + len(content)
            mark = "" if answered is None else answered[answered.rfind(content) + len(content) :]
            end += _num_shared(text[end:], mark)
        behind = end
        # The line's end behind the mark is no part of an answer: nobody waits for it.
        said = text[begin:end]
        yield (begin, begin + max(len(said.rstrip()), 0)), message


def _num_shared(first: str, second: str) -> int:
    """Characters that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _written(
    template: ChatTemplate, messages: tuple[Message, ...], tools: object, *, prompt: bool
) -> str | None:
    """Part of a conversation, which a template may refuse where it wouldn't the whole."""
    try:
        return template.write(messages, add_generation_prompt=prompt, tools=tools).text  # type: ignore[arg-type]
    except UserError:
        return None


def _place(text: str, content: str, behind: int, number: int) -> int:
    place = text.find(content, behind) if content else -1
    if place < 0:
        raise UserError(
            f"message {number + 1}: this answer isn't found in what the chat template writes; "
            "mark the assistant's words in the template with {% generation %} blocks"
        )
    return place


def _content_in(text: str, span: Span, message: Message) -> Span:
    begin, end = span
    content = str(message.get("content", "")).strip()
    place = text.find(content, begin, end)
    return (begin, begin) if place < 0 or not content else (place, place + len(content))
