"""Steps that look at one document: normalising, language, persons' data, lists, user's code."""

from __future__ import annotations

import ipaddress
import pkgutil
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from triax.common.errors import UserError
from triax.common.files import open_regular
from triax.data.clean.config import (
    BlockListConfig,
    FunctionConfig,
    LanguageConfig,
    NormaliseConfig,
    PiiConfig,
)
from triax.data.clean.document import Document
from triax.data.clean.extras import needs

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_STAND_IN_EMAIL = "email@example.com"
_STAND_IN_IP = "192.0.2.1"
"""Of a network that is reserved for documentation (RFC 5737)."""
_STAND_IN_CARD = "0000 0000 0000 0000"
_MOST_LIST_BYTES = 1 << 28


class Normalise:
    """Mends text that was decoded wrongly, and brings characters to one form. Drops nothing."""

    def __init__(self, config: NormaliseConfig) -> None:
        with needs("ftfy", "normalise"):
            import ftfy
        form = None if config.unicode == "as_it_is" else config.unicode
        self._options = ftfy.TextFixerConfig(
            normalization=form, unescape_html=False, explain=False, uncurl_quotes=False
        )
        self._fix = ftfy.fix_text

    def __call__(self, document: Document) -> str | None:
        text = document.text
        # ASCII can only be wrong in its line breaks and control characters.
        if not text.isascii() or _CONTROL.search(text):
            document.text = self._fix(text, self._options)
        return None if document.text.strip() else "empty"


class Language:
    """Notes the language of a document's beginning; drops those that aren't to be kept."""

    def __init__(self, config: LanguageConfig) -> None:
        with needs("py3langid", "language"):
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = sorted(set(config.keep) - set(self._identifier.labels))
        if unknown:
            raise UserError(
                f"language: py3langid knows no language {unknown[0]}; "
                f"there are {', '.join(sorted(self._identifier.labels))}"
            )
        self._config = config

    def __call__(self, document: Document) -> str | None:
        config = self._config
        language, probability = self._identifier.classify(document.text[: config.max_characters])
        document.language = language = str(language)
        if not config.keep:
            return None
        if language not in config.keep:
            return f"language_{language}"
        return "language_unsure" if probability < config.min_probability else None


class Pii:
    """Puts stand-ins in the place of e-mail addresses, public IPv4 addresses and card numbers."""

    def __init__(self, config: PiiConfig) -> None:
        self._kinds = frozenset(config.kinds)

    def __call__(self, document: Document) -> str | None:
        text = document.text
        if "email" in self._kinds and "@" in text:
            text = _EMAIL.sub(_STAND_IN_EMAIL, text)
        if "ip" in self._kinds:
            text = _IP.sub(_without_public_ip, text)
        if "card" in self._kinds:
            text = _CARD.sub(_without_card, text)
        document.text = text
        return None


def _without_public_ip(match: re.Match[str]) -> str:
    try:
        is_public = ipaddress.IPv4Address(match[0]).is_global
    except ValueError:
        is_public = False
    return _STAND_IN_IP if is_public else match[0]


def _without_card(match: re.Match[str]) -> str:
    digits = [int(char) for char in match[0] if char.isascii() and char.isdigit()]
    doubled = [digit if place % 2 else sum(divmod(2 * digit, 10)) for place, digit in _luhn(digits)]
    return _STAND_IN_CARD if sum(doubled) % 10 == 0 and any(digits) else match[0]


def _luhn(digits: list[int]) -> Iterable[tuple[int, int]]:
    """Each digit with its place from the right, from 1."""
    return zip(range(len(digits), 0, -1), digits, strict=True)


class BlockList:
    """Drops documents by the words that they hold, or by the host that they are from."""

    def __init__(self, config: BlockListConfig) -> None:
        self._hosts = frozenset(_entries(config.hosts))
        words = sorted(map(_folded, _entries(config.words)), key=lambda word: (-len(word), word))
        pattern = "|".join(map(re.escape, words))
        self._words = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)") if words else None
        self._min_words = config.min_words

    def __call__(self, document: Document) -> str | None:
        if self._hosts and self._is_listed(document.path):
            return "host"
        if self._words is None:
            return None
        found = islice(self._words.finditer(_folded(document.text)), self._min_words)
        return "words" if sum(1 for _ in found) == self._min_words else None

    def _is_listed(self, path: str) -> bool:
        try:
            host = urlsplit(path).hostname or ""
        except ValueError:
            return False
        parts = host.split(".")
        return any(".".join(parts[start:]) in self._hosts for start in range(len(parts)))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _entries(path: str | None) -> list[str]:
    """The lines of a list, without empty ones and those that begin with #."""
    if path is None:
        return []
    try:
        with open_regular(Path(path)) as file:
            text = file.read(_MOST_LIST_BYTES).decode()
    except OSError as error:
        raise UserError(
            f"{path}: can't be read: {error.strerror}; a block list is a file"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a block list has one entry a line") from None
    lines = map(str.strip, text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class Function:
    """The user's own function, as `FunctionConfig` says."""

    def __init__(self, config: FunctionConfig) -> None:
        self._name = config.function
        try:
            function = pkgutil.resolve_name(config.function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the step's function {self._name} can't be imported: {error}; its module has to "
                "be installed, or its folder in PYTHONPATH"
            ) from error
        if not callable(function):
            raise UserError(f"the step's function {self._name} can't be called")
        self._function = cast(Callable[[Document], Any], function)

    def __call__(self, document: Document) -> str | None:
        try:
            verdict = self._function(document)
        except Exception as error:  # of any kind: it is not ours
            raise UserError(
                f"the step's function {self._name} failed at {document.id}: "
                f"{type(error).__name__}: {error}"
            ) from error
        document.text = document.text.encode("utf-8", "replace").decode()
        if verdict is None or verdict is True:
            return None
        return verdict if isinstance(verdict, str) and verdict else "function"
