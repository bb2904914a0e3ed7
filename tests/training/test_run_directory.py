"""The files of a run."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.training.records.run_directory import RunDirectory
from triax.training.stability.heartbeat import Board, Heartbeat, read_heartbeats


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


def test_lines_are_strict_json_whatever_the_figures(directory: RunDirectory) -> None:
    directory.append_metrics({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    directory.append_event("trouble", losses=[1.5, math.nan], at={"norm": -math.inf})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    [line] = directory.metrics.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1, "loss": None, "grad_norm": None, "lr": 0.1,
    }  # fmt: skip
    [line] = directory.events.read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["losses"], event["at"]) == ([1.5, None], {"norm": None})


def test_figures_keep_their_full_precision(directory: RunDirectory) -> None:
    directory.append_metrics({"step": 1, "loss": 0.1 + 0.2})
    assert directory.rows(directory.metrics)[0]["loss"] == 0.1 + 0.2


def test_lines_past_a_checkpoint_and_torn_ones_are_cut(directory: RunDirectory) -> None:
    for step in (1, 2, 3, 4):
        directory.append_metrics({"step": step})
    with directory.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    directory.cut_metrics(2)
    assert [row["step"] for row in directory.rows(directory.metrics)] == [1, 2]


def test_two_jobs_in_one_run(directory: RunDirectory) -> None:
    with (
        directory.locked(),
        pytest.raises(UserError, match="another job is training"),
        RunDirectory(directory.path).locked(),
    ):
        pass


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written"):
        RunDirectory(tmp_path / "file" / "run").create()


HOSTILE = (
    b'{"step": 3, "lo', b"\xff\xfe\x00", b'{"step": Infinity}', b'{"step": 1e999}', b"[" * 200_000,
    b"9" * 5000, b'{"step": "4"}', b'{"step": null}', b"[1]", b'{"event": 5}', b'{"st\xe9p": 1}',
    b'{"step": true}', b'{"step": -1}',
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_of_the_runs_own_files_stops_it(directory: RunDirectory, text: bytes) -> None:
    for path, append in (
        (directory.metrics, lambda step: directory.append_metrics({"step": step})),
        (directory.events, lambda step: directory.append_event("start", step=step)),
    ):
        append(1)
        with path.open("ab") as file:
            file.write(text)  # without a line break, as a full disk leaves it
        append(2)
        rows, num_unreadable = directory.read(path)
        assert [row["step"] for row in rows] == [1, 2]
        assert num_unreadable == 1
    assert directory.abandon_metrics(1) == (1, 1)
    assert [row["step"] for row in directory.rows(directory.metrics)] == [1]
    assert json.loads(directory.abandoned.read_text().splitlines()[0]) == {"step": 2}
    directory.append_metrics({"step": 2})
    assert directory.cut_metrics(1) == (1, 0)


def test_figures_that_are_not_finite_are_none_wherever_they_come_from(
    directory: RunDirectory,
) -> None:
    directory.metrics.write_text('{"step": 1, "loss": NaN, "lr": 1e999}\n')
    assert directory.rows(directory.metrics) == [{"step": 1, "loss": None, "lr": None}]


def test_a_full_disk_takes_whole_lines(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.append_metrics({"step": 1})
    write = os.write
    room = [5]

    def full(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes, room[0] = room[0], 0
        return write(descriptor, data[:num_bytes])

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", full)
        directory.append_metrics({"step": 2})
    assert directory.metrics.read_text() == '{"step": 1}\n'
    directory.append_metrics({"step": 3})
    assert directory.metrics.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_nothing_is_lost_where_lines_cannot_be_moved(directory: RunDirectory) -> None:
    for step in (1, 2):
        directory.append_metrics({"step": step})
    directory.abandoned.mkdir()
    with pytest.raises(OSError, match="abandoned"):
        directory.abandon_metrics(1)
    assert len(directory.rows(directory.metrics)) == 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "exit.json", "abandoned.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_what_cannot_be_read_is_as_good_as_absent(
    directory: RunDirectory, name: str, kind: str
) -> None:
    path = directory.path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    assert directory.rows(path) == []
    assert directory.read_exit() is None


@pytest.mark.parametrize(
    "text", [b"\xff", b"[" * 200_000, b"{}", b'{"code": []}', b'{"code": Infinity}', b""]
)
def test_an_exit_file_that_says_nothing(directory: RunDirectory, text: bytes) -> None:
    directory.exit.write_bytes(text)
    assert directory.read_exit() is None


def test_files_of_well_known_names_are_not_written_through_links(
    directory: RunDirectory, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    for name in (
        ".lock", "metrics.jsonl", "events.jsonl", "exit.json.partial", ".writable",
        "metrics.jsonl.partial", "abandoned.jsonl",
    ):  # fmt: skip
        (directory.path / name).unlink(missing_ok=True)
        (directory.path / name).symlink_to(victim)
    for write in (
        lambda: directory.append_metrics({"step": 1}),
        lambda: directory.append_event("start"),
    ):
        with pytest.raises(OSError, match="a link"):
            write()
    with pytest.raises(UserError, match=r"\.lock: cannot be written: a link"), directory.locked():
        pass
    directory.create()
    directory.write_exit(0, "done")
    directory.metrics.unlink()
    directory.append_metrics({"step": 1})
    directory.cut_metrics(0)
    assert (victim.read_text(), directory.read_exit() or {})[0] == "theirs"
    assert (directory.read_exit() or {})["code"] == 0


def test_a_lock_may_not_be_something_to_wait_for(directory: RunDirectory) -> None:
    os.mkfifo(directory.path / ".lock")
    with pytest.raises(UserError, match="cannot be written"), directory.locked():
        pass


def test_heartbeats_that_are_none_are_left_out(directory: RunDirectory) -> None:
    directory.heartbeats.mkdir()
    beat = Heartbeat(0, "host", 1, 5, "stepping", 9, since=1.0, time=2.0, period=1.0)
    Board(directory.heartbeats / "node-0.jsonl").write(beat)
    good = (directory.heartbeats / "node-0.jsonl").read_bytes()
    for number, text in enumerate(
        (
            b"\xff", b"[" * 200_000, b"{}", good.replace(b"2.0", b"Infinity"),
            good.replace(b'"rank": 0', b'"rank": "x"'), good.replace(b"1.0", b"null"),
            good.replace(b'"status"', b'"other"'),
        )
    ):  # fmt: skip
        (directory.heartbeats / f"node-{number + 1}.jsonl").write_bytes(text)
    assert read_heartbeats(directory.heartbeats) == [beat]
