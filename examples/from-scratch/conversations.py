"""Make questions and answers of Python's documentation: chats.jsonl, pairs.jsonl, questions.jsonl.

    python conversations.py --output conversations

A fact is a function or method, with its module or class, its arguments and its docstring's first
sentence. About each fact there are questions of four kinds, each in several wordings. Of some facts
one kind is held out: no conversation and no pair asks it, in no wording. Of others one wording of
one kind is kept back, so the fact was asked about in other words. `questions.jsonl` has both.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = """
base64 bisect calendar collections copy csv datetime difflib fnmatch fractions functools glob gzip
hashlib heapq inspect io itertools json keyword linecache locale math mimetypes operator os os.path
pickle pkgutil platform pprint random re secrets shlex shutil signal socket statistics string struct
subprocess sys tempfile textwrap threading time timeit tokenize traceback types unicodedata
urllib.parse uuid warnings weakref zlib
"""
CLASSES = ("bytes", "dict", "float", "int", "list", "set", "str")
NUM_TEST_QUESTIONS = 100
"""Of each set, held out and in other words."""
MOST_OF_A_HOME = 30
"""Facts of one module: `os` alone has hundreds."""
SHOWN = ("os.getcwd", "math.sqrt", "heapq.heappush", "str.upper", "random.randint", "os.listdir",
         "list.append", "calendar.isleap", "shutil.rmtree", "len")  # fmt: skip
"""The facts of the first ten questions: those of the two sets in turn."""
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "purpose": (
        (
            "What does {path} do?",
            "What is {path} for?",
            "Explain {path}.",
            "Tell me what {path} does.",
        ),
        "{path}: {sentence}",
    ),
    "home": (
        (
            "Where do I find {name}?",
            "In which module or class is {name}?",
            "Where is {name} defined?",
            "What has {name}?",
        ),
        "{name} is in {home}.",
    ),
    "call": (
        (
            "How do I call {path}?",
            "What arguments does {path} take?",
            "Show me the signature of {path}.",
            "How is {path} called?",
        ),
        "Call it as {path}{arguments}.",
    ),
    "search": (
        (
            "Which function does this: {sentence}",
            "What can I use for this: {sentence}",
            "I need this: {sentence}",
            "Name a function for this: {sentence}",
        ),
        "Use {path}.",
    ),
}
"""Wordings of a question, and its answer, by what is asked."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    """What the documentation says of a function."""

    home: str
    """Its module or class."""
    name: str
    arguments: str
    """As `(iterable, /, start=0)`, without what only type checkers read; empty where the
    documentation doesn't say them."""
    sentence: str

    @property
    def path(self) -> str:
        """Its whole name, as `os.listdir`; of what needs no module its own."""
        return self.name if self.home == "builtins" else f"{self.home}.{self.name}"

    def question(self, kind: str, wording: int) -> str:
        """Asked in one of the wordings."""
        return self._filled(KINDS[kind][0][wording])

    def answer(self, kind: str) -> str:
        """The right one."""
        return self._filled(KINDS[kind][1])

    def _filled(self, text: str) -> str:
        return text.format(path=self.path, **vars(self))


@dataclass(frozen=True)
class Asked:
    """A question about a fact."""

    fact: Fact
    kind: str
    wording: int

    @property
    def row(self) -> Row:
        """Question and right answer."""
        question = self.fact.question(self.kind, self.wording)
        return {"kind": self.kind, "question": question, "answer": self.fact.answer(self.kind)}


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--short", action="store_true", help="few of them, to try it")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    taught, held_out, reworded = divided(list(facts()))
    write(args.output / "questions.jsonl", [
        *({"set": "in other words", **asked.row} for asked in reworded),
        *({"set": "held out", **asked.row} for asked in held_out),
    ])  # fmt: skip
    if args.short:
        taught = taught[:400]
    write(args.output / "chats.jsonl", [conversation(asked) for asked in taught])
    write(args.output / "pairs.jsonl", list(pairs(taught)))


def write(path: Path, rows: list[Row]) -> None:
    """A row in each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} rows")


def facts() -> Iterator[Fact]:
    """Those of the modules, the built-in functions and the classes, in a fixed order. A sentence
    or a name that several functions have is left out: a question with it has no single answer."""
    homes = [("builtins", importlib.import_module("builtins"))]
    homes += [(name, getattr(importlib.import_module("builtins"), name)) for name in CLASSES]
    homes += [(name, importlib.import_module(name)) for name in MODULES.split()]
    found = [fact for name, home in homes for fact in facts_of(name, home)]
    sentences = Counter(fact.sentence for fact in found)
    names = Counter(fact.name for fact in found)
    found = [fact for fact in found if sentences[fact.sentence] == names[fact.name] == 1]
    found.sort(key=lambda fact: (fact.path not in SHOWN, zlib.crc32(fact.path.encode())))
    num_taken: Counter[str] = Counter()
    for fact in found:
        num_taken[fact.home] += 1
        if num_taken[fact.home] <= MOST_OF_A_HOME:
            yield fact


def facts_of(home: str, value: Any) -> Iterator[Fact]:
    """The public functions of a module, or methods of a class, that are explained in a sentence."""
    names = getattr(value, "__all__", None) or dir(value)
    for name in sorted({name for name in names if name[0] != "_"}):
        member = getattr(value, name, None)
        if not inspect.isroutine(member) or (inspect.ismodule(value) and is_foreign(member, home)):
            continue
        sentence = first_sentence(inspect.getdoc(member) or "")
        if sentence:
            yield Fact(home, name, arguments_of(member), sentence)


def is_foreign(member: Any, home: str) -> bool:
    """Whether a module has a function from another one's documentation."""
    own = (getattr(member, "__module__", None) or home).lstrip("_")
    alias = {"posix": "os", "nt": "os", "posixpath": "os.path", "ntpath": "os.path",
             "genericpath": "os.path", "io": "io"}  # fmt: skip
    own = alias.get(own, own)
    return own.split(".")[0] in MODULES.split() and own != home


def first_sentence(documentation: str) -> str:
    """Of a docstring, if it is one of 4 to 20 words; else nothing."""
    paragraph = " ".join(documentation.split("\n\n")[0].split())
    found = re.match(r"[A-Z][^.()`>]*\w\.(?=\s|$)", paragraph)
    sentence = found[0] if found else ""
    fits = 4 <= len(sentence.split()) <= 20 and sentence.isascii() and "{" not in sentence
    return sentence if fits else ""


def arguments_of(function: Any) -> str:
    """`(a, b=None)`, if the documentation says it in a few words."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ""
    shown = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    shown = [parameter for parameter in shown if parameter.name != "self"]
    text = str(inspect.Signature(shown)) if shown else "()"
    text = text.replace(", /", "").replace("*, ", "")
    return text if len(text) <= 60 and "<" not in text else ""


def divided(found: list[Fact]) -> tuple[list[Asked], list[Asked], list[Asked]]:
    """What is taught; questions of kinds that are held out; and such in other words."""
    chance = random.Random(7)
    places = {path: place for place, path in enumerate(SHOWN)}
    mixed = sorted(found, key=lambda fact: places.get(fact.path, len(places) + chance.random()))
    test = mixed[: 2 * NUM_TEST_QUESTIONS]
    held_out, reworded = (
        [Asked(fact, kind_of(fact, number), number // 4 % 4) for number, fact in enumerate(half)]
        for half in (test[::2], test[1::2])
    )
    hidden = {(asked.fact, asked.kind) for asked in held_out}
    kept_back = set(reworded)
    taught = [
        asked
        for fact in found
        for kind in KINDS
        if (fact, kind) not in hidden and (kind != "call" or fact.arguments)
        for asked in (Asked(fact, kind, wording) for wording in range(4))
        if asked not in kept_back
    ]
    chance.shuffle(taught)
    return taught, held_out, reworded


def kind_of(fact: Fact, number: int) -> str:
    """One of the kinds in turn; where the documentation says no arguments, another one."""
    kind = list(KINDS)[number % len(KINDS)]
    return "home" if kind == "call" and not fact.arguments else kind


def conversation(asked: Asked) -> Row:
    """A chat of a question and its answer."""
    row = asked.row
    return {
        "messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }


def pairs(taught: list[Asked]) -> Iterator[Row]:
    """A right answer and a worse one to a question of each fact and kind: another function's,
    one that breaks off, or one that repeats itself."""
    chance = random.Random(11)
    by_kind = {kind: [asked for asked in taught if asked.kind == kind] for kind in KINDS}
    seen = set()
    for asked in taught:
        if (asked.fact, asked.kind) in seen:
            continue
        seen.add((asked.fact, asked.kind))
        right = asked.row["answer"]
        wrong = chance.choice(by_kind[asked.kind]).row["answer"]
        words = right.split()
        broken = " ".join(words[: max(1, len(words) // 2)])
        worse = chance.choice([wrong, wrong, broken, f"{right} {right}"])
        if worse != right:
            yield {"prompt": asked.row["question"], "chosen": right, "rejected": worse}


if __name__ == "__main__":
    main()
