"""What the tests of whole jobs share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import make_corpus, make_job


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_jobs() -> Iterator[None]:
    """Shells start background jobs, and so perhaps these tests, with SIGINT ignored; what they
    start would ignore it too."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer and shards."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


@pytest.fixture
def job(corpus: Path, tmp_path: Path) -> Path:
    """A folder with data and a `run.toml` that train in a second."""
    return make_job(corpus, tmp_path)
