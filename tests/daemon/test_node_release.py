"""What a node lets go of, and what the next daemon shows."""

from pathlib import Path

import pytest

from lazyfs.config import NodePaths, boot_id
from lazyfs.daemon import node as node_module
from lazyfs.daemon.node import Node
from lazyfs.daemon.state import State
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache_settings import CacheSettings

from .open_node import MakeNode, blobs, damage


def test_what_nobody_mounts_is_let_go(make: MakeNode, layout: Path) -> None:
    first = make()
    image = first.open(layout)
    content = first.devices(image)
    first.wait_kept()
    assert first.node.release() == {"layers": 2}
    status = first.node.status()
    assert (status["layers"], status["images"], first.table.listing()) == ([], [], [])
    assert status["layers_to_fill"] == 0
    assert first.node.release() == {"layers": 0}
    # Opened again, its devices have the numbers that they had, and what was fetched is there.
    for blob in blobs(layout):
        damage(blob)
    again = first.open(layout)
    assert again == image
    assert first.devices(again) == content


def test_what_is_mounted_stays(make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = make()
    image = opened.open(made)
    monkeypatch.setattr(node_module, "mounted_keys", lambda _: {image["key"]})
    assert opened.node.release() == {"layers": 0}
    assert len(opened.devices(image)) == 2
    assert [each["key"] for each in opened.node.status()["images"]] == [image["key"]]


def test_what_was_let_go_is_not_shown_by_the_next_daemon(tmp_path: Path, made: Path) -> None:
    """But what was not is, and stays: the kernel may have it open."""

    def node() -> Node:
        return Node(NodePaths(tmp_path), DeviceTable(), CacheSettings(), connection="0:7")

    one = node()
    one.open_image(f"oci:{made}:lazy", Path("/"))
    one.close()
    two = node()
    assert len(two.status()["layers"]) == 2
    assert two.release() == {"layers": 0}
    two.close()
    state = State(NodePaths(tmp_path).state, f"{boot_id().decode()} 0:7")
    for layer in state.layers():
        state.let_go(layer.inode)
    state.close()
    three = node()
    assert (three.status()["layers"], three.status()["images"]) == ([], [])
    three.close()
