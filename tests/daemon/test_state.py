"""What the next daemon must know, on a disk that gives it back wrong."""

import sqlite3
from pathlib import Path

import pytest

from lazyfs.daemon.state import State
from lazyfs.errors import NodeError

LAYER = {"mediaType": "application/x", "digest": "sha256:" + "a" * 64, "size": 1}


def change(directory: Path, statement: str) -> None:
    database = sqlite3.connect(directory / "node.db")
    with database:
        database.execute(statement)
    database.close()


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    state = State(tmp_path, "boot 0:7")
    state.put_layer("b" * 64, LAYER, "sha256:" + "c" * 64, "oci:somewhere:app")
    for table in ("layers", "images"):
        change(tmp_path, f"DROP TABLE {table}")
    for reading in (state.layers, state.images, lambda: state.digest("oci:somewhere:app")):
        with pytest.raises(NodeError, match=r"node\.db: no such table"):
            reading()
    state.close()


def test_a_damaged_row_costs_only_what_it_is_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = State(tmp_path, "boot 0:7")
    numbers = [state.put_layer(toc * 64, LAYER, "sha256:" + "c" * 64, "oci:somewhere:app") for toc in "bc"]
    for name in ("one", "two"):
        state.put_image(name, f"oci:somewhere:{name}", {"digest": f"sha256:{name}", "layers": numbers})
    change(tmp_path, f"UPDATE layers SET sources = '[\"oci:some' WHERE inode = {numbers[0]}")
    change(tmp_path, "UPDATE images SET answer = '{' WHERE name = 'one'")
    assert [each.inode for each in state.layers()] == numbers[1:]
    assert list(state.images()) == ["two"]
    assert state.digest("oci:somewhere:one") is None
    assert state.digest("oci:somewhere:two") == "sha256:two"
    assert f"of device {numbers[0]} is damaged" in caplog.text
    state.close()
