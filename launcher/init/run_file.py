"""A recipe with your names in it and the layout for your GPUs, under a head that tells of it."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import tomli_w

from triax.common.showing import printable
from triax.launcher.init.edit import remove_key, replace_table, set_value
from triax.launcher.init.layout import best_layout, layout_tables, length
from triax.launcher.init.recipes import Recipe, find_recipe, template_of
from triax.launcher.init.starting_point import Shards, Start, Text
from triax.launcher.plan.planned import Planned, planned_from_text
from triax.models.config import ModelConfig
from triax.models.presets import PRESETS
from triax.planning.devices import GIB, find_device
from triax.planning.forecast import Forecast, Length

_WIDTH = 98
_PER_NODE = 8


@dataclass(frozen=True)
class Wanted:
    """What `triax init` is asked for.

    Attributes:
        name: of the run.
        recipe: its name.
        path: of the file, as commands will name it.
        gpus: how many; 0 is the CPU.
        gpu: which.
        data: None takes the recipe's own names.
        start: likewise.
    """

    name: str
    recipe: str
    path: str
    gpus: int
    gpu: str = "h100"
    data: Text | Shards | None = None
    start: Start | None = None


@dataclass(frozen=True)
class RunFile:
    """A run file and what is forecast of its run, on GPUs."""

    text: str
    forecast: Forecast | None
    length: Length | None


def make_run_file(wanted: Wanted) -> RunFile:
    """The file's text.

    Raises:
        UserError: there is no such recipe, or it won't do on so many GPUs.
        ConfigError: the recipe and the model that it is to begin with don't fit together.
    """
    recipe = find_recipe(wanted.recipe)
    text = _with_names(template_of(wanted.recipe), wanted)
    planned = planned_from_text(wanted.path, text)
    if not wanted.gpus:
        return RunFile(_head(wanted, recipe, None, None) + text, None, None)
    text = _with_whole_batch(text, planned, wanted.gpus)
    planned = planned_from_text(wanted.path, text)
    forecast = best_layout(planned, recipe, wanted.gpus, find_device(wanted.gpu))
    for name, table in layout_tables(planned, forecast).items():
        for key in planned.tables[name].keys() - table.keys():
            text = remove_key(text, name, key)
        for key, value in table.items():
            if planned.tables[name].get(key) != value:
                text = set_value(text, name, key, value)
    duration = length(planned, forecast)
    return RunFile(_head(wanted, recipe, forecast, duration) + text, forecast, duration)


def _with_names(text: str, wanted: Wanted) -> str:
    text = set_value(text, "run", "name", wanted.name)
    data, start = wanted.data, wanted.start
    if isinstance(data, Text):
        output = f"corpora/{wanted.name}"
        for key, value in _paths(f"{output}/train", f"{output}/validation", f"{output}/tokenizer"):
            text = set_value(text, "data", key, value)
        text = set_value(text, "data.prepare", "inputs", [data.path])
        text = set_value(text, "data.prepare", "output", output)
    if isinstance(data, Shards):
        if "[data.prepare]" in text:
            text = replace_table(text, "data.prepare", "")
        for key, value in _paths(data.train, data.validation, data.tokenizer):
            text = (
                remove_key(text, "data", key)
                if value is None
                else set_value(text, "data", key, value)
            )
    if start is not None:
        text = set_value(text, "checkpoint", "init_from", start.path)
        text = _with_model(text, start.model)
    elif isinstance(data, Shards) and data.vocab_size != _vocabulary(text):
        text = set_value(text, "model", "vocab_size", data.vocab_size)
    return text


def _paths(train: str, validation: str | None, tokenizer: str) -> list[tuple[str, object]]:
    return [
        ("sources", [{"path": train}]), ("validation", validation), ("tokenizer", tokenizer),
    ]  # fmt: skip


def _vocabulary(text: str) -> int:
    preset = next(name for name in PRESETS if f'preset = "{name}"' in text)
    return int(PRESETS[preset]["vocab_size"])


def _with_model(text: str, model: ModelConfig) -> str:
    """The start's own settings, and of the recipe's what isn't a name."""
    tables = model.model_dump(mode="json", exclude_none=True, exclude={"preset"})
    added = [line for line in text.splitlines() if line.startswith("rope_scaling = ")]
    text = replace_table(text, "model", tomli_w.dumps({"model": tables}))
    if added and "rope_scaling" not in tables:
        scaling = dict(planned_from_text("recipe", template_of("long-context")).tables["model"])
        text = set_value(text, "model", "rope_scaling", scaling["rope_scaling"])
    return text


def _with_whole_batch(text: str, planned: Planned, gpus: int) -> str:
    """Each GPU gets as many sequences of an update as any other."""
    size = planned.config.batch.global_batch_size
    if size % gpus == 0 or _shares_sequences(planned):
        return text
    unit = gpus * min(8, max(1, size // gpus))  # so that micro-batches have sizes to choose from
    return set_value(text, "batch", "global_batch_size", -(-size // unit) * unit)


def _shares_sequences(planned: Planned) -> bool:
    """Whether several GPUs work at one sequence, as they do in the recipes of one at a time."""
    return planned.config.data.seq_len > 1 << 16


def _head(
    wanted: Wanted, recipe: Recipe, forecast: Forecast | None, duration: Length | None
) -> str:
    lines = [*_wrapped(f"{wanted.recipe}: {recipe.purpose}."), ""]
    lines += [f"    {command}" for command in commands(wanted)]
    if forecast is not None and duration is not None:
        lines += ["", *_wrapped(f"Forecast by `triax plan --as-is`: {stated(forecast, duration)}.")]
    lines += ["", *_wrapped(f"Measured: {recipe.measured}.")]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"


def commands(wanted: Wanted) -> Iterator[str]:
    """To check the file, and to train."""
    path = printable(shlex.quote(wanted.path))
    if wanted.gpus > _PER_NODE:
        yield f"triax check {path} --nproc {wanted.gpus}"
        a_node = next(each for each in range(_PER_NODE, 0, -1) if wanted.gpus % each == 0)
        yield f"triax submit {path} --nodes {wanted.gpus // a_node} --gpus-per-node {a_node}"
    elif wanted.gpus > 1:
        yield f"triax check {path} --nproc {wanted.gpus}"
        yield f"triax train {path} --nproc-per-node {wanted.gpus}"
    else:
        yield f"triax check {path}"
        yield f"triax train {path}"


def stated(forecast: Forecast, duration: Length) -> str:
    """A forecast in a line, each figure with two digits, which is more than it is worth."""
    outcome, device = forecast.outcome, forecast.device
    memory = f"{two_digits(outcome.memory.total / GIB)} GiB a GPU"
    if outcome.memory.host:
        memory += f" and {two_digits(outcome.memory.host / GIB)} GiB of the machine's a process"
    return (
        f"on {outcome.setup.world_size:,} x {device.name} {memory}, "
        f"{two_digits(outcome.tokens_per_second)} tokens/s, {_time(duration.days)}"
    )


def two_digits(value: float) -> str:
    """Rounded to two significant digits: 1,300,000; 7.4."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _time(days: float) -> str:
    if days >= 2:
        return f"{two_digits(days)} days"
    return f"{two_digits(days * 24)} h" if days >= 1 / 12 else f"{two_digits(days * 1440)} min"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
