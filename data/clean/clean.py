"""INPUTs through a recipe to cleaned documents and a report, in one folder.

The documents are cut into pieces by their lengths alone, and a piece's outcome depends on nothing
else than the recipe and the documents: so the files depend neither on the number of workers nor on
where a run was interrupted. A later call with the same arguments goes on behind the finished
pieces.

| in the output folder | |
|---|---|
| `documents/` | the kept documents, one file a piece |
| `report.html`, `report.json` | what each step kept and dropped |
| `cleaned.json` | what they were made from; written last |
| `work/` | pieces between the passes; gone when all is done |
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.files import exclusive, make_folder, write_errors
from triax.data.clean.config import BlockListConfig, ContaminationConfig, FunctionConfig, Recipe
from triax.data.clean.document import Document, document_of
from triax.data.clean.passes import (
    Work,
    against_name,
    clean_piece,
    global_step,
    key_piece,
    local_step,
    plan_passes,
    recipe_json,
    step_names,
)
from triax.data.clean.report import write_report
from triax.data.clean.statistics import Statistics
from triax.data.clean.store import piece_name, write_file
from triax.data.clean.workers import run_jobs
from triax.data.prepare.encode import num_cores
from triax.data.prepare.inputs import input_sizes, inputs_fingerprint
from triax.data.prepare.text import iter_records
from triax.data.prepare.tokenizer import tokenizer_fingerprint

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of it that is."""
_PACKAGES = ("ftfy", "py3langid", "rensa")
_RECORD = "cleaned.json"


def _silent(_stage: str, _share: float) -> None:
    pass


def clean(
    inputs: Sequence[str],
    recipe: Recipe,
    output: Path,
    *,
    text_field: str = "text",
    num_workers: int | None = None,
    progress: Progress = _silent,
) -> Statistics:
    """Clean documents, or go on where an interrupted call stopped.

    Args:
        inputs: as `iter_records` takes them.
        output: its folder, made if need be.
        num_workers: processes; none means one a core. It changes no byte.

    Returns:
        What each step kept and dropped.

    Raises:
        UserError: an input or a list is missing or damaged, a package isn't installed, the disk
            is full, the folder holds other work, or a worker process died.
    """
    work = Work(recipe_json(recipe), text_field, output)
    settings = _settings(inputs, work)
    make_folder(output)
    with exclusive(output, f"{output}: another process is writing there; wait for it"):
        finished = _finished(output, settings)
        if finished is not None:
            return finished
        _begin_or_go_on(output, settings)
        _make_steps(work)
        cleaning = _Cleaning(work, inputs, num_workers or num_cores(), progress)
        total = Statistics()
        for name in step_names(recipe):
            total.step(name)
        for number in range(len(plan_passes(recipe))):
            total.merge(cleaning.do_pass(number))
        write_report(output, total, settings)
        record = {"settings": settings, "statistics": total.to_json()}
        write_file(output / _RECORD, json.dumps(record, indent=1).encode())
        shutil.rmtree(output / "work", ignore_errors=True)
        return total


@dataclass(frozen=True)
class _Cleaning:
    work: Work
    inputs: Sequence[str]
    num_workers: int
    progress: Progress

    def do_pass(self, number: int) -> Statistics:
        """Do what is left of a pass."""
        marker = self._marker(number)
        if marker.exists():
            return Statistics.from_json(json.loads(marker.read_bytes())["statistics"])
        folder = self.work.folder(number)
        make_folder(folder.folder)
        num_against = self._key_against(number)
        num_pieces = self._clean_pieces(number, num_against)
        if plan_passes(self.work.recipe)[number].keys is not None:
            self._decide(number, num_against, num_pieces)
        total = Statistics()
        for piece in range(num_pieces):
            record = folder.read_record(piece_name(piece))
            total.merge(Statistics.from_json(record["statistics"]))
        content = {"num_pieces": num_pieces, "statistics": total.to_json()}
        write_file(marker, json.dumps(content).encode())
        if number:
            shutil.rmtree(self.work.folder(number - 1).folder, ignore_errors=True)
        return total

    def _key_against(self, number: int) -> int:
        """Make the keys of the existing corpus that a pass's last step looks at; its pieces."""
        step = plan_passes(self.work.recipe)[number].keys
        inputs = () if step is None else global_step(self.work, step).against
        if not inputs:
            return 0
        total = 0

        def jobs() -> Iterator[tuple[Any, ...]]:
            nonlocal total
            for total, documents in enumerate(self._pieces(inputs, "reading the corpus"), 1):
                if not self.work.folder(number).is_done(against_name(total - 1)):
                    yield self.work, number, total - 1, documents

        for _ in run_jobs(key_piece, jobs(), self.num_workers):
            pass
        return total

    def _clean_pieces(self, number: int, first: int) -> int:
        """Take all pieces through a pass; their number."""
        folder = self.work.folder(number)
        total = 0 if number == 0 else self._num_pieces(number - 1)

        def read() -> Iterator[tuple[Any, ...]]:
            nonlocal total
            for total, documents in enumerate(self._pieces(self.inputs, "reading"), 1):
                if not folder.is_done(piece_name(total - 1)):
                    yield self.work, number, total - 1, first, documents

        def again() -> Iterator[tuple[Any, ...]]:
            for piece in range(total):
                self.progress(f"pass {number + 1}", piece / total)
                if not folder.is_done(piece_name(piece)):
                    yield self.work, number, piece, first, None

        for _ in run_jobs(clean_piece, again() if number else read(), self.num_workers):
            pass
        return total

    def _pieces(self, inputs: Sequence[str], stage: str) -> Iterator[list[Document]]:
        """The documents of the INPUTs, cut into pieces; an empty INPUT gives none."""
        most = self.work.recipe.output.piece_characters
        sizes = input_sizes(inputs)
        whole, done, former = max(sum(sizes.values()), 1), 0, None
        piece: list[Document] = []
        length = 0
        for source in inputs:
            for record in iter_records([source], self.work.text_field, with_fields=True):
                if record.origin != former:
                    done += sizes.get(former or "", 0)
                    former = record.origin
                    self.progress(stage, done / whole)
                piece.append(document_of(record, source))
                length += len(record.text)
                if length >= most:
                    yield piece
                    piece, length = [], 0
        if piece:
            yield piece

    def _decide(self, number: int, num_against: int, num_pieces: int) -> None:
        """Write each piece's items to drop."""
        self.progress("comparing", 0.0)
        step = plan_passes(self.work.recipe)[number].keys
        assert step is not None
        folder = self.work.folder(number)
        drops = self.work.dropped(number, 0).parent
        shutil.rmtree(drops, ignore_errors=True)
        make_folder(drops)
        for piece in range(num_pieces):
            repeated = folder.repeated(piece_name(piece))
            write_file(self.work.dropped(number, piece), repeated.tobytes())
        names = [against_name(piece) for piece in range(num_against)]
        names += [piece_name(piece) for piece in range(num_pieces)]
        keyed = [folder.keyed(name) for name in names]
        memory = self.work.recipe.output.memory_mib << 20
        for piece, items in global_step(self.work, step).decide(keyed, drops / "sort", memory):
            if piece >= num_against:
                path = self.work.dropped(number, piece - num_against)
                with write_errors(path), path.open("ab") as file:
                    file.write(items.astype("<u8").tobytes())

    def _num_pieces(self, number: int) -> int:
        return int(json.loads(self._marker(number).read_bytes())["num_pieces"])

    def _marker(self, number: int) -> Path:
        return self.work.output / "work" / f"pass-{number}.json"


def _make_steps(work: Work) -> None:
    """Make each step once here: a missing package, list or function is told before work begins."""
    for this in plan_passes(work.recipe):
        for number in this.steps:
            local_step(work, number)


def _settings(inputs: Sequence[str], work: Work) -> dict[str, Any]:
    """All that the output's bytes depend on, as JSON."""
    others = [
        source
        for step in work.recipe.steps
        for source in (
            *getattr(step, "against", ()),
            *(step.sets if isinstance(step, ContaminationConfig) else ()),
        )
    ]
    lists = [
        path
        for step in work.recipe.steps
        if isinstance(step, BlockListConfig)
        for path in (step.words, step.hosts)
        if path is not None
    ]
    tokenizer = work.recipe.output.tokenizer
    return {
        "format_version": 1,
        "inputs": list(inputs),
        "inputs_fingerprint": inputs_fingerprint(inputs),
        "others_fingerprint": inputs_fingerprint(sorted(set(others))),
        "lists": {path: _file_digest(path) for path in lists},
        "functions": {
            step.function: _module_digest(step.function)
            for step in work.recipe.steps
            if isinstance(step, FunctionConfig)
        },
        "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        "text_field": work.text_field,
        "recipe": json.loads(work.recipe_json),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _file_digest(path: str) -> str | None:
    """None where it can't be read, which the step will say."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def _module_digest(function: str) -> str | None:
    """Of the file that holds a function; not of what that file imports."""
    try:
        spec = importlib.util.find_spec(function.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else _file_digest(spec.origin)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finished(output: Path, settings: dict[str, Any]) -> Statistics | None:
    record = _load(output / _RECORD)
    if record is None:
        return None
    _check_same(output, record["settings"], settings)
    return Statistics.from_json(record["statistics"])


def _begin_or_go_on(output: Path, settings: dict[str, Any]) -> None:
    path = output / "work" / "settings.json"
    begun = _load(path)
    if begun is not None:
        _check_same(output, begun, settings)
        return
    if (output / "documents").exists():
        raise UserError(
            f"{output}: holds documents/, but nothing says how they were made; use another output "
            "folder, or delete this one"
        )
    make_folder(path.parent)
    write_file(path, json.dumps(settings).encode())


def _load(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}; delete the output folder, clean anew") from None
    return record


def _check_same(output: Path, former: dict[str, Any], settings: dict[str, Any]) -> None:
    different = [name for name, value in settings.items() if former.get(name) != value]
    if different:
        raise UserError(
            f"{output}: was begun with other settings ({', '.join(different)}); use the same ones, "
            "another output folder, or delete this one"
        )
