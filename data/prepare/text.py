"""Documents from files of many formats, also compressed; or from `datasets`.

| suffix | a document is |
|---|---|
| `.jsonl` `.json` `.ndjson` | the text field of a line, each line one JSON object |
| `.parquet` `.arrow` | the text field of a row |
| `.html` `.htm` | the page's main text |
| `.warc` | the main text of a page of the crawl |
| `.tar` | a WebDataset sample's `.txt`, or the text field of its `.json` |
| any other | the whole file |

Each may be compressed: `.gz`, `.bz2`, `.xz` or `.zst` is added to the name. A text of more than
`MAX_DOCUMENT` characters becomes several documents, so that no file, however much it unfolds to,
is held in memory as a whole.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import logging
import lzma
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple, cast

from triax.common.errors import UserError
from triax.data.prepare.archives import read_arrow, read_tar
from triax.data.prepare.inputs import DatasetName, Source, TextFile, resolve_all
from triax.data.prepare.rows import Row, Wanted, missing_field, row_text
from triax.data.prepare.web import read_html, read_warc

_log = logging.getLogger(__name__)
MAX_DOCUMENT = 1 << 24
"""Characters of a document, about 4 million tokens; a longer text is cut behind a line near it."""
_MAX_BYTES = 1 << 28
"""Of one JSON line, or of a parquet file that has to be unpacked whole."""
_PARQUET_ROWS = 1024
"""Rows held in memory at a time."""
_ONE_A_LINE = "expected JSON lines: one whole object in each line"


class _LeftOutError(Exception):
    """A file that is no text to train on; says why."""


class Record(NamedTuple):
    """A document, and where it is from."""

    text: str
    origin: str
    """The file's path as it was found, or the dataset's name."""
    number: int
    """Of its line or row there, from 1."""
    part: int
    """From 0; above that only in a text of more than `MAX_DOCUMENT` characters."""
    fields: dict[str, Any]
    """The row's other fields; none if they weren't asked for."""


def iter_documents(inputs: Sequence[str], text_field: str = "text") -> Iterator[str]:
    """The texts of `iter_records`."""
    return (record.text for record in iter_records(inputs, text_field))


def iter_records(
    inputs: Sequence[str], text_field: str = "text", *, with_fields: bool = False
) -> Iterator[Record]:
    """The documents of all inputs, one after another, in the same order on every call.

    Streams: a file is open only while it is read. Empty documents are left out. Files that
    are no UTF-8 are left out if they were found in a folder (with a warning), and are errors
    if they were named; so are `.json` files whose first line is no object with the text field,
    like a `package.json`.

    Args:
        inputs: each as `triax.data.prepare.inputs.resolve` takes it.
        text_field: where JSON lines, parquet rows and datasets hold the text.
        with_fields: read what else stands in those rows.

    Raises:
        UserError: an input is missing, damaged or has no such field; names file and line.
    """
    # Here and not in the generator: a wrong input is found before anything is read.
    return _records(resolve_all(inputs), Wanted(text_field, with_fields))


def iter_rows(inputs: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of all inputs, in the same order on every call: where each is from, as "FILE, line
    3", and its fields.

    Raises:
        UserError: an input is missing or damaged, or holds no rows but text.
    """
    wanted = Wanted(None, with_fields=True)
    for source in resolve_all(inputs):
        is_dataset = isinstance(source, DatasetName)
        rows = (
            _dataset_rows(source, wanted)
            if isinstance(source, DatasetName)
            else _files_rows(source, wanted)
        )
        for origin, (number, text, fields) in rows:
            if text:
                raise UserError(
                    f"{origin}: plain text, and rows are expected: JSON lines or parquet"
                )
            kind = "row" if is_dataset or ".parquet" in origin.lower() else "line"
            yield f"{origin}, {kind} {number}", fields


def _records(sources: Sequence[Source], wanted: Wanted) -> Iterator[Record]:
    for source in sources:
        rows = (
            _dataset_rows(source, wanted)
            if isinstance(source, DatasetName)
            else _files_rows(source, wanted)
        )
        for origin, (number, document, fields) in rows:
            for part, text in enumerate(_parts(document)):
                if text:
                    yield Record(text, origin, number, part, fields)


def _parts(document: str) -> Iterator[str]:
    """A document, or one that is too long in several parts, cut behind lines where it has any."""
    start = 0
    while len(document) - start > MAX_DOCUMENT:
        end = _end_of_part(document, start)
        yield document[start:end]
        start = end
    yield document[start:]


def _end_of_part(text: str, start: int) -> int:
    end = start + MAX_DOCUMENT
    return text.rfind("\n", start + MAX_DOCUMENT // 2, end) + 1 or end


def _files_rows(files: Sequence[TextFile], wanted: Wanted) -> Iterator[tuple[str, Row]]:
    for file in files:
        origin = file.name
        try:
            for row in _file_rows(file, wanted):
                yield origin, row
        except _LeftOutError as error:
            _log.warning("%s: left out, %s", file.name, error)


def _file_rows(file: TextFile, wanted: Wanted) -> Iterator[Row]:
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    unpack = _OPENERS.get(suffixes[-1]) if suffixes else None
    kind = suffixes if unpack is None else suffixes[:-1]
    read = READERS.get(kind[-1], _read_whole) if kind else _read_whole
    try:
        with file.open() if unpack is None else unpack(file) as stream:
            yield from read(stream, file, wanted)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{file.name}: cannot be read: {error}; if it is damaged, fetch it again"
        ) from None


def _unpacked(unpack: Callable[[BinaryIO], Any], file: TextFile) -> BinaryIO:
    """What unpacks a file, which closes with it."""
    packed = file.open()
    stream = unpack(packed)
    weakref.finalize(stream, packed.close)
    return cast(BinaryIO, stream)


def _open_zstd(file: TextFile) -> BinaryIO:
    import pyarrow

    # pyarrow comes with `datasets`, and reports a file cut short; `zstandard` ends silently.
    source = str(file.path) if file.remote is None else pyarrow.PythonFile(file.open(), mode="r")
    return io.BufferedReader(pyarrow.input_stream(source, compression="zstd"))


def _read_whole(stream: BinaryIO, file: TextFile, _wanted: Wanted) -> Iterator[Row]:
    """The file's text; in several parts if it is long, which are read one by one."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    part, number = "", 1
    while True:
        try:
            part += text.read(MAX_DOCUMENT + 1 - len(part))
        except UnicodeDecodeError:
            if file.must_be_text:
                raise UserError(
                    f"{file.name}: not UTF-8 text; convert it or leave it out"
                ) from None
            behind = " behind what was read" if number > 1 else ""
            raise _LeftOutError(f"it is not UTF-8 text{behind}") from None
        if len(part) <= MAX_DOCUMENT:
            break
        end = _end_of_part(part, 0)
        yield number, part[:end], {}
        part, number = part[end:], number + 1
    yield number, part, {}


def _read_json_lines(stream: BinaryIO, file: TextFile, wanted: Wanted) -> Iterator[Row]:
    number = 0
    # Found in a folder, and not called JSON lines: it may be any program's.
    may_be_other = not file.must_be_text and ".json" in map(str.lower, file.path.suffixes)
    while line := stream.readline(_MAX_BYTES + 1):
        number += 1
        where = f"{file.name}, line {number}"
        if len(line) > _MAX_BYTES:
            raise UserError(f"{where}: longer than {_MAX_BYTES >> 20} MiB, {_ONE_A_LINE}")
        if not line.strip():
            continue
        try:
            row = _json_object(line.removeprefix(codecs.BOM_UTF8), where)
            text = row_text(row, where, wanted.text_field)
            yield number, text, _other_fields(row, wanted)
        except UserError as error:
            if may_be_other:
                reason = str(error).removeprefix(f"{where}: ")
                raise _LeftOutError(f"it holds no documents in JSON lines: {reason}") from None
            raise
        may_be_other = False


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = _json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON object: {error}; {_ONE_A_LINE}") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise UserError(f"{where}: expected a JSON object, got {kind}; {_ONE_A_LINE}")
    return row


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Python refuses whole numbers of more than 4,300 digits; only the text is wanted here.
        return json.loads(line, parse_int=float)


def _other_fields(row: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    if not wanted.with_fields:
        return {}
    return {name: value for name, value in row.items() if name != wanted.text_field}


def _read_parquet(stream: BinaryIO, source: TextFile, wanted: Wanted) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    path, text_field = source.name, wanted.text_field
    try:
        file = parquet.ParquetFile(_seekable(stream, source.name))
        if text_field is not None and text_field not in file.schema_arrow.names:
            raise UserError(missing_field(path, text_field, file.schema_arrow.names))
        number = 0
        columns = None if wanted.with_fields or text_field is None else [text_field]
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                text = row_text(row, f"{path}, row {number}", text_field)
                yield number, text, _other_fields(row, wanted)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged or no parquet file: {error}") from None


def _seekable(stream: BinaryIO, path: str) -> BinaryIO:
    """Parquet is read from its end; a decompressed stream has to be held in memory for that."""
    if isinstance(stream, io.BufferedReader) and stream.seekable():
        return stream
    content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(
            f"{path}: unpacks to more than {_MAX_BYTES >> 20} MiB, and parquet can only be read "
            "from its end; unpack it first (parquet compresses by itself)"
        )
    return io.BytesIO(content)


def _dataset_rows(source: DatasetName, wanted: Wanted) -> Iterator[tuple[str, Row]]:
    # Takes seconds to import, and most runs read files.
    import datasets  # type: ignore[import-untyped]

    title = source.name if source.config is None else f"{source.name}:{source.config}"
    try:
        rows = datasets.load_dataset(source.name, source.config, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            text = row_text(row, f"{title}, row {number}", wanted.text_field)
            yield title, (number, text, _other_fields(row, wanted))
    except UserError:
        raise
    except Exception as error:  # a library of many back ends raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{title}: no such file or folder, and `datasets` cannot load it: {reason}"
        ) from error


_OPENERS: dict[str, Callable[[TextFile], BinaryIO]] = {
    ".gz": partial(_unpacked, gzip.open),
    ".bz2": partial(_unpacked, bz2.open),
    ".xz": partial(_unpacked, lzma.open),
    ".zst": _open_zstd,
}
READERS: dict[str, Callable[[BinaryIO, TextFile, Wanted], Iterator[Row]]] = {
    ".arrow": read_arrow,
    ".htm": read_html,
    ".html": read_html,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
    ".tar": read_tar,
    ".warc": read_warc,
}
"""By suffix, how the texts of an open file are read; of any other the file is one text."""
