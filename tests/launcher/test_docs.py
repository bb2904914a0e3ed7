"""The documentation names every config key, once, and no other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from triax.launcher.config.overrides import keys_of
from triax.launcher.config.run_config import RunConfig
from triax.training.stability_config import StabilityConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def documented() -> Iterator[str]:
    """Keys of the table's first column; one without a section has the former one's."""
    section = ""
    for line in (DOCS / "configuration.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            for key in re.findall(r"`([\w.*]+)`", line.split("|")[1]):
                section, _, name = key.rpartition(".") if "." in key else (section, "", key)
                yield f"{section}.{name}"


def test_the_table_lists_every_key_once() -> None:
    keys = {
        f"{section}.{key}"
        for section in RunConfig.model_fields
        for key in keys_of(section)
        if section != "stability"
    }
    assert Counter(documented()) == Counter([*keys, "stability.*"])


def test_the_knobs_of_stability_are_explained() -> None:
    text = (DOCS / "stability.md").read_text(encoding="utf-8")
    missing = [key for key in StabilityConfig.model_fields if f"{key}`" not in text]
    assert not missing


@pytest.mark.parametrize("name", ["architecture.md", "architecture.svg"])
def test_the_files_that_the_architecture_names_are_there(name: str) -> None:
    named = set(re.findall(r"\w+(?:/\w+)+\.py", (DOCS / name).read_text(encoding="utf-8")))
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def test_the_picture_was_drawn_from_its_text() -> None:
    """By its labels: how Graphviz lays them out differs by version."""
    text = (DOCS / "architecture.dot").read_text(encoding="utf-8")
    labels = [part for label in re.findall(r'label="([^"]*)"', text) for part in label.split("\\n")]
    picture = ElementTree.parse(DOCS / "architecture.svg").iter("{http://www.w3.org/2000/svg}text")
    drawn = [(element.text or "").replace("\xa0", " ") for element in picture]
    assert sorted(filter(None, map(str.strip, drawn))) == sorted(
        filter(None, map(str.strip, labels))
    )
