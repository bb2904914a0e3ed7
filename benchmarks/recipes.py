"""Write `examples/README.md` and `examples/recipes/`: every recipe as `triax init` gives it, and
what `triax plan` forecasts of it on each number of GPUs that it is written for.

    python benchmarks/recipes.py

`tests/launcher/test_init.py` holds what stands there to what this says today.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triax.launcher.init.recipes import RECIPES
from triax.launcher.init.run_file import Wanted, commands, make_run_file, stated

EXAMPLES = Path(__file__).parents[1] / "examples"
_HEAD = """\
# Examples

Run files to begin with. A recipe becomes yours by

    triax init NAME --recipe RECIPE --data PATH --gpus N

which puts in your names and chooses the layout for your GPUs. `recipes/` has each as it is written
for the number of GPUs in its commands. Recipes that begin with a model want `--from DIR` as well: a
run, or what `triax checkpoint import MODEL --output DIR` has made.

**Forecasts are arithmetic** ([docs/planning.md](../docs/planning.md) says how far they are off
published runs), of H100s, printed by `python benchmarks/recipes.py`. No recipe was measured on a
GPU.

## Recipes
"""
_REST = """
## Other examples

| file | what it shows |
|---|---|
| [quickstart.toml](quickstart.toml) | from text to a trained model in five minutes |
| [long-context.toml](long-context.toml) | the quickstart's model goes on at 8 times its length |
| [llama3-70b-16x8.toml](llama3-70b-16x8.toml) | 70B on 16 nodes, and what happens when one dies |
| [from-scratch/](from-scratch) | from raw text to answers, step by step |
| [clean.toml](clean.toml) | rules for `triax data clean` |
| [two-runs.ipynb](two-runs.ipynb) | two runs, a callback and a model, from a notebook |
| [slurm/](slurm), [kubernetes/](kubernetes), [deepspeed/](deepspeed) | for launchers |
"""


def wanted(name: str, gpus: int) -> Wanted:
    """A recipe with its own names."""
    return Wanted(name, name, f"examples/recipes/{name}.toml", gpus)


def page() -> Iterator[str]:
    """The lines of `examples/README.md`."""
    yield from _HEAD.splitlines()
    for name, recipe in RECIPES.items():
        yield f"\n### {name}\n\n{recipe.purpose[0].upper()}{recipe.purpose[1:]}."
        yield f"[recipes/{name}.toml](recipes/{name}.toml)\n"
        yield from (f"    {command}" for command in commands(wanted(name, recipe.gpus[0])))
        yield ""
        for gpus in sorted(filter(None, recipe.gpus)):
            made = make_run_file(wanted(name, gpus))
            assert made.forecast is not None and made.length is not None
            yield f"- forecast {stated(made.forecast, made.length)}"
        yield f"- measured: {recipe.measured}"
    yield from _REST.splitlines()


def main() -> None:
    """Write them."""
    (EXAMPLES / "recipes").mkdir(exist_ok=True)
    for name, recipe in RECIPES.items():
        text = make_run_file(wanted(name, recipe.gpus[0])).text
        (EXAMPLES / "recipes" / f"{name}.toml").write_text(text, encoding="utf-8")
    text = "\n".join(page()) + "\n"
    (EXAMPLES / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
