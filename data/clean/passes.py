"""A recipe as passes over the documents, and the work on one piece in one pass.

Steps that look at one document at a time run together. One that looks at all ends a pass by
making keys; what it drops is left out as the next pass reads the pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triax.data.clean.config import (
    KINDS,
    BlockListConfig,
    C4Config,
    ContaminationConfig,
    ExactConfig,
    FineWebConfig,
    FunctionConfig,
    GopherConfig,
    LanguageConfig,
    NearConfig,
    NormaliseConfig,
    OutputConfig,
    PiiConfig,
    Recipe,
    RepetitionConfig,
    StepConfig,
    SubstringsConfig,
)
from triax.data.clean.contamination import Contamination
from triax.data.clean.document import Document
from triax.data.clean.duplicates import ExactDuplicates, GlobalStep, NearDuplicates
from triax.data.clean.filters import BlockList, Function, Language, Normalise, Pii
from triax.data.clean.gopher import Gopher, GopherRepetition
from triax.data.clean.statistics import Statistics, StepCounts
from triax.data.clean.store import PieceFolder, piece_name, write_output
from triax.data.clean.substrings import RepeatedSubstrings
from triax.data.clean.web import C4, FineWeb
from triax.data.prepare.encode import encoder_of

LocalStep = Callable[[Document], str | None]
"""May change the document; returns why it is dropped, or None."""
_LOCAL: dict[type[StepConfig], Callable[[Any], LocalStep]] = {
    NormaliseConfig: Normalise,
    LanguageConfig: Language,
    GopherConfig: Gopher,
    RepetitionConfig: GopherRepetition,
    C4Config: C4,
    FineWebConfig: FineWeb,
    PiiConfig: Pii,
    BlockListConfig: BlockList,
    FunctionConfig: Function,
}
_GLOBAL: dict[type[StepConfig], Callable[[Any], GlobalStep]] = {
    ExactConfig: ExactDuplicates,
    NearConfig: NearDuplicates,
    SubstringsConfig: RepeatedSubstrings,
}


class Pass(NamedTuple):
    """Steps by their numbers in the recipe."""

    drops: int | None
    """The step over all documents whose decisions are carried out first."""
    steps: tuple[int, ...]
    keys: int | None
    """The step over all documents that keys are made for; none in the last pass."""


@dataclass(frozen=True)
class Work:
    """What all pieces have in common. Goes to the worker processes."""

    recipe_json: str
    text_field: str
    output: Path

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.recipe_json)

    def folder(self, number: int) -> PieceFolder:
        """The pieces of a pass."""
        return PieceFolder(self.output / "work" / f"pass-{number}")

    def dropped(self, number: int, piece: int) -> Path:
        """The file of a piece's items to drop, decided after a pass."""
        return self.folder(number).folder / "drops" / piece_name(piece)


@lru_cache(maxsize=2)
def parse_recipe(text: str) -> Recipe:
    """A recipe from `recipe_json`."""
    record = json.loads(text)
    steps = tuple(
        KINDS[step["step"]].model_validate_json(json.dumps(step)) for step in record["steps"]
    )
    output = OutputConfig.model_validate_json(json.dumps(record["output"]))
    return Recipe.model_construct(output=output, steps=steps)


def recipe_json(recipe: Recipe) -> str:
    """All of a recipe as text."""
    steps = [step.model_dump(mode="json") for step in recipe.steps]
    output = recipe.output.model_dump(mode="json", exclude_none=True)
    return json.dumps({"output": output, "steps": steps})


def step_names(recipe: Recipe) -> list[str]:
    """What the report calls the steps: their names, else their kinds, numbered if twice."""
    names: list[str] = []
    for step in recipe.steps:
        name = wanted = step.name or step.step
        number = 2
        while name in names:
            name, number = f"{wanted} {number}", number + 1
        names.append(name)
    return names


def plan_passes(recipe: Recipe) -> list[Pass]:
    """The passes in which the recipe's steps are done; at least one."""
    passes: list[Pass] = []
    drops: int | None = None
    local: list[int] = []
    for number, step in enumerate(recipe.steps):
        if type(step) in _GLOBAL:
            passes.append(Pass(drops, tuple(local), number))
            drops, local = number, []
        else:
            local.append(number)
    return [*passes, Pass(drops, tuple(local), None)]


@lru_cache(maxsize=32)
def local_step(work: Work, number: int) -> LocalStep:
    """A step over single documents, made once in a process."""
    config = work.recipe.steps[number]
    if isinstance(config, ContaminationConfig):
        return Contamination(config, work.text_field)
    return _LOCAL[type(config)](config)


@lru_cache(maxsize=32)
def global_step(work: Work, number: int) -> GlobalStep:
    """A step over all documents."""
    config = work.recipe.steps[number]
    return _GLOBAL[type(config)](config)


def clean_piece(
    work: Work, number: int, piece: int, first_piece: int, documents: list[Document] | None
) -> None:
    """Take a piece through a pass and write it.

    Args:
        number: the pass's.
        piece: the piece's.
        first_piece: of the pieces that keys are numbered by, those of an existing corpus first.
        documents: in the first pass; later ones read what the pass before has written.
    """
    passes = plan_passes(work.recipe)
    this, names, statistics = passes[number], step_names(work.recipe), Statistics()
    count = token_counter(work.recipe.output.tokenizer)
    if documents is None:
        documents = work.folder(number - 1).read_documents(piece_name(piece))
        count(documents)
    else:
        count(documents)
        for document in documents:
            statistics.read.add(document)
    if this.drops is not None:
        items = np.fromfile(work.dropped(number - 1, piece), "<u8")
        step = global_step(work, this.drops)
        drop = _Drop(step, np.unique(items))
        documents = _kept(documents, drop, statistics.step(names[this.drops]), count)
    for index in this.steps:
        counts = statistics.step(names[index])
        documents = _kept(documents, local_step(work, index), counts, count)
    name, folder = piece_name(piece), work.folder(number)
    if this.keys is None:
        for document in documents:
            statistics.written.add(document)
        write_output(work.output / "documents", name, work.recipe.output.format, documents)
    else:
        folder.write_documents(name, documents)
        folder.write_keys(name, first_piece + piece, global_step(work, this.keys).keys(documents))
    folder.write_record(name, len(documents), statistics)


def key_piece(work: Work, number: int, piece: int, documents: list[Document]) -> None:
    """Make the keys of a piece of an existing corpus, of which nothing is written."""
    step = plan_passes(work.recipe)[number].keys
    assert step is not None
    folder, name = work.folder(number), against_name(piece)
    folder.write_keys(name, piece, global_step(work, step).keys(documents))
    folder.write_record(name, len(documents), Statistics())


def against_name(piece: int) -> str:
    """Of a piece of an existing corpus."""
    return f"against-{piece_name(piece)}"


@lru_cache(maxsize=2)
def token_counter(tokenizer: str | None) -> Callable[[Sequence[Document]], None]:
    """Sets documents' `num_tokens`; without a tokenizer it leaves them alone.

    Raises:
        UserError: the tokenizer is of no use.
    """
    if tokenizer is None:
        return lambda _: None
    encoder = encoder_of(tokenizer, ())

    def count(documents: Sequence[Document]) -> None:
        encoded = encoder.encode([document.text for document in documents])
        for document, parts in zip(documents, encoded, strict=True):
            document.num_tokens = sum(map(len, parts))

    return count


class _Drop:
    """Takes out of documents, one after another, what a step over all has decided to drop."""

    def __init__(self, step: GlobalStep, items: NDArray[Any]) -> None:
        self._step, self._items, self._first = step, items, 0

    def __call__(self, document: Document) -> str | None:
        first = self._first
        self._first += self._step.num_items(document)
        begin, end = np.searchsorted(self._items, [first, self._first])
        return self._step.drop(document, first, self._items[begin:end])


def _kept(
    documents: Sequence[Document],
    step: LocalStep,
    counts: StepCounts,
    count_tokens: Callable[[Sequence[Document]], None],
) -> list[Document]:
    """The documents that a step keeps, and what it did to them counted."""
    kept, before = [], [(document.text, document.num_tokens) for document in documents]
    reasons = [step(document) for document in documents]
    count_tokens([d for d, (text, _) in zip(documents, before, strict=True) if d.text != text])
    for document, reason, (text, num_tokens) in zip(documents, reasons, before, strict=True):
        if reason is None:
            counts.add_kept(text, document.text)
            counts.tokens_out += document.num_tokens
            kept.append(document)
        else:
            counts.add_dropped(document, text, reason)
        counts.tokens_in += num_tokens
    return kept
