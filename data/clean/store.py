"""The files of a cleaning: pieces between the passes, their keys and records, the output.

A piece's record (`NUMBER.json`) is written last, and everything through a temporary name: a piece
that has one is whole, and any other is made again.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from triax.common.errors import UserError
from triax.common.files import make_folder, replace_bytes, write_errors
from triax.data.clean.document import Document
from triax.data.clean.duplicates import KeyedPiece, Keys, numbered
from triax.data.clean.statistics import Statistics

_TEXTS = ("text", "id", "source", "path", "language", "metadata")


class PieceFolder:
    """The pieces of one pass."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, name: str) -> bool:
        return self._path(name, "json").exists()

    def write_documents(self, name: str, documents: Sequence[Document]) -> None:
        write_file(self._path(name, "parquet"), parquet_bytes(documents))

    def read_documents(self, name: str) -> list[Document]:
        """Raises: UserError: the file is damaged or gone."""
        path = self._path(name, "parquet")
        try:
            rows = parquet.read_table(path, use_threads=False, pre_buffer=False).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{path}: damaged or gone ({error}); delete the output folder and clean anew"
            ) from None
        return [Document(**{**row, "metadata": json.loads(row["metadata"])}) for row in rows]

    def write_keys(self, name: str, piece: int, keys: Keys) -> None:
        """The keys with items numbered through all pieces, and those that the piece repeats."""
        write_file(self._path(name, "keys"), numbered(keys.keys, piece).tobytes())
        write_file(self._path(name, "repeated"), keys.repeated.astype("<u8").tobytes())
        if keys.signatures.size:
            buffer = io.BytesIO()
            np.save(buffer, keys.signatures)
            write_file(self._path(name, "signatures.npy"), buffer.getvalue())

    def keyed(self, name: str) -> KeyedPiece:
        return KeyedPiece(
            keys=self._path(name, "keys"),
            signatures=self._path(name, "signatures.npy"),
            num_documents=self.read_record(name)["num_documents"],
        )

    def repeated(self, name: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.fromfile(self._path(name, "repeated"), "<u8")

    def write_record(self, name: str, num_documents: int, statistics: Statistics) -> None:
        record = {"num_documents": num_documents, "statistics": statistics.to_json()}
        write_file(self._path(name, "json"), json.dumps(record).encode())

    def read_record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._path(name, "json").read_bytes())
        return record

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}.{suffix}"


def piece_name(number: int) -> str:
    return f"{number:06d}"


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the disk is full, or refuses otherwise.
    """
    with write_errors(path):
        replace_bytes(path, content, fsync=True)


def write_output(folder: Path, name: str, kind: str, documents: Sequence[Document]) -> None:
    """A file of the output; none for a piece that nothing is left of."""
    if not documents:
        return
    make_folder(folder)
    content = parquet_bytes(documents) if kind == "parquet" else json_lines(kind, documents)
    write_file(folder / f"{name}.{kind}", content)


def json_lines(kind: str, documents: Iterable[Document]) -> bytes:
    """Compressed lines; the same bytes for the same documents."""
    lines = [json.dumps(document.row(), ensure_ascii=False) + "\n" for document in documents]
    content = "".join(lines).encode("utf-8", "replace")
    if kind == "jsonl.gz":
        return gzip.compress(content, compresslevel=6, mtime=0)
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return bytes(buffer.getvalue())


def parquet_bytes(documents: Sequence[Document]) -> bytes:
    """One row a document; `metadata` is JSON."""
    columns: dict[str, list[str | None]] = {name: [] for name in _TEXTS}
    for document in documents:
        row = document.row()
        row["metadata"] = json.dumps(row["metadata"], default=str)
        for name, column in columns.items():
            column.append(row[name])
    schema = pyarrow.schema([(name, pyarrow.large_string()) for name in _TEXTS])
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.table(columns, schema=schema), buffer, compression="zstd", compression_level=1
    )
    return buffer.getvalue()
