"""Shards and documents as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from triax.common.showing import printable
from triax.data.prepare.inspection import Documents
from triax.data.read.inspection import Contents

_NUM_BARS, _BAR, _NAME = 40, 30, 32
"""Lines of a chart, the columns of its longest bar, and those of a name."""


def shards_table(prefix: str, contents: Contents) -> Table:
    """A dataset's figures."""
    table = Table(title=Text(printable(Path(prefix).name)), show_header=False, width=60)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("shards", f"{contents.num_shards:,}")
    table.add_row("dtype", ", ".join(contents.dtypes))
    table.add_row("tokens", f"{contents.num_tokens:,}")
    table.add_row("documents", f"{contents.num_documents:,}", end_section=True)
    for name, length in contents.lengths.items():
        table.add_row(f"document length, {name}", f"{length:,}")
    table.add_row("document length, mean", f"{contents.mean_length:,.1f}")
    return table


def documents_table(text: str, documents: Documents) -> Table:
    """The figures of texts."""
    table = Table(title=Text(printable(Path(text).name)), show_header=False, width=60)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("documents", f"{documents.num_documents:,}")
    table.add_row("characters", f"{documents.num_characters:,}")
    table.add_row("duplicates", _share(documents.num_duplicates, documents.num_documents))
    return table


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(total, 1):.2%})"


def describe_duplicates(count: int, total: int) -> str:
    """How many documents stand in a dataset before, token for token."""
    return f"duplicates: {_share(count, total)} of the documents, token for token"


def bars(title: str, counts: Mapping[str, int]) -> list[str]:
    """A bar for each number, in lines of up to 80 columns; the rest of many in one."""
    shown = dict(list(counts.items())[:_NUM_BARS])
    if rest := sum(counts.values()) - sum(shown.values()):
        shown[f"{len(counts) - len(shown):,} more"] = rest
    names = {name: _fitted(printable(name)) for name in shown}
    width = max(map(len, names.values()), default=0)
    largest = max(shown.values(), default=0) or 1
    return [title] + [
        f"  {names[name]:>{width}} {count:>13,} {'█' * round(_BAR * count / largest)}".rstrip()
        for name, count in shown.items()
    ]


def length_bars(unit: str, histogram: Mapping[int, int]) -> list[str]:
    """A histogram of lengths."""
    return bars(f"documents by {unit}", {f"up to {most:,}": n for most, n in histogram.items()})


def _fitted(name: str) -> str:
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"


def inputs_lines(inputs: Sequence[str]) -> list[str]:
    """What shards were made from."""
    return ["made from", *(f"  {printable(text)}" for text in inputs)]


def describe_tokens(largest: int, vocab_size: int | None) -> str:
    """What was found of the tokens, none of which is outside the vocabulary."""
    if vocab_size is None:
        return (
            f"all tokens are 0 to {largest:,}; no data.json beside the shards says the vocabulary "
            "(give --tokenizer to check it)"
        )
    return f"all tokens are below the vocabulary's {vocab_size:,}"
