"""The documentation names every config key, once, and no other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from triax.launcher.config.run_config import RunConfig
from triax.training.stability_config import StabilityConfig

DOCS = Path(__file__).parents[2] / "docs"


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
        for section, field in RunConfig.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
        if section != "stability"
    }
    assert Counter(documented()) == Counter([*keys, "stability.*"])


def test_the_knobs_of_stability_are_explained() -> None:
    text = (DOCS / "stability.md").read_text(encoding="utf-8")
    missing = [key for key in StabilityConfig.model_fields if f"{key}`" not in text]
    assert not missing
