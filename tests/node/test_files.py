"""Small files, written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from lazyfs.errors import NodeError
from lazyfs.node.files import TORN, remove_torn, write_new


def test_written_and_replaced(tmp_path: Path) -> None:
    write_new(tmp_path / "file", b"one")
    write_new(tmp_path / "file", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"two"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_new(tmp_path / "file", b"one")
    with monkeypatch.context() as patched, pytest.raises(NodeError, match="No space left") as caught:
        patched.setattr(Path, "write_bytes", full)
        write_new(tmp_path / "file", b"two")
    assert "free some space" in caught.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"one"}


def test_what_was_not_written_to_its_end_goes(tmp_path: Path) -> None:
    write_new(tmp_path / "file", b"one")
    (tmp_path / f"{TORN}file.123").write_bytes(b"tw")
    remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
