"""A real S3 server on loopback, which can be killed, started again, and throttled on its way."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

BUCKET = "texts"


class ObjectStore:
    """moto's server in a process of its own, with what was put into it once more at each start.

    Clients come through a relay, which lives on and passes so many bytes a second.
    """

    def __init__(self) -> None:
        self._port, self._relay_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._files: dict[str, bytes] = {}
        self._is_filled = False
        """Until then the relay refuses clients: a server that comes back still has its files."""
        self.bytes_per_second: float | None = None
        self.num_bytes = 0
        """That were sent to clients."""
        self._listener = socket.create_server(("127.0.0.1", self._relay_port))
        threading.Thread(target=self._relay, daemon=True).start()

    @property
    def address(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self._relay_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find it by."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it with all files, and wait until it answers."""
        import boto3
        from botocore.config import Config

        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(self._port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 200
        while not self._answers():
            assert time.monotonic() < deadline and self._process.poll() is None
            time.sleep(0.05)
        self._client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self._port}", region_name="us-east-1",
            aws_access_key_id="nobody", aws_secret_access_key="nothing",
            config=Config(retries={"max_attempts": 1}),
        )  # fmt: skip
        self._client.create_bucket(Bucket=BUCKET)
        for key, content in self._files.items():
            self._client.put_object(Bucket=BUCKET, Key=key, Body=content, ACL="public-read")
        self._is_filled = True

    def kill(self) -> None:
        """End it at once."""
        self._is_filled = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def put(self, key: str, content: bytes) -> str:
        """Store a file; its URL."""
        self._files[key] = content
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content, ACL="public-read")
        return f"s3://{BUCKET}/{key}"

    def put_folder(self, folder: Path, key: str) -> str:
        """Store all files below a folder; the URL that stands for it."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != ".lock":
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{key}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            return True
        return False

    def _relay(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                if not self._is_filled:
                    raise ConnectionError
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            pairs = ((client, server, False), (server, client, True))
            for pair in pairs:
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 14):
                if counts:
                    self.num_bytes += len(content)
                    if self.bytes_per_second is not None:
                        time.sleep(len(content) / self.bytes_per_second)
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server, which this process's environment names."""
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    store = ObjectStore()
    store.start()
    before = dict(os.environ)
    os.environ.update(store.environment)
    try:
        yield store
    finally:
        store.kill()
        os.environ.clear()
        os.environ.update(before)
