"""The text of a row, whatever the rows are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from triax.common.errors import UserError


class Wanted(NamedTuple):
    """What a reader is asked for."""

    text_field: str | None
    """None: no text, the fields alone."""
    with_fields: bool
    """Whether the other fields of rows are wanted, too."""


Row = tuple[int, str, dict[str, Any]]
"""What a reader gives: the number in its file, from 1, the text, and the other fields if wanted."""


def row_text(row: Mapping[str, Any], where: str, text_field: str | None) -> str:
    """The text of one row; null is an empty text, and so is that of no field.

    Args:
        row: its fields by name.
        where: file and place, for the error.

    Raises:
        UserError: there is no such field, or it holds no text.
    """
    if text_field is None:
        return ""
    if text_field not in row:
        raise UserError(missing_field(where, text_field, list(row)))
    text = row[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f'{where}: "{text_field}" holds {type(text).__name__}, expected a string')
    return valid_unicode(text)


def missing_field(where: str, text_field: str, fields: Sequence[str]) -> str:
    """What to say where the field that should hold the text isn't among these."""
    found = ", ".join(fields[:10]) or "none"
    return (
        f'{where}: no field "{text_field}"; there are: {found}. '
        "Name the one that holds the text with --text-field (text_field in a config)"
    )


def valid_unicode(text: str) -> str:
    """Replace half surrogate pairs, which JSON escapes can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
