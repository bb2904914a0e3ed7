"""The page of some runs, served to this machine alone while they go on. Read-only."""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from triax.common.errors import UserError
from triax.launcher.report.build import build_page, build_payload
from triax.launcher.report.page import to_json

LOOPBACK = "127.0.0.1"


class PageServer(ThreadingHTTPServer):
    """Answers `/` and `/data.json` to whoever has the token, and nothing else.

    Runs are read again at most once in `refresh_seconds`, however many ask.

    Args:
        runs: their folders, also on a shared file system.
        host: the interface; loopback unless asked otherwise.
        port: 0 takes any free one.
        refresh_seconds: between two looks.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[Path], host: str, port: int, refresh_seconds: float) -> None:
        self.runs = runs
        self.refresh_seconds = refresh_seconds
        self.token = secrets.token_urlsafe(24)
        self._reading = threading.Lock()
        self._data = ""
        self._read_at = -float("inf")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"can't listen on {host} port {port}: {error.strerror}; choose another --port"
            ) from None

    @property
    def url(self) -> str:
        """Of the page, with its token."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}/?token={self.token}"

    def page(self) -> str:
        """The page as it is now."""
        return build_page(self.runs, refresh_seconds=self.refresh_seconds)

    def data(self) -> str:
        """The page's data as JSON, as fresh as `refresh_seconds`."""
        with self._reading:
            if time.monotonic() - self._read_at >= self.refresh_seconds:
                self._data = to_json(build_payload(self.runs))
                self._read_at = time.monotonic()
            return self._data

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "triax", ""
    timeout = 30

    def do_GET(self) -> None:
        """The page or its data."""
        parts = urlsplit(self.path)
        tokens = parse_qs(parts.query).get("token", [""])
        if not hmac.compare_digest(tokens[0].encode(), self.server.token.encode()):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "Open the address with its token.\n")
        elif parts.path == "/":
            self._answer(HTTPStatus.OK, "text/html", self.server.page())
        elif parts.path == "/data.json":
            self._answer(HTTPStatus.OK, "application/json", self.server.data())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is nothing here.\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests aren't told: their addresses hold the token."""
