"""Collect the documentation that this machine has: texts/python.jsonl and texts/system.jsonl.

    python texts.py --output texts

Python's is in every Python: what `help()` shows of the standard library's modules, classes and
functions, and the language reference. Manual pages and /usr/share/doc are taken where there are
some, up to a limit, in an order that depends on their paths alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import inspect
import io
import json
import pkgutil
import pydoc
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from types import ModuleType
from typing import Any

DO_SOMETHING_WHEN_IMPORTED = {"antigravity", "this", "idlelib", "turtledemo", "lib2to3", "test"}
NEED_A_SCREEN = {"tkinter", "turtle"}
PACKAGES = "asyncio collections concurrent email html http importlib json logging"
PACKAGES += " multiprocessing os unittest urllib xml xmlrpc"
"""Those whose modules are read too."""
MOST_SYSTEM_CHARACTERS = 1_000_000
MOST_CHARACTERS_A_FILE = 30_000
MOST_OF_A_NAME = 5
"""Files whose names begin with the same word: one program may have thousands of pages."""
Row = dict[str, str]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--short", action="store_true", help="a few modules, to try it")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    names = ["builtins", "heapq", "json", "math", "os", "random"] if args.short else module_names()
    python = [*language_reference(), *(row for name in names for row in documents_of(name))]
    write(args.output / "python.jsonl", python[:: 4 if args.short else 1])
    write(args.output / "system.jsonl", system_documents(100_000 if args.short else None))


def write(path: Path, rows: Iterator[Row] | list[Row]) -> None:
    """A document in each line; no file where there is none."""
    num_documents = num_characters = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            num_documents += 1
            num_characters += len(row["text"])
    if num_documents == 0:
        path.unlink()
    print(f"{path}: {num_documents:,} documents, {num_characters:,} characters")


def module_names() -> list[str]:
    """The public modules of the standard library, and those inside its packages."""
    skipped = DO_SOMETHING_WHEN_IMPORTED | NEED_A_SCREEN
    names = [name for name in sys.stdlib_module_names if not name.startswith("_")]
    names = [name for name in names if name not in skipped]
    for package in PACKAGES.split():
        paths = getattr(importlib.import_module(package), "__path__", ())
        inside = [found.name for found in pkgutil.iter_modules(paths)]
        names += [f"{package}.{name}" for name in inside if not name.startswith("_")]
    return sorted({*names, "os.path"})


def language_reference() -> Iterator[Row]:
    """The chapters behind `help("NAME")`."""
    for name, text in sorted(topics.topics.items()):
        yield {"id": f"reference/{name}", "source": "reference", "text": text}


def documents_of(name: str) -> Iterator[Row]:
    """A document for the module, and one for each of its public functions and classes."""
    module = imported(name)
    if module is None:
        return
    if module.__doc__:
        text = f"The module {name}.\n\n{inspect.cleandoc(module.__doc__)}\n"
        yield {"id": name, "source": "python", "text": text}
    for member, value in public_members(module):
        kind = "class" if inspect.isclass(value) else "function"
        with contextlib.suppress(Exception):  # what can't be described is left out
            text = f"{name}.{member} is a {kind} of the module {name}.\n\n" + described(value)
            yield {"id": f"{name}.{member}", "source": "python", "text": text}


def imported(name: str) -> ModuleType | None:
    """The module, unless this system doesn't have it."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:  # of another operating system, or built without a library
            return None


def public_members(module: ModuleType) -> list[tuple[str, Any]]:
    """Its functions and classes by name, with those that it takes over from others."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
    found = [(name, getattr(module, name, None)) for name in sorted(set(names))]
    return [(name, value) for name, value in found if inspect.isroutine(value) or is_class(value)]


def is_class(value: object) -> bool:
    """Whether it is a class, and no type such as `list[int]`."""
    return inspect.isclass(value) and type(value) is not type(list[int])


def described(value: object) -> str:
    """What `help()` shows of it, without the bar beside a class and what is this process's own:
    addresses in memory, and the environment, in which secrets may stand."""
    text = pydoc.plain(pydoc.plaintext.document(value))
    text = re.sub(r"^ \|  ?", "", text, flags=re.MULTILINE)
    text = re.sub(r"environ\(\{.*?\}\)", "os.environ", text, flags=re.DOTALL)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def system_documents(most_characters: int | None) -> Iterator[Row]:
    """Manual pages and packages' notes, until there are enough characters."""
    left = most_characters or MOST_SYSTEM_CHARACTERS
    num_taken: Counter[str] = Counter()
    for path in system_files():
        about = path if "man" in path.parts else path.parent
        name = f"{path.parent.name}/" * ("man" in path.parts) + re.split(r"\W|_", about.name)[0]
        text = readable(path)[:MOST_CHARACTERS_A_FILE] if num_taken[name] < MOST_OF_A_NAME else ""
        if len(text) < 200:
            continue
        num_taken[name] += 1
        yield {"id": str(path), "source": "system", "text": text[:left]}
        left -= len(text)
        if left <= 0:
            return


def system_files() -> list[Path]:
    """In an order that mixes them and is the same each time."""
    root = Path("/usr/share")
    patterns = ("man/man[1-8]/*", "doc/*/README*", "doc/*/copyright", "doc/*/*.txt")
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: (zlib.crc32(str(path).encode()), path))


def readable(path: Path) -> str:
    """A file's text, of a manual page without its markup; nothing if it is no UTF-8."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, ValueError, zlib.error):
        return ""
    return without_roff(text) if path.parent.name.startswith("man") else text


def without_roff(page: str) -> str:
    """A manual page's words: headings and text, but no requests, fonts or comments."""
    lines = []
    for line in page.splitlines():
        heading = re.match(r"\.\s*S[HSh]\s+(.*)", line)
        emphasised = re.match(r"\.\s*(?:B|I|BR|RB|IR|RI|Nm|Fl|Ar|Nd|Pa)\s+(.*)", line)
        if heading:
            lines += ["", heading[1].strip('"'), ""]
        elif emphasised:
            lines.append(emphasised[1].replace('"', ""))
        elif re.match(r"\.\s*(?:PP|P|TP|LP|Pp)\b", line):
            lines.append("")
        elif not line.startswith((".", "'")):
            lines.append(line)
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\[&|,/%]|\\\".*", "", "\n".join(lines))
    text = text.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


if __name__ == "__main__":
    main()
