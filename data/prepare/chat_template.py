"""Conversations as the text that a model is taught to read.

The template is the tokenizer's own, in Jinja as `transformers` renders it: sandboxed, with blocks
trimmed, with loop controls and `generation` blocks, and with `messages`, `tools`,
`add_generation_prompt` and the special tokens by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triax.common.errors import UserError
from triax.common.files import is_file, read_regular
from triax.data.prepare.document_tokens import special_tokens
from triax.data.prepare.tokenizer import (
    MOST_BYTES,
    ROLE_TOKENS,
    load_tokenizer,
    tokenizer_file,
)

TEMPLATE_FILE = "chat_template.jinja"
_PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For models that were never taught a template."""
_TAUGHT_PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""To teach one to a model whose tokenizer has none: an answer ends with the end of text."""
_TAUGHT_RESERVED = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' }}{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The same where the tokenizer has a token for each role."""
_BEGIN, _END = "\U0010fffe", "\U0010ffff"
"""Stand around `generation` blocks while a template is rendered: no text has these code points."""
Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool), `content`, and what else the template reads."""
Span = tuple[int, int]
"""From one character of a text to before another."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    answers: tuple[Span, ...] | None
    """What the template itself marks as the assistant's, in `generation` blocks; None where it
    has none."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written."""

    source: str
    names: Mapping[str, str]
    """The special tokens' texts by role, as `eos_token`."""
    is_own: bool
    """False where the tokenizer has none."""

    @staticmethod
    def of(tokenizer: str | Path) -> ChatTemplate:
        """The template in a tokenizer's folder, or a plain one.

        Raises:
            UserError: a file there is damaged.
        """
        source = _own_template(tokenizer_file(tokenizer).parent)
        return ChatTemplate(source or _PLAIN, _names(tokenizer), source is not None)

    @staticmethod
    def to_teach(tokenizer: str | Path, file: Path | None = None) -> ChatTemplate:
        """The template that a model is to be taught: in the file, else the tokenizer's own, else
        one of ours, in which answers end with the tokenizer's end of text.

        Raises:
            UserError: a file is damaged, or there is no template and no `eos_token` for ours.
        """
        names = _names(tokenizer)
        source = _own_template(tokenizer_file(tokenizer).parent)
        if file is not None:
            try:
                source = read_regular(file, MOST_BYTES).decode()
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: can't be read as a chat template: {error}") from None
        if source is not None:
            return ChatTemplate(source, names, True)
        if "eos_token" not in names:
            raise UserError(
                f"{tokenizer}: has neither a chat template nor an eos_token, with which a plain "
                "template would end answers; give a template with --chat-template FILE, or name "
                "the eos_token in its tokenizer_config.json"
            )
        loaded = load_tokenizer(tokenizer)
        has_roles = all(loaded.token_to_id(name) is not None for name in ROLE_TOKENS)
        return ChatTemplate(_TAUGHT_RESERVED if has_roles else _TAUGHT_PLAIN, names, False)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation, up to where the assistant's next answer begins.

        Raises:
            UserError: the template refuses it, or is damaged.
        """
        return self.write(messages, add_generation_prompt=True).text

    def write(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> Rendered:
        """The conversation as text.

        Args:
            add_generation_prompt: end where the assistant's next answer begins.
            tools: their JSON schemas, for templates that tell of them.

        Raises:
            UserError: the template refuses it, or is damaged.
        """
        try:
            text = _compiled(self.source).render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.names,
            )
        except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"the tokenizer's chat template can't write this: {error}") from None
        return _without_marks(text)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What ends an answer beside the model's own end."""
        return () if self.is_own else ("\nuser:",)


def _names(tokenizer: str | Path) -> dict[str, str]:
    return {role: token.name for role, token in special_tokens(tokenizer).items()}


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant says, marked."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{_BEGIN}{caller()}{_END}"


def _without_marks(text: str) -> Rendered:
    if _BEGIN not in text:
        return Rendered(text, None)
    plain, spans = "", []
    first, *marked = text.split(_BEGIN)
    plain = first
    for part in marked:
        said, _, after = part.partition(_END)
        spans.append((len(plain), len(plain) + len(said)))
        plain += said + after
    return Rendered(plain, tuple(spans))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _own_template(folder: Path) -> str | None:
    try:
        if is_file(folder / TEMPLATE_FILE):
            return read_regular(folder / TEMPLATE_FILE, MOST_BYTES).decode()
        if not is_file(folder / "tokenizer_config.json"):
            return None
        config = json.loads(read_regular(folder / "tokenizer_config.json", MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: its chat template can't be read: {error}") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None
