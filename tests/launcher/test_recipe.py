"""A cleaning recipe: all of its mistakes at once, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from triax.data.clean.config import KINDS
from triax.launcher.config.problems import ConfigError
from triax.launcher.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
BAD = """\
[output]
formt = "parquet"
[[steps]]
step = "near_duplicate"
[[steps]]
step = "gopher"
off = ["word"]
min_words = "3"
[[steps]]
step = "contamination"
[other]
"""


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(BAD)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (2, "output.formt"),
        (4, "steps.0.step"),
        (7, "steps.1.off"),
        (8, "steps.1.min_words"),
        (9, "steps.2"),
        (11, "other"),
    ]
    assert "did you mean near_duplicates?" in caught.value.problems[1].message


def test_the_example_is_a_recipe_and_the_page_names_every_key() -> None:
    assert len(load_recipe(ROOT / "examples/clean.toml").steps) == 8
    page = (ROOT / "docs/cleaning.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in page
        keys = set(kind.model_fields) - {"step", "name"}
        assert not [key for key in keys if f"`{key}`" not in page]
