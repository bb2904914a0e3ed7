"""manifest.json: what makes a folder of shards a checkpoint. It is written last.

It names every file with its size and checksum, and carries the caller's record. Its own checksum
covers the record, so that a damaged cursor or step is found too. Checksums find damage; they do
not make a stranger's file trustworthy. Imports no torch.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, Field, NonNegativeInt, ValidationError

from triax.common.errors import UserError
from triax.common.files import open_regular, read_regular
from triax.common.section import Section
from triax.common.showing import printable

MANIFEST_FILE = "manifest.json"
_READ_BYTES = 1 << 22
_MOST_BYTES = 1 << 28
"""Of the manifest itself: some million files."""


def _file_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"{name!r} is no file of this folder")
    return name


def _timestamp(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("the time has no zone")
    return text


class FileEntry(Section):
    """What a file must be."""

    bytes: NonNegativeInt
    xxh3_128: str = Field(pattern=r"^[0-9a-f]{32}$")


class Manifest(Section):
    """A checkpoint's contents: the caller's record, and every file."""

    format: Literal["triax-checkpoint"] = "triax-checkpoint"
    format_version: Literal[1] = 1
    triax: str
    torch: str
    """Versions that wrote it."""
    step: NonNegativeInt
    created: Annotated[str, AfterValidator(_timestamp)]
    """ISO 8601, UTC."""
    record: dict[str, Any]
    files: dict[Annotated[str, AfterValidator(_file_name)], FileEntry]

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def digest(self) -> str:
        """Of all files' contents, whatever the record says."""
        files = sorted((name, entry.xxh3_128) for name, entry in self.files.items())
        return xxhash.xxh3_128_hexdigest(repr(files).encode())

    @property
    def age_seconds(self) -> float:
        """Seconds since it was written."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()


def make_manifest(step: int, record: dict[str, Any], files: dict[str, FileEntry]) -> Manifest:
    """The manifest of files that have just been written."""
    return Manifest(
        triax=version("triax"),
        torch=version("torch"),
        step=step,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        record=record,
        files=dict(sorted(files.items())),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, durably."""
    body = manifest.model_dump()
    text = json.dumps({"xxh3_128": _checksum_of(body), "manifest": body}, indent=1)
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    path = folder / MANIFEST_FILE
    try:
        outer = json.loads(read_regular(path, _MOST_BYTES))
        body = outer["manifest"]
        if body["format_version"] != 1:
            raise UserError(
                f"{path}: format version {body['format_version']!r}, this triax reads version 1"
            )
        if outer["xxh3_128"] != _checksum_of(body):
            raise ValueError("its checksum does not match its contents")
        return Manifest.model_validate(body)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a checkpoint: it has no {MANIFEST_FILE}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"]))
        raise UserError(f"{path}: damaged: {where}: {first['msg']}") from error
    except UserError:
        raise
    except (KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not a manifest ({error!r})") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _checksum_of(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128(canonical.encode()).hexdigest()


def seal(path: Path) -> FileEntry:
    """Make a file durable, and return its size and checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, xxh3_128=_checksum(file))


def check_file(path: Path, expected: FileEntry, *, contents: bool) -> str | None:
    """What is wrong with a file, or None; `contents` reads all of it, else only the size counts."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.bytes:
                return f"{path.name}: {size:,} bytes, expected {expected.bytes:,}"
            if contents and _checksum(file) != expected.xxh3_128:
                return f"{path.name}: damaged: its contents do not match their checksum"
    except FileNotFoundError:
        return f"{path.name}: missing"
    except OSError as error:
        return f"{path.name}: cannot be read: {error.strerror}"
    return None


def _checksum(file: Any) -> str:
    checksum = xxhash.xxh3_128()
    while block := file.read(_READ_BYTES):
        checksum.update(block)
    return checksum.hexdigest()
