"""Opening a stranger's files."""

import os
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.common.files import open_regular, read_regular
from triax.data.record import load_prepared


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(path, 4)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing"])
def test_nothing_else_is_opened_and_no_descriptor_is_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match=r"not a regular file|No such file"):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.json")
    with pytest.raises(UserError, match="not a regular file"):
        load_prepared(tmp_path)
