"""What mkdocs does besides: it makes the reference, and takes in files of the repository that pages
link to."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from reference import PAGES

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)([^)]*)\)")
_SOURCE = "source"
"""The site's folder for files of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, and what pages link to outside of `docs/`."""
    for uri, page in PAGES.items():
        files.append(File.generated(config, uri, content=page()))
    for path in sorted({path for file in files.documentation_pages() for path in _outside(file)}):
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, f"{_SOURCE}/{path}.txt", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links out of `docs/` at the site's copies."""

    def replaced(match: re.Match[str]) -> str:
        path = _path_outside(page.file.src_uri, match[1])
        if path is None:
            return match[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{_SOURCE}/{path}.txt)"

    return _LINK.sub(replaced, markdown)


def _outside(file: File) -> set[str]:
    found = (_path_outside(file.src_uri, each[1]) for each in _LINK.finditer(file.content_string))
    return {path for path in found if path is not None}


def _path_outside(page: str, link: str) -> str | None:
    """The file of the repository that a page links to; None for one of the site's.

    Raises:
        PluginError: there is no such file.
    """
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if path.startswith("docs/"):
        return None
    if not (ROOT / path).is_file():
        raise PluginError(f"{page} links to {link}, which isn't there")
    return path
