"""The tree that is shown is the tree that tar, as root, unpacks of the original layers."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from random import Random

import pytest

from benchmarks.images import BuiltImage
from benchmarks.images.tree import list_tree
from benchmarks.unpack import image_layers, unpack
from tests.layouts import put_image
from tests.referees import Snapshot, TarReferee, snapshot
from tests.trees import layer_tar, random_layers

from .conftest import RUNGS, Node, lazyfs, succeed


def members(layer: Path) -> list[str]:
    listed = subprocess.run(
        ["tar", "--list", "--gzip", "--quoting-style=literal", f"--file={layer}"],
        check=True,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    return [os.path.normpath(name) for name in listed.stdout.split("\n") if name]


def times_that_unpacking_changed(layers: list[Path]) -> set[str]:
    """Directories that a layer changes the content of and has no member for.

    tar sets the times of the directories that it has members for after all else; in the others it makes,
    replaces or removes names, so that their mtime becomes the moment of the unpacking.
    """
    changed: set[str] = set()
    for layer in layers:
        names = members(layer)
        touched = {str(Path(name).parent) for name in names if name != "."}
        changed = (changed | touched) - set(names)
    return changed


def make_room(layer: Path, target: Path) -> None:
    """Remove directories of lower layers that are something else in this one: tar removes empty ones alone."""
    with tarfile.open(layer) as archive:
        for member in archive:
            path = target / member.name
            if not member.isdir() and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def without_mtime(tree: Snapshot, paths: set[str]) -> dict[bytes, tuple[object, ...]]:
    return {
        path: (record.mode, record.owner, record.links, record.xattrs)
        for path, record in tree.items()
        if (os.fsdecode(path) or ".") in paths
    }


def check_tree(
    node: Node, reference: str, built: BuiltImage, tmp_path: Path, changed: set[str], mode: str = "auto"
) -> None:
    layers, _ = image_layers(built.layout, built.tag)
    assert times_that_unpacking_changed(layers) == changed
    for layer in layers:
        make_room(layer, tmp_path / "unpacked")
        unpack([layer], tmp_path / "unpacked")
    view = node.mount(reference, tmp_path / "view", "--mount-mode", mode)
    shown, unpacked = snapshot(view), snapshot(tmp_path / "unpacked")
    assert without_mtime(shown, changed) == without_mtime(unpacked, changed)
    for path in changed:
        for tree in (shown, unpacked):
            del tree[os.fsencode(path) if path != "." else b""]
    assert shown == unpacked
    # The builder listed the tree before it was ever packed: with it the times of those directories are proved, too.
    assert list_tree(view) == json.loads(built.tree.read_bytes())
    node.umount(view)


@pytest.mark.parametrize("mode", RUNGS)
def test_small_image(node: Node, small: str, built_small: BuiltImage, tmp_path: Path, mode: str) -> None:
    # Upper layers have no member for the root.
    check_tree(node, small, built_small, tmp_path, {"."}, mode)


@pytest.mark.image
def test_demo_image(node: Node, demo: str, built_demo: BuiltImage, tmp_path: Path) -> None:
    check_tree(node, demo, built_demo, tmp_path, {"."})
    assert node.status()["failed_fetches"] == 0


@pytest.mark.image
def test_demo_image_is_worth_comparing(built_demo: BuiltImage) -> None:
    """It has what is easily lost."""
    tree = json.loads(built_demo.tree.read_bytes())
    assert "security.capability" in tree["usr/bin/ping"]["xattrs"]
    assert any(record["mtime_ns"] % 10**9 for record in tree.values())
    assert any(int(record["mode"], 8) & 0o6000 for record in tree.values())
    assert any(record.get("nlink", 1) > 1 for record in tree.values())
    assert {record["type"] for record in tree.values()} >= {"file", "dir", "symlink", "char"}


@pytest.mark.parametrize("seed", range(3))
def test_random_images(node: Node, tmp_path: Path, seed: int) -> None:
    """The same in each mode, also at the same time."""
    layers = random_layers(Random(seed), layers=3, members=25)
    referee = TarReferee(tmp_path / "unpacked")
    (tmp_path / "unpacked").mkdir()
    for layer in layers:
        referee.apply(layer)
    put_image(tmp_path / "layout", [layer_tar(layer) for layer in layers])
    succeed(lazyfs("convert", f"oci:{tmp_path}/layout:made", f"oci:{tmp_path}/lazy:made"))
    succeed(lazyfs("check", f"oci:{tmp_path}/lazy:made"))
    views = [
        node.mount(f"oci:{tmp_path}/lazy:made", tmp_path / f"view-{mode}", "--mount-mode", mode)
        for mode in RUNGS
    ]
    for view in views:
        assert snapshot(view) == referee.expected()
    for view in views:
        node.umount(view)


def test_layer_twice_and_empty_layers(node: Node, tmp_path: Path) -> None:
    """As images of older builders have them; an empty layer is two blocks of zeros, or nothing at all."""
    one, two = (layer_tar(layer) for layer in random_layers(Random(7), layers=2, members=10))
    put_image(tmp_path / "layout", [one, bytes(1024), two, bytes(1024), b"", one])
    succeed(lazyfs("convert", f"oci:{tmp_path}/layout:made", f"oci:{tmp_path}/lazy:made"))
    put_image(tmp_path / "layout", [one, two, one], "plain")
    succeed(lazyfs("convert", f"oci:{tmp_path}/layout:plain", f"oci:{tmp_path}/lazy:plain"))
    odd = node.mount(f"oci:{tmp_path}/lazy:made", tmp_path / "odd")
    plain = node.mount(f"oci:{tmp_path}/lazy:plain", tmp_path / "plain")
    assert snapshot(odd) == snapshot(plain)
    for view in (odd, plain):
        node.umount(view)


def test_as_many_layers_as_docker_makes(node: Node, tmp_path: Path) -> None:
    layers = random_layers(Random(8), layers=127, members=2)
    put_image(tmp_path / "layout", [layer_tar(layer) for layer in layers])
    succeed(lazyfs("convert", f"oci:{tmp_path}/layout:made", f"oci:{tmp_path}/lazy:made"))
    referee = TarReferee(tmp_path / "unpacked")
    (tmp_path / "unpacked").mkdir()
    for layer in layers:
        referee.apply(layer)
    view = node.mount(f"oci:{tmp_path}/lazy:made", tmp_path / "view")
    assert snapshot(view) == referee.expected()
    node.umount(view)
