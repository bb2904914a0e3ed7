"""Take the steps of a recipe in a folder, each once. No torch."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import exclusive, write_atomically
from triax.common.quantities import format_seconds
from triax.launcher.recipes.recipe import Recipe, Step, executable

RECORD = ".recipe.json"
"""In the folder of the work: the steps that are done, with the commands that did them."""
Say = Callable[[str], None]
Start = Callable[[Step, list[str], Path], int]
"""Runs a step's command in a folder; returns its exit code, 128 + N where a signal ended it."""


def set_out(source: Path, folder: Path) -> None:
    """Copy the recipe's files into the folder of the work, but none that is there: it may have been
    changed."""
    for path in sorted(source.rglob("*")):
        copy = folder / path.relative_to(source)
        if path.is_file() and "__pycache__" not in path.parts and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def take_steps(
    recipe: Recipe, folder: Path, *, short: bool, begin_at: str | None, say: Say, start: Start
) -> int:
    """Run what isn't done yet, until a step fails.

    Args:
        begin_at: this step and all behind it are done again.

    Returns:
        The exit code of the step that failed, or 0.

    Raises:
        UserError: there is no such step, a program can't be started, or another process takes the
            steps there.
    """
    steps = recipe.steps
    names = [step.name for step in steps]
    if begin_at is not None and begin_at not in names:
        raise UserError(f"--from {begin_at}: no step is called so; there are {', '.join(names)}")
    with exclusive(folder, f"{folder}: another process takes the steps there; wait for its end"):
        done = _done(folder)
        for name in names[names.index(begin_at) :] if begin_at is not None else ():
            done.pop(name, None)
        for number, step in enumerate(steps, start=1):
            arguments = step.arguments(short=short)
            head = f"[{number}/{len(steps)}] {step.name}"
            if done.get(step.name) == arguments:
                say(f"{head}: done before")
                continue
            say(f"\n{head}: {step.says}\n$ {shlex.join(arguments)}")
            began = time.monotonic()
            code = start(step, arguments, folder)
            if code != 0:
                say(f"{head}: ended with code {code}; the same command goes on here")
                return code
            done[step.name] = arguments
            write_atomically(folder / RECORD, json.dumps(done, indent=1) + "\n")
            say(f"{head}: {format_seconds(time.monotonic() - began)}")
    return 0


def start_process(step: Step, arguments: list[str], folder: Path) -> int:
    """A `Start`: a process of its own, which has the terminal.

    Raises:
        UserError: the program can't be started.
    """
    typed = "".join(f"{line}\n" for line in step.types).encode() if step.types else None
    with _leaving_ctrl_c_to_the_command():
        try:
            result = subprocess.run(executable(arguments), cwd=folder, input=typed, check=False)
        except OSError as error:
            raise UserError(f"step {step.name}: {arguments[0]}: {error.strerror}") from None
    return 128 - result.returncode if result.returncode < 0 else result.returncode


def _done(folder: Path) -> dict[str, list[str]]:
    """The commands of the steps that are done, by the steps' names."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{folder / RECORD}: damaged; delete it to begin at the first step")
    return found


@contextmanager
def _leaving_ctrl_c_to_the_command() -> Iterator[None]:
    """The terminal sends Ctrl-C to both: what the command makes of it, it says by its exit code."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
