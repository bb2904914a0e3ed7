"""The page itself: one HTML text with its data, style and scripts in it, that asks nobody else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_ASSETS = files("triax.launcher.report") / "assets"
_TEMPLATE = """\
<!doctype html>
<html lang="en"{live}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="description" content="Report of a triax run">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the charts</a>
<header><h1>{title}</h1><p id="status" role="status"></p><div id="controls"></div></header>
<main id="main"><noscript>This report draws its charts with JavaScript.</noscript></main>
<footer>Made by triax; charts by uPlot (MIT). Nothing here is loaded from elsewhere.</footer>
<script type="application/json" id="data">{data}</script>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""


def render_page(payload: Mapping[str, Any], title: str, *, refresh_seconds: float = 0.0) -> str:
    """The page as HTML.

    Nothing of a run's text becomes markup: the data are JSON in which no tag can end, and the
    script writes text nodes. The page's policy forbids any other script, and requests.

    Args:
        payload: from `make_payload`.
        title: of the page.
        refresh_seconds: above 0, the page asks its own server for new data so often.
    """
    library, script = _asset("uPlot.iife.min.js"), _asset("report.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(library)} {_source(script)}",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "connect-src 'self'" if refresh_seconds else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return _TEMPLATE.format(
        live=f' data-refresh="{refresh_seconds:g}"' if refresh_seconds else "",
        policy=policy,
        title=html.escape(title),
        style=_asset("uPlot.min.css") + _asset("report.css"),
        data=to_json(payload).replace("<", "\\u003c"),
        library=library,
        script=script,
    )


def to_json(payload: Mapping[str, Any]) -> str:
    """The payload as compact JSON in ASCII."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _source(script: str) -> str:
    """How a policy names a script by its contents."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
