"""What is wrong with an image, or with the disk of the node that opens it."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import BadInputError, IntegrityError, LimitError, NodeError
from lazyfs.formats import image_tree
from lazyfs.mount.ladder import FILE, LOOP, TREE
from lazyfs.stores import Image
from tests.waiting import wait_until

from .open_node import MakeNode, OpenNode, blobs, damage, retag


def test_damage_is_named_and_mended_without_a_restart(make: MakeNode, layout: Path) -> None:
    each, blob = make(), blobs(layout)[0]
    image = each.open(layout)
    right = damage(blob)
    with pytest.raises(IntegrityError):
        each.devices(image)
    assert blob.name in each.node.status()["recent_failures"][-1]
    blob.write_bytes(right)
    wait_until(lambda: can_be_read(each, image), "the damage to be forgotten")


def can_be_read(node: OpenNode, image: dict[str, Any]) -> bool:
    try:
        return len(node.devices(image)) == len(image["layers"])
    except IntegrityError:
        return False


def test_damaged_toc(make: MakeNode, layout: Path) -> None:
    each, blob = make(), blobs(layout)[0]
    right = damage(blob)
    with pytest.raises(IntegrityError, match="TOC does not match"):
        each.open(layout)
    blob.write_bytes(right)
    image = each.open(layout)
    # A node that knows the TOC does not ask for it again; one that is damaged on the node's own disk is.
    each.close()
    damage(blob)
    assert make().open(layout)["key"] == image["key"]
    for toc in each.paths.tocs.iterdir():
        toc.write_bytes(b"damaged")
    blob.write_bytes(right)
    assert make().open(layout)["key"] == image["key"]
    assert all(toc.read_bytes() != b"damaged" for toc in each.paths.tocs.iterdir())


def test_a_config_that_claims_another_layer(make: MakeNode, layout: Path) -> None:
    """Whether or not the node has the layer's TOC already."""

    def swap(image: Image) -> Image:
        return replace(image, config=replace(image.config, diff_ids=image.config.diff_ids[::-1]))

    retag(layout, "swapped", swap)
    each = make()
    for _ in range(2):
        with pytest.raises(BadInputError, match="its TOC is of sha256:"):
            each.open(layout, "swapped")
        each.open(layout)


def test_a_manifest_that_says_its_blob_is_shorter(make: MakeNode, layout: Path) -> None:
    blob = blobs(layout)[0]

    def shorten(image: Image) -> Image:
        first, *rest = image.manifest.layers
        return replace(image, manifest=replace(image.manifest, layers=(replace(first, size=1000), *rest)))

    short = layout.parent / "short"
    shutil.copytree(layout, short)
    os.truncate(short / "blobs" / "sha256" / blob.name, 1000)
    retag(short, "short", shorten)
    each = make()
    each.open(layout)
    with pytest.raises(BadInputError, match="behind the end of"):
        each.open(short, "short")


def test_no_room_for_the_toc_costs_nothing(
    make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent.name == "toc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    each = make()
    assert each.devices(each.open(made))
    assert list(each.paths.tocs.iterdir()) == []


def test_no_room_for_the_bootstrap(make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    each = make()
    with monkeypatch.context() as patched, pytest.raises(NodeError, match="No space left") as caught:
        patched.setattr(Path, "write_bytes", full)
        each.open(made)
    assert "free some space" in caught.value.hint
    assert list(each.paths.root.rglob(".*")) == [], "half a file was left"
    assert each.open(made)["key"]


def test_bootstraps_of_earlier_boots_are_removed(make: MakeNode, made: Path) -> None:
    each = make()
    old = each.paths.bootstraps / "deadbeef"
    old.mkdir()
    (old / "key").write_bytes(b"torn")
    image = each.open(made)
    each.close()
    again = make()
    assert not old.exists()
    assert again.open(made)["bootstrap"] == image["bootstrap"]


def test_half_written_files_of_a_killed_daemon_are_removed(make: MakeNode, made: Path) -> None:
    each = make()
    image = each.open(made)
    each.close()
    left = [directory / ".new-abc.123" for directory in (each.paths.tocs, Path(image["bootstrap"]).parent)]
    for path in left:
        path.write_bytes(b"half")
    assert make().open(made)["key"] == image["key"]
    assert not any(path.exists() for path in left)


def test_flush_of_a_failing_disk_is_counted(
    make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    each = make()
    image = each.open(made)
    right = each.devices(image)
    each.wait_kept()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        each.node.flush()
    status = each.node.status()
    assert status["cache_write_failures"] == 2
    assert status["recent_failures"] == ["cache: sync: Input/output error"]
    assert each.devices(image) == right


def test_an_image_that_has_no_tree_is_an_error_of_who_asks(
    make: MakeNode, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every mount mode: nothing of it is shown to the kernel, in the loop that answers for all containers."""
    monkeypatch.setattr(image_tree, "MAX_INODES", 1)
    each = make()
    for mode in (FILE, LOOP, TREE):
        with pytest.raises(LimitError):
            each.node.open_image(f"oci:{layout}:lazy", Path("/"), mode=mode)
        assert list(each.paths.bootstraps.glob("*/*")) == []
    monkeypatch.undo()
    opened = each.node.open_image(f"oci:{layout}:lazy", Path("/"), mode=TREE)
    assert each.table.tree_named(opened["key"].encode()) is not None
