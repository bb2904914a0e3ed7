"""Shards and samples as a person reads them."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from triax.common.showing import printable
from triax.data.read.inspection import Contents


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


def describe_tokens(largest: int, vocab_size: int | None) -> str:
    """What was found of the tokens, none of which is outside the vocabulary."""
    if vocab_size is None:
        return (
            f"all tokens are 0 to {largest:,}; no data.json beside the shards says the vocabulary "
            "(give --tokenizer to check it)"
        )
    return f"all tokens are below the vocabulary's {vocab_size:,}"
