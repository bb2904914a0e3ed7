"""Where the bytes of a URL are: S3, Google Cloud Storage and web servers by obstore, the Hugging
Face hub by its own library.

An answer that may be another one later (a server that is down, slow or busy) is a ConnectionError,
which `triax.data.remote.patience` waits out; every other error is for good.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from triax.common.errors import UserError
from triax.common.paths import scheme_of

_CLIENT: Any = {"timeout": "60s", "connect_timeout": "10s", "allow_http": True}
"""Of one request; a server without TLS is asked only where the address says so."""
_ONE_TRY: Any = {"max_retries": 0}
"""obstore would wait in silence."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a store, as it was found."""

    url: str
    size: int
    """In bytes."""
    version: str
    """Another one when the file is another one: its ETag, or when it was changed."""
    etag: str | None = None
    """Asked for with each read, where the store has one: a file that was replaced is refused."""

    @property
    def key(self) -> str:
        """Its place in its store."""
        return split_url(self.url)[1]


class Store(Protocol):
    """Files by their keys.

    All methods raise ConnectionError where another try may succeed, FileNotFoundError,
    PermissionError, and UserError for what can't be done at all.
    """

    def stat(self, key: str) -> RemoteFile:
        """One file."""
        ...

    def list(self, prefix: str, *, below: bool) -> list[RemoteFile]:
        """The files in a folder, and those of folders `below` it, in no order; empty where there
        is none."""
        ...

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Some bytes of a file, which is still the one that was found; or fewer, where the answer
        was cut short."""
        ...


def split_url(url: str) -> tuple[str, str]:
    """What a URL's store is told by, and the key of a file or folder in it.

    Raises:
        UserError: it names no store, or steps out of it.
    """
    scheme, rest = url.split("://", 1)
    root, _, key = ("", "", rest) if scheme == "hf" else rest.partition("/")
    if (not root and scheme != "hf") or ".." in key.split("/"):
        raise UserError(f"{url}: expected an address such as s3://BUCKET/FOLDER/FILE")
    return f"{scheme}://{root}", key.strip("/")


def store_of(url: str) -> Store:
    """The store that a URL is in.

    Raises:
        UserError: the library that reads it isn't installed, or its settings are wrong.
    """
    # A client has threads, which a forked process doesn't inherit.
    return _open(split_url(url)[0], os.getpid())


@lru_cache(maxsize=64)
def _open(root: str, _process: int) -> Store:
    return _Hub() if scheme_of(root) == "hf" else _Objects(root)


class _Objects:
    """By obstore. Credentials and addresses come from the environment (`AWS_...`, `GOOGLE_...`)."""

    def __init__(self, root: str) -> None:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise UserError(
                f"{root}: is read by obstore, which can't be imported: {error}; install it: "
                "pip install 'triax[remote]'"
            ) from None
        self._root = root
        try:
            self._store: Any = from_url(root, client_options=_CLIENT, retry_config=_ONE_TRY)
        except (BaseError, ValueError) as error:
            raise UserError(f"{root}: can't be used: {_first_line(error)}") from None

    def stat(self, key: str) -> RemoteFile:
        with _translated(f"{self._root}/{key}"):
            return self._file(self._store.head(key))

    def list(self, prefix: str, *, below: bool) -> list[RemoteFile]:
        if scheme_of(self._root) in ("http", "https"):
            raise UserError(
                f"{self._root}/{prefix}: a web server doesn't list its folders; name files"
            )
        with _translated(f"{self._root}/{prefix}"):
            if not below:
                found = self._store.list_with_delimiter(prefix or None)
                return [self._file(entry) for entry in found["objects"]]
            pages = self._store.list(prefix or None, chunk_size=1000)
            return [self._file(entry) for page in pages for entry in page]

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        from obstore import get

        options: Any = {"range": (start, stop)}
        if file.etag is not None:
            options["if_match"] = file.etag
        with _translated(file.url):
            return bytes(get(self._store, file.key, options=options).bytes())

    def _file(self, entry: Any) -> RemoteFile:
        etag, changed = entry.get("e_tag"), entry.get("last_modified")
        version = etag or (changed.isoformat() if changed else "")
        return RemoteFile(f"{self._root}/{entry['path']}", int(entry["size"]), version, etag)


class _Hub:
    """By `huggingface_hub`, which comes with `datasets`: `hf://datasets/OWNER/NAME/PATH`."""

    def __init__(self) -> None:
        from huggingface_hub import HfFileSystem

        self._files: Any = HfFileSystem(use_listings_cache=False)

    def stat(self, key: str) -> RemoteFile:
        with _translated(f"hf://{key}"):
            entry = self._files.info(key)
        if entry["type"] != "file":
            raise FileNotFoundError(key)
        return self._file(entry)

    def list(self, prefix: str, *, below: bool) -> list[RemoteFile]:
        with _translated(f"hf://{prefix}"):
            try:
                found = self._files.find(prefix, None if below else 1, detail=True)
            except FileNotFoundError:
                return []
            return [self._file(entry) for entry in found.values()]

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        with _translated(file.url):
            return bytes(self._files.cat_file(file.key, start=start, end=stop))

    @staticmethod
    def _file(entry: dict[str, Any]) -> RemoteFile:
        return RemoteFile(f"hf://{entry['name']}", int(entry["size"]), str(entry["blob_id"]))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """What libraries raise, by the three kinds that a Store's methods raise."""
    try:
        yield
    except (FileNotFoundError, PermissionError, UserError):
        raise
    except Exception as error:  # libraries of many back ends raise many kinds
        raise _kind(url, error) from error


def _kind(url: str, error: Exception) -> Exception:
    name, reason = type(error).__name__, _first_line(error)
    code = getattr(getattr(error, "response", None), "status_code", None)
    if name == "NotFoundError" or code == 404:
        return FileNotFoundError(reason)
    if name in ("PermissionDeniedError", "UnauthenticatedError") or code in (401, 403):
        return PermissionError(reason)
    if name == "PreconditionError":
        return UserError(
            f"{url}: was replaced by another file while it was read; put the former one back, or "
            "give the new one another name"
        )
    if name in ("InvalidPathError", "NotSupportedError", "UnknownConfigurationKeyError"):
        return UserError(f"{url}: can't be read: {reason}")
    return ConnectionError(reason)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
