"""What `triax diagnose` reads out of the stacks of a process, wherever that ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from triax.launcher.cli import main
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.diagnosis import diagnose
from triax.training.stability.heartbeat import STACKS_OF, Board, Heartbeat

THREADING = "/data/miniconda3/lib/python3.11/threading.py"
TORCH = "/opt/python/site-packages/torch/utils/data/sampler.py"


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ([THREADING, "/home/me/checkout/data/read/prefetch.py"],
         "f0 (threading.py:1) called by f1 (data/read/prefetch.py:1)"),
        ([THREADING, TORCH, "/opt/python/site-packages/triax/data/read/prefetch.py"],
         "f0 (threading.py:1) called by f2 (data/read/prefetch.py:1)"),
        (["/srv/triax/common/files.py"], "f0 (common/files.py:1)"),
        (["/srv/triax/parallel/engines/native.py"], "f0 (parallel/engines/native.py:1)"),
        ([THREADING, TORCH, "<frozen runpy>"], "f0 (threading.py:1)"),
        ([__file__], "f0 (test_diagnosis.py:1)"),
    ],
    ids=["checkout", "installed", "common", "nested", "others", "beside"],
)  # fmt: skip
def test_only_frames_of_triax_are_named_as_its_own(
    tmp_path: Path, files: list[str], place: str
) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    directory.heartbeats.mkdir()
    beat = Heartbeat(0, "host", 1, 5, "stepping", 9, since=1.0, time=2.0, period=1.0)
    Board(directory.heartbeats / "node-0.jsonl").write(beat)
    frames = "".join(f'  File "{file}", line 1 in f{n}\n' for n, file in enumerate(files))
    (directory.logs / "node-0.stacks").write_text(
        f'{STACKS_OF} 0\nThread 0x1 (most recent call first):\n  File "{TORCH}", line 1 in g\n\n'
        f"Thread 0x2 (most recent call first):\n{frames}"
    )
    assert diagnose(tmp_path).processes[0].place == place


def test_files_that_nobody_wrote_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    directory.heartbeats.mkdir()
    beat = Heartbeat(0, "[red]\x1b]0;host", 1, 5, "stepping", 9, since=1.0, time=2.0, period=1.0)
    Board(directory.heartbeats / "node-0.jsonl").write(beat)
    directory.events.write_bytes(
        b'\xff\n{"event": 1}\n{"event": "start"}\n{"event": "hang", "time": 1e300, "ranks": 7}\n'
        b'{"event": "hang", "time": "x", "reason": "\\ud800\\u001b[2J"}\n'
    )
    directory.exit.write_text('{"code": 1}')
    assert main(["diagnose", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 lines of events.jsonl can't be read" in shown
    assert "[red]" in shown and "\\x1b[2J" in shown and "\x1b" not in shown
