"""`report.json` and `report.html`: what each step kept and dropped. One page, no network.

Texts and names in it are strangers': all of them are escaped, and the page runs no scripts.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from triax.common.showing import tamed
from triax.data.clean.statistics import Population, Statistics, StepCounts
from triax.data.clean.store import write_file

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5em 0 1.5em }
td, th { padding: .2em .6em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
.bar { display: inline-block; height: .8em; background: #3b6ea5 }
.dropped { background: #c9583e }
.wide { width: 34% }
td.wide { text-align: left; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f2; padding: .6em;
      max-height: 14em; overflow: auto }
summary { cursor: pointer }
"""
_MOST_ROWS = 30


def write_report(output: Path, statistics: Statistics, settings: Mapping[str, Any]) -> None:
    """Write both files.

    Raises:
        UserError: the folder can't be written.
    """
    record = {"settings": settings, **statistics.to_json()}
    write_file(output / "report.json", json.dumps(record, indent=1).encode())
    write_file(output / "report.html", report_html(statistics, settings).encode("utf-8", "replace"))


def report_html(statistics: Statistics, settings: Mapping[str, Any]) -> str:
    """The page."""
    read, written = statistics.read, statistics.written
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>Cleaning report</title><style>{_STYLE}</style></head><body>",
        "<h1>Cleaning report</h1>",
        f"<p>{_escaped(', '.join(settings['inputs']))}</p>",
        f"<p>{read.documents:,} documents read, {written.documents:,} kept "
        f"({_share(written.documents, read.documents)}); of {read.characters:,} characters "
        f"{written.characters:,} ({_share(written.characters, read.characters)})"
        f"{_tokens(read, written)}.</p>",
        "<h2>What is left after each step</h2>",
        _waterfall(statistics),
        "<h2>Lengths of documents</h2>",
        _compared("characters", _lengths(read), _lengths(written)),
        "<h2>Sources</h2>",
        _compared("source", read.sources, written.sources),
        "<h2>Languages</h2>",
        _compared("language", read.languages, written.languages),
        "<h2>What was dropped</h2>",
        *(_step(name, counts) for name, counts in statistics.steps.items()),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _waterfall(statistics: Statistics) -> str:
    """Tokens where they were counted, which are what a run reads; else characters."""
    read = statistics.read
    unit = "tokens" if read.tokens else "characters"
    whole = getattr(read, unit)
    rows = [
        "<table><tr><th>step</th><th>documents</th><th>dropped</th><th>changed</th>"
        f"<th>{unit}</th><th class='wide'>left of all {unit}</th></tr>",
        _waterfall_row("read", read.documents, 0, 0, whole, whole),
    ]
    for name, counts in statistics.steps.items():
        dropped, left = counts.documents_in - counts.documents_out, getattr(counts, f"{unit}_out")
        rows.append(
            _waterfall_row(name, counts.documents_out, dropped, counts.changed, left, whole)
        )
    return "".join([*rows, "</table>"])


def _tokens(read: Population, written: Population) -> str:
    if not read.tokens:
        return ""
    share = _share(written.tokens, read.tokens)
    return f"; of {read.tokens:,} tokens {written.tokens:,} ({share})"


def _waterfall_row(
    name: str, documents: int, dropped: int, changed: int, left: int, whole: int
) -> str:
    return (
        f"<tr><td>{_escaped(name)}</td><td>{documents:,}</td><td>{dropped:,}</td>"
        f"<td>{changed:,}</td><td>{left:,}</td>"
        f"<td class='wide'>{_bar(left, whole)} {_share(left, whole)}</td></tr>"
    )


def _lengths(population: Population) -> dict[str, int]:
    """Documents by length, from the number of bits of it."""
    bits = sorted(population.lengths.items(), key=lambda entry: int(entry[0]))
    return {f"{(1 << int(bit)) >> 1:,} to {(1 << int(bit)) - 1:,}": count for bit, count in bits}


def _compared(title: str, read: Mapping[str, int], written: Mapping[str, int]) -> str:
    names = list(dict.fromkeys([*read, *written]))
    is_ordered = title == "characters"
    if is_ordered:
        names.sort(key=lambda name: int(name.split()[0].replace(",", "")))
    else:
        names.sort(key=lambda name: (-read.get(name, 0) - written.get(name, 0), name))
    largest = max([*read.values(), *written.values(), 1])
    rows = [
        f"<table><tr><th>{title}</th><th>read</th><th>kept</th>"
        "<th class='wide'>read, kept</th></tr>"
    ]
    for name in names[:_MOST_ROWS]:
        before, after = read.get(name, 0), written.get(name, 0)
        rows.append(
            f"<tr><td>{_escaped(name)}</td><td>{before:,}</td><td>{after:,}</td><td class='wide'>"
            f"{_bar(before, largest, 'dropped')}<br>{_bar(after, largest)}</td></tr>"
        )
    more = f"<p>and {len(names) - _MOST_ROWS:,} more</p>" if len(names) > _MOST_ROWS else ""
    return "".join([*rows, "</table>", more])


def _step(name: str, counts: StepCounts) -> str:
    dropped = counts.documents_in - counts.documents_out
    head = f"<h3>{_escaped(name)}: {dropped:,} of {counts.documents_in:,} documents</h3>"
    rows = (_reason(reason, counts) for reason, _ in counts.reasons.most_common())
    return head + "".join(rows)


def _reason(reason: str, counts: StepCounts) -> str:
    samples: Iterable[str] = (
        f"<p>{_escaped(identity)}</p><pre>{_escaped(text)}</pre>"
        for _, identity, text in counts.samples.get(reason, [])
    )
    return (
        f"<details><summary>{_escaped(reason)}: {counts.reasons[reason]:,}</summary>"
        f"{''.join(samples)}</details>"
    )


def _bar(value: int, whole: int, kind: str = "") -> str:
    width = 100 * value / max(whole, 1)
    return f"<span class='bar {kind}' style='width:{min(width, 100) * 0.75:.2f}%'></span>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _escaped(text: str) -> str:
    return html.escape(tamed(text), quote=True)
