"""Conversations as the text that a model was taught to read.

The template is the tokenizer's own, in Jinja as `transformers` renders it: sandboxed, with blocks
trimmed, and with `messages`, `add_generation_prompt` and the special tokens by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triax.common.errors import UserError
from triax.common.files import is_file, read_regular
from triax.data.prepare.document_tokens import special_tokens
from triax.data.prepare.tokenizer import MOST_BYTES, tokenizer_file

_PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Where the tokenizer has no template: for models that were never taught one."""
Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`."""


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
        folder = tokenizer_file(tokenizer).parent
        names = {role: token.name for role, token in special_tokens(tokenizer).items()}
        source = _own_template(folder)
        return ChatTemplate(source or _PLAIN, names, source is not None)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation, up to where the assistant's next answer begins.

        Raises:
            UserError: the template refuses it, or is damaged.
        """
        try:
            template = _environment().from_string(self.source)
            return template.render(messages=messages, add_generation_prompt=True, **self.names)
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the tokenizer's chat template can't write this: {error}") from None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What ends an answer beside the model's own end."""
        return () if self.is_own else ("\nuser:",)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _own_template(folder: Path) -> str | None:
    try:
        if is_file(folder / "chat_template.jinja"):
            return read_regular(folder / "chat_template.jinja", MOST_BYTES).decode()
        if not is_file(folder / "tokenizer_config.json"):
            return None
        config = json.loads(read_regular(folder / "tokenizer_config.json", MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: its chat template can't be read: {error}") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None
