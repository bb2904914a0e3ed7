"""Which tokens stand where a document begins and ends: the one answer for all of triax.

Preparation writes them, `data.json` and a checkpoint's record keep them, generation stops at the
end's, and an export names them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.common.files import read_regular
from triax.data.config import DataConfig
from triax.data.prepare.tokenizer import MOST_BYTES, load_tokenizer, tokenizer_file

_KNOWN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|eot_id|>")
"""Names of ends, tried in this order where the tokenizer's own files name none."""
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_FILES_WITH_ROLES = ("tokenizer_config.json", "special_tokens_map.json")
_NUM_SHOWN = 8


@dataclass(frozen=True)
class Token:
    """A token of a vocabulary."""

    name: str
    id: int


@dataclass(frozen=True)
class DocumentTokens:
    """What is put around each document's own tokens."""

    end: Token
    begin: Token | None
    """None: nothing is put there; what stands before a document is the end of the last one."""

    def to_json(self) -> dict[str, str | None]:
        """As a checkpoint's record keeps it: by names, under the keys of the config."""
        return {
            "end_of_text": self.end.name,
            "begin_of_text": None if self.begin is None else self.begin.name,
        }

    def begun(self, tokens: Sequence[int]) -> list[int]:
        """A text's own tokens as a model is to be shown them: as in training, what begins a
        document stands before them, or where there are none the end of the document before."""
        begin = self.begin or (self.end if not tokens else None)
        if begin is None or list(tokens[:1]) == [begin.id]:
            return list(tokens)
        return [begin.id, *tokens]


def document_tokens(
    path: Path | str, end_of_text: str | None = None, begin_of_text: str | None = None
) -> DocumentTokens:
    """Decide where documents end and begin.

    The end is the token that is named, else the `eos_token` of the tokenizer's own
    `tokenizer_config.json`, else the first known name that its vocabulary has. A document begins
    with the token that is named, else with nothing.

    Args:
        path: the tokenizer's folder or its `tokenizer.json`.
        end_of_text: a token's name, `data.end_of_text` of a run.
        begin_of_text: a token's name, `data.begin_of_text` of a run.

    Raises:
        UserError: the tokenizer is of no use, lacks what is named, or has no known end.
    """
    tokenizer, file = load_tokenizer(path), tokenizer_file(path)
    end = _end(tokenizer, file, end_of_text)
    if begin_of_text is None:
        return DocumentTokens(end, None)
    return DocumentTokens(end, _named(tokenizer, file, "begin_of_text", begin_of_text))


def named_token(path: Path | str, role: str, name: str) -> Token:
    """The token that a setting names.

    Args:
        path: the tokenizer's folder or its `tokenizer.json`.
        role: the setting, as the error calls it.
        name: the token's.

    Raises:
        UserError: the tokenizer is of no use, or lacks it.
    """
    return _named(load_tokenizer(path), tokenizer_file(path), role, name)


def end_of_version_0_1(path: Path | str) -> str | None:
    """The token that version 0.1 ended documents with, and recorded nowhere: the first known name
    in the vocabulary, whatever the tokenizer's own files say.

    Raises:
        UserError: the tokenizer is of no use.
    """
    tokenizer = load_tokenizer(path)
    return next((name for name in _KNOWN_ENDS if tokenizer.token_to_id(name) is not None), None)


def tokens_of_run(data: DataConfig) -> DocumentTokens | None:
    """Those of a run; None where it has no tokenizer that says, as with shards made elsewhere."""
    if data.tokenizer is None:
        return None
    try:
        return document_tokens(data.tokenizer, data.end_of_text, data.begin_of_text)
    except UserError:
        return None


def special_tokens(path: Path | str) -> dict[str, Token]:
    """The tokens that the tokenizer's own files give a role, as far as its vocabulary has them.

    Returns:
        By role: `bos_token`, `eos_token`, `pad_token`, `unk_token`.

    Raises:
        UserError: the tokenizer or one of these files is of no use.
    """
    return _special_tokens(load_tokenizer(path), tokenizer_file(path))


def added_by_tokenizer(path: Path | str) -> tuple[list[str], list[str]]:
    """What the tokenizer, asked for special tokens, puts before and after each text by itself.

    Raises:
        UserError: the tokenizer is of no use.
    """
    encoding = load_tokenizer(path).encode("a", add_special_tokens=True)
    own = [position for position, mask in enumerate(encoding.special_tokens_mask) if not mask]
    if not own:
        return [], []
    return encoding.tokens[: own[0]], encoding.tokens[own[-1] + 1 :]


def _end(tokenizer: Tokenizer, file: Path, name: str | None) -> Token:
    if name is not None:
        return _named(tokenizer, file, "end_of_text", name)
    own = _special_tokens(tokenizer, file).get("eos_token")
    if own is not None:
        return own
    for known in _KNOWN_ENDS:
        if (number := tokenizer.token_to_id(known)) is not None:
            return Token(known, number)
    raise UserError(
        f"{file}: no end-of-text token: no eos_token in tokenizer_config.json, and none of "
        f"{', '.join(_KNOWN_ENDS)}; name the one that ends a document with data.end_of_text "
        f"(--end-of-text of `triax data prepare`){_there_are(tokenizer)}"
    )


def _named(tokenizer: Tokenizer, file: Path, role: str, name: str) -> Token:
    number = tokenizer.token_to_id(name)
    if number is None:
        raise UserError(f"{role}: {name!r} is no token of {file}{_there_are(tokenizer)}")
    return Token(name, number)


def _there_are(tokenizer: Tokenizer) -> str:
    names = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if not names:
        return ""
    return f"; there are {', '.join(names[:_NUM_SHOWN])}{', ...' * (len(names) > _NUM_SHOWN)}"


def _special_tokens(tokenizer: Tokenizer, file: Path) -> dict[str, Token]:
    found: dict[str, Token] = {}
    for config in (_read(file.with_name(name)) for name in _FILES_WITH_ROLES):
        for role in _ROLES:
            token = config.get(role)
            name = token.get("content") if isinstance(token, dict) else token
            number = tokenizer.token_to_id(name) if isinstance(name, str) else None
            if isinstance(name, str) and number is not None:
                found.setdefault(role, Token(name, number))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: can't be read: {error}; mend it, or remove it") from None
    return content if isinstance(content, dict) else {}
