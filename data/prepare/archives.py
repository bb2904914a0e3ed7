"""Documents in archives: WebDataset's `.tar`, and what `datasets.save_to_disk` writes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, BinaryIO

from triax.common.errors import UserError
from triax.data.prepare.inputs import TextFile
from triax.data.prepare.rows import Row, Wanted, missing_field, row_text, valid_unicode

_MAX_MEMBER = 1 << 28
_TEXTS = ("txt", "text", "md")
"""Endings of a sample's text; in this order, should it have several."""


def read_tar(stream: BinaryIO, file: TextFile, wanted: Wanted) -> Iterator[Row]:
    """The samples of a WebDataset shard that have a text.

    Neighbouring files whose names are alike up to the first dot are a sample. Its text is its
    `.txt`, else the text field of its `.json`, whose other fields are the sample's; other files
    (pictures, sound) are passed over. A sample's number is that of its place in the shard.

    Raises:
        UserError: the archive is damaged, a text is no UTF-8, or no sample has a text.
    """
    number, num_texts = 0, 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            members = (member for member in archive if member.isreg())
            for key, parts in groupby(members, key=lambda member: _key(member.name)):
                number += 1
                sample = {
                    ending: _content(archive, member, f"{file.name}, {member.name}")
                    for member in parts
                    if (ending := _ending(member.name)) in (*_TEXTS, "json")
                }
                text, fields = _text_of(sample, f"{file.name}, {key}", wanted)
                if text is not None:
                    num_texts += 1
                    yield number, text, {"key": key, **fields} if wanted.with_fields else {}
    except tarfile.TarError as error:
        raise UserError(f"{file.name}: damaged or no tar file: {error}; fetch it again") from None
    if not num_texts:
        raise UserError(
            f"{file.name}: none of its {number:,} samples has a .txt, or a .json with a field "
            f'"{wanted.text_field}"; name the field that holds the text with --text-field'
        )


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if member.size > _MAX_MEMBER:
        raise UserError(f"{where}: larger than {_MAX_MEMBER >> 20} MiB; store it as a file")
    content = archive.extractfile(member)
    assert content is not None
    try:
        return content.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text; convert it or leave it out") from None


def _text_of(
    sample: Mapping[str, str], where: str, wanted: Wanted
) -> tuple[str | None, dict[str, Any]]:
    fields: dict[str, Any] = {}
    if "json" in sample:
        try:
            fields = json.loads(sample["json"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}.json: no JSON object: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{where}.json: expected an object, got {type(fields).__name__}")
    own = next((sample[ending] for ending in _TEXTS if ending in sample), None)
    if own is None and wanted.text_field in fields:
        own = row_text(fields, f"{where}.json", wanted.text_field)
    fields = {name: value for name, value in fields.items() if name != wanted.text_field}
    return None if own is None else valid_unicode(own), fields


def read_arrow(stream: BinaryIO, file: TextFile, wanted: Wanted) -> Iterator[Row]:
    """The rows of an Arrow file, in either of its two formats.

    Raises:
        UserError: it is damaged, or has no such field.
    """
    import pyarrow
    from pyarrow import ipc

    number = 0
    try:
        for batch in _batches(ipc, stream):
            names, field = batch.schema.names, wanted.text_field
            if field is not None and field not in names:
                raise UserError(missing_field(file.name, field, names))
            columns = names if wanted.with_fields or field is None else [field]
            for row in batch.select(columns).to_pylist():
                number += 1
                text = row_text(row, f"{file.name}, row {number}", field)
                row.pop(field, None)
                yield number, text, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{file.name}: damaged or no Arrow file: {error}") from None


def _batches(ipc: Any, stream: BinaryIO) -> Iterator[Any]:
    """Record batches, one in memory at a time: `datasets` writes streams, others also files."""
    if stream.seekable():
        begin = stream.read(6)
        stream.seek(0)
        if begin == b"ARROW1":
            reader = ipc.open_file(stream)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            return
    yield from ipc.open_stream(stream)
