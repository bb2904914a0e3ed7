"""What an INPUT means: a file, a folder, a glob, the Python standard library, or a dataset name.

`python-stdlib` is the running Python's own source: real text that is on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder
from triax.common.paths import expand, url_of
from triax.data.prepare.saved import saved_files
from triax.data.remote.files import list_url, open_remote, stat_url
from triax.data.remote.stores import RemoteFile

STDLIB = "python-stdlib"
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_DATASET = re.compile(r"(?P<name>[\w.-]{1,96}(/[\w.-]{1,96})?)(:(?P<config>[\w.-]+))?", re.ASCII)
_FILE_SUFFIX = re.compile(
    r"\.(txt|md|py|html?|jsonl?|ndjson|parquet|arrow|warc|tar|csv|gz|bz2|xz|zst)$", re.I
)


@dataclass(frozen=True)
class TextFile:
    """A file to read."""

    path: Path
    must_be_text: bool
    """Whether it is an error if it is no UTF-8 text; files found in a folder are then left out."""
    remote: RemoteFile | None = None
    """Where it is read from, if not here; `path` has its name then."""

    @property
    def name(self) -> str:
        """What it is called to people, and what its documents say of where they are from."""
        return str(self.path) if self.remote is None else self.remote.url

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if self.remote is None else self.remote.size

    @property
    def fingerprint(self) -> list[str | int]:
        """Other values when it is another file, or may be."""
        if self.remote is not None:
            return [self.remote.url, self.remote.size, self.remote.version]
        status = self.path.stat()
        return [os.fspath(self.path.absolute()), status.st_size, status.st_mtime_ns]

    @property
    def place(self) -> str:
        """The same for the same file, over whatever links."""
        return os.path.realpath(self.path) if self.remote is None else self.remote.url

    def open(self) -> BinaryIO:
        """Its bytes, from the beginning."""
        return self.path.open("rb") if self.remote is None else open_remote(self.remote)


@dataclass(frozen=True)
class DatasetName:
    """A dataset of the `datasets` library, for instance of the Hugging Face hub."""

    name: str
    config: str | None


Source = list[TextFile] | DatasetName


def resolve(text: str) -> Source:
    """Find what one INPUT names; the order of files is the same on every call.

    `~` and `$NAME` are put in (see `expand`). A folder is read with all its subfolders, linked
    ones too, in the order of their paths and without hidden entries; what `datasets.save_to_disk`
    wrote by its own list of files; a folder that is met again
    over a link is not read again, nor is a file. `NAME` or `NAME:CONFIG` is looked for in
    `datasets` when there is no file of that name. Write `./python-stdlib` for a folder of
    that name. Of a store (`s3://BUCKET/...`, `gs://`, `hf://datasets/...`, `https://`) it is a
    file, a folder or a glob as here; a web server doesn't list, so there it is a file.

    Raises:
        UserError: no file matches, or the text cannot be a dataset's name.
    """
    if text == STDLIB:
        return _stdlib_files()
    if (url := url_of(text)) is not None:
        return _remote_files(url)
    path = expand(text)
    if is_file(path):
        return [TextFile(path, must_be_text=True)]
    if is_folder(path):
        return _filled(text, [TextFile(file, must_be_text=False) for file in _walk(path)])
    if re.search(r"[*?[]", os.fspath(path)):
        return _filled(text, _glob(path))
    match = _DATASET.fullmatch(text)
    looks_local = text.startswith(".") or ("/" in text and is_folder(path.parent))
    if match is None or _FILE_SUFFIX.search(text) or looks_local:
        raise UserError(f"{text}: no such file or folder; check the path")
    return DatasetName(match["name"], match["config"])


def resolve_all(inputs: Sequence[str]) -> list[Source]:
    """Find what all INPUTs name together, and nothing twice.

    Raises:
        UserError: as `resolve`; or a file, over whatever links, or a dataset is given twice.
    """
    sources = [resolve(text) for text in inputs]
    given_by: dict[str, int] = {}
    for number, source in enumerate(sources):
        for thing in _things(source):
            other = given_by.setdefault(thing, number)
            if other != number:
                raise UserError(
                    f"{thing} is given twice, by {inputs[other]} and by {inputs[number]}: its "
                    "documents would count double; leave out one of the two, or copy the file "
                    "if that is meant"
                )
    return sources


def _things(source: Source) -> list[str]:
    if isinstance(source, DatasetName):
        return [f"the dataset {source.name}{f':{source.config}' if source.config else ''}"]
    return [file.place for file in source]


def input_sizes(inputs: Sequence[str]) -> dict[str, int]:
    """The bytes of each file of the inputs, by its path as it was found.

    Raises:
        UserError: as `resolve_all`.
    """
    sources = [source for source in resolve_all(inputs) if not isinstance(source, DatasetName)]
    return {file.name: file.size for files in sources for file in files}


def inputs_fingerprint(inputs: Sequence[str]) -> str:
    """A short hash of the inputs' names and of their files' paths, sizes and times of change.

    Contents are not read: a hub's dataset counts by its name alone.

    Raises:
        UserError: as `resolve`.
    """
    digest = hashlib.sha256()
    for text, source in zip(inputs, resolve_all(inputs), strict=True):
        digest.update(json.dumps(["input", text]).encode())
        if isinstance(source, DatasetName):
            continue
        for file in source:
            digest.update(json.dumps(file.fingerprint).encode())
    return digest.hexdigest()[:16]


def _filled(text: str, files: list[TextFile]) -> list[TextFile]:
    if not files:
        raise UserError(f"{text}: no files found there")
    once: dict[str, TextFile] = {}
    for file in files:
        once.setdefault(file.place, file)
    return list(once.values())


def _remote_files(url: str) -> list[TextFile]:
    """Files of a store, in the order in which those of a local folder are read."""
    fixed = _fixed_part(url)
    if fixed == url:
        file = stat_url(url)
        if file is not None:
            return [_in_store(file, must_be_text=True)]
        found = list_url(url)
    else:
        found = _matching(url, list_url(fixed))
    below = [file for file in found if not _is_hidden(file.url.removeprefix(fixed))]
    saved = next((f for f in below if f.url.endswith("/dataset_dict.json")), None)
    if saved is not None:
        folder = saved.url.rpartition("/")[0]
        raise UserError(f"{folder}: has several splits; name the folder of one of them")
    return _filled(url, [_in_store(file, must_be_text=fixed != url) for file in below])


def _matching(glob: str, files: list[RemoteFile]) -> list[RemoteFile]:
    """The files that a glob names, or a folder of which it does; in the order of what it names."""
    pattern = re.compile(_glob_pattern(glob))
    found = []
    for file in files:
        parts = file.url.split("/")
        named = (parts[:end] for end in range(1, len(parts) + 1))
        entry = next((each for each in named if pattern.fullmatch("/".join(each))), None)
        if entry is not None:
            found.append((entry, file))
    return [file for _, file in sorted(found, key=lambda pair: pair[0])]


def _in_store(file: RemoteFile, *, must_be_text: bool) -> TextFile:
    return TextFile(Path(file.url.rpartition("/")[2]), must_be_text, file)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _fixed_part(url: str) -> str:
    """The folder that all files of a glob are below; all of a URL that is none."""
    head = re.split(r"[*?[]", url, maxsplit=1)[0]
    return url if head == url or url.startswith("http") else head.rpartition("/")[0]


def _glob_pattern(url: str) -> str:
    """A glob as a regular expression: `**/` is any folders, `*` and `?` stay within a name."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^]]+\])", url)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part, part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def _glob(pattern: Path) -> list[TextFile]:
    # pathlib's ** follows no links, so that a loop of links ends; glob.glob's does.
    found = Path(pattern.anchor or ".").glob(os.fspath(pattern.relative_to(pattern.anchor)))
    files: dict[Path, TextFile] = {}
    for path in sorted(found):
        if any(part.startswith(".") and part not in pattern.parts for part in path.parts):
            continue
        if is_folder(path):
            files.update({file: TextFile(file, must_be_text=False) for file in _walk(path)})
        elif is_file(path):
            files[path] = TextFile(path, must_be_text=True)
    return list(files.values())


def _walk(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Regular files below a folder in a fixed order, hidden ones and folders `without` left out."""
    met: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        if (saved := saved_files(Path(parent), names)) is not None:
            folders.clear()
            yield from saved
            continue
        met.add(os.path.realpath(parent))
        visible = sorted(n for n in folders if not n.startswith(".") and n not in without)
        # A link to a folder further up would lead on for ever, one to a sibling give it twice.
        folders[:] = [name for name in visible if _is_new(Path(parent, name), met)]
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and is_file(path):
                yield path


def _is_new(folder: Path, met: set[str]) -> bool:
    """Whether a folder isn't among those met yet; it is then."""
    place = os.path.realpath(folder)
    is_new = place not in met
    met.add(place)
    return is_new


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}; make it readable")


def _stdlib_files() -> list[TextFile]:
    """The source files, shuffled by a hash of their names: neighbours are about other things."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in _walk(root, without=_NOT_STDLIB) if path.suffix == ".py"]
    wanted = [path.relative_to(root).as_posix() for path in paths]
    if not wanted:
        raise UserError(
            f"{STDLIB}: this Python has no source files of its standard library in {root}; "
            "name files of your own instead"
        )
    shuffled = sorted(wanted, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [TextFile(root / name, must_be_text=False) for name in shuffled]
