"""docs/glossary.md names keys that exist."""

from __future__ import annotations

import re
from pathlib import Path

from triax.launcher.config.overrides import field_type

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_every_key_of_the_glossary_is_one_of_the_config() -> None:
    lines = GLOSSARY.read_text(encoding="utf-8").split("## Words")[0].splitlines()
    cells = [line.split(" | ")[2] for line in lines if line.startswith("| ")][1:]
    keys = [key for cell in cells for key in re.findall(r"`([a-z_.0-9]+)`", cell)]
    assert len(keys) > 60
    unknown = [key for key in keys if field_type(tuple(key.split("."))) is None]
    assert not unknown
