"""Text of web pages: `.html` files, and the pages of a crawl in `.warc`.

trafilatura finds a page's main text and leaves menus and footers out; warcio reads crawls. Both
come with `triax[web]`. A page without text gives no document.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from triax.common.errors import UserError
from triax.data.prepare.inputs import TextFile
from triax.data.prepare.rows import Row, Wanted

_log = logging.getLogger(__name__)
_MAX_PAGE = 1 << 24
"""Bytes of a page; parsing takes some twenty times as many, and longer ones are no prose."""
_HTML = ("text/html", "application/xhtml+xml")


@contextmanager
def _needs_web(path: object) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{path}: web pages need trafilatura and warcio, which can't be imported: {error}; "
            "install them: pip install 'triax[web]'"
        ) from None


def read_html(stream: BinaryIO, file: TextFile, _wanted: Wanted) -> Iterator[Row]:
    """The main text of one page.

    Raises:
        UserError: trafilatura isn't installed.
    """
    page = stream.read(_MAX_PAGE + 1)
    if len(page) > _MAX_PAGE:
        _log.warning("%s: left out, a page of more than %d MiB", file.name, _MAX_PAGE >> 20)
        return
    yield 1, main_text(page, file.name), {}


def main_text(page: bytes, where: object) -> str:
    """What a page says, without what surrounds it; empty if it says nothing.

    Args:
        where: the page's place, for messages.

    Raises:
        UserError: trafilatura isn't installed.
    """
    with _needs_web(where):
        import trafilatura
    if not page.strip():
        return ""
    try:
        return trafilatura.extract(page, include_comments=False, deduplicate=False) or ""
    except (ValueError, TypeError, AttributeError, RecursionError, LookupError) as error:
        _log.warning("%s: left out, its HTML can't be read: %s", where, error)
        return ""


def read_warc(stream: BinaryIO, file: TextFile, wanted: Wanted) -> Iterator[Row]:
    """The main text of each page of a crawl that was answered with HTML and code 200.

    With fields, a page's are `url` and `date`.

    Raises:
        UserError: the crawl is damaged, or trafilatura or warcio isn't installed.
    """
    with _needs_web(file.name):
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    number = 0
    try:
        for record in ArchiveIterator(stream):
            number += 1
            if record.rec_type != "response" or not _is_page(record):
                continue
            page = record.content_stream().read(_MAX_PAGE + 1)
            url = record.rec_headers.get_header("WARC-Target-URI") or ""
            if len(page) > _MAX_PAGE:
                _log.warning("%s: a page of more than %d MiB is left out", url, _MAX_PAGE >> 20)
                continue
            date = record.rec_headers.get_header("WARC-Date")
            fields = {"url": url, "date": date} if wanted.with_fields else {}
            yield number, main_text(page, f"{file.name}, record {number}"), fields
    except ArchiveLoadFailed as error:
        raise UserError(
            f"{file.name}, record {number + 1}: damaged or no WARC file: {error}; fetch it again"
        ) from None
    if not number:
        raise UserError(f"{file.name}: no WARC records in it; fetch it again")


def _is_page(record: Any) -> bool:
    headers = record.http_headers
    if headers is None or headers.get_statuscode() != "200":
        return False
    return str(headers.get_header("Content-Type", "")).lower().startswith(_HTML)
