"""Output that nobody reads any more costs what was to be shown, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TextIO

import pytest
from rich.console import Console

from triax.common import output
from triax.common.output import lossy_output, tell_at_once


def piped(monkeypatch: pytest.MonkeyPatch) -> tuple[int, TextIO]:
    """Make stdout and stderr one pipe, whose reading end comes first. In a fixture pytest would
    undo it."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return reading, stream


def test_a_reader_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, stream = piped(monkeypatch)
    with lossy_output():
        print("one")
        assert os.read(reading, 100) == b"one\n"
        os.close(reading)
        print("two")
        print("three", file=sys.stderr, flush=True)
        Console().print("four")
        tell_at_once("five")
    assert sys.stdout is stream


def test_a_reader_that_no_longer_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, _ = piped(monkeypatch)
    monkeypatch.setattr(output, "_PATIENCE_SECONDS", 0.01)
    with lossy_output():
        print("x" * 300_000)
        print("lost")
        assert set(os.read(reading, 1 << 20)) == set(b"x")
        print("shown")
        assert b"shown" in os.read(reading, 1 << 20)


def test_letters_that_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, _ = piped(monkeypatch)
    with lossy_output():
        Console().print("loss ━ 1")
        assert b"loss" in os.read(reading, 100)


def test_a_closed_stdout_is_no_other_file() -> None:
    code = (
        "import os\nfrom triax.common.output import lossy_output\n"
        "with lossy_output():\n    print('x')\n    assert os.open('/dev/null', os.O_RDONLY) > 2\n"
    )
    command = f"exec '{sys.executable}' -c \"{code}\" <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False, timeout=60).returncode == 0
