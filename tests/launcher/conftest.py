"""What the tests of whole jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import make_corpus, make_job


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
