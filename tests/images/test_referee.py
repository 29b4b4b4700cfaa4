"""What skopeo, GNU tar and a JSON reader say of the images, beside what the builder wrote of them."""

import hashlib
import json
import os
import stat
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.images import BuiltImage
from benchmarks.images.tree import list_tree

pytestmark = pytest.mark.root

_IMAGES = ["small_image", pytest.param("demo_image", marks=pytest.mark.image)]


@pytest.fixture(params=_IMAGES)
def image(request: pytest.FixtureRequest) -> BuiltImage:
    built = request.getfixturevalue(request.param)
    assert isinstance(built, BuiltImage)
    return built


def _run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _blob(image: BuiltImage, digest: str) -> Path:
    return image.layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _layers(image: BuiltImage) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(_run("skopeo", "inspect", "--raw", image.reference))["layers"]
    return layers


def _config(image: BuiltImage) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_run("skopeo", "inspect", "--config", image.reference))
    return config


def test_skopeo_copies_every_blob(image: BuiltImage, tmp_path: Path) -> None:
    """Skopeo checks each digest and size on the way."""
    _run("skopeo", "copy", image.reference, f"dir:{tmp_path}/copy")
    assert len(list((tmp_path / "copy").iterdir())) == len(_layers(image)) + 3  # config, manifest, version


def test_config_describes_the_layers(image: BuiltImage) -> None:
    layers, config = _layers(image), _config(image)
    diff_ids = []
    for layer in layers:
        blob = _blob(image, layer["digest"]).read_bytes()
        assert layer["size"] == len(blob)
        assert blob[4:8] == bytes(4), "the gzip header carries a time"
        plain = zlib.decompress(blob, wbits=16 + zlib.MAX_WBITS)
        diff_ids.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
    assert config["rootfs"]["diff_ids"] == diff_ids
    assert [not entry.get("empty_layer") for entry in config["history"]].count(True) == len(layers)
    assert config["os"] == "linux"


def test_layers_unpacked_by_tar_are_the_tree_that_the_builder_had(image: BuiltImage, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for layer in _layers(image):
        _unpack(_blob(image, layer["digest"]), root)
    expected, actual = json.loads(image.tree.read_bytes()), list_tree(root)
    assert list(actual) == list(expected)
    assert {path: record for path, record in actual.items() if record != expected[path]} == {}


def _unpack(blob: Path, root: Path) -> None:
    """One layer over the ones below: first what is removed or becomes something else, then tar."""
    before = root.stat()
    with tarfile.open(blob) as tar:
        members = tar.getmembers()
    for member in members:
        directory, _, name = member.name.rpartition("/")
        path = root / member.name
        if name == ".wh..wh..opq":
            # It may mark a directory that is new, or that takes the place of something else.
            _run("rm", "-rf", root / directory)
        elif name.startswith(".wh."):
            assert os.path.lexists(path.with_name(name[4:])), f"{member.name} removes nothing"
            _run("rm", "-rf", path.with_name(name[4:]))
        elif os.path.lexists(path) and member.isdir() != stat.S_ISDIR(path.lstat().st_mode):
            _run("rm", "-rf", path)
    _run(
        *("tar", "-C", root, "-xpzf", blob),
        *("--xattrs", "--xattrs-include=*", "--numeric-owner", "--exclude=.wh.*"),
    )
    if "." not in [member.name for member in members]:
        os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_small_image_has_what_layers_can_say(small_image: BuiltImage) -> None:
    members = []
    for layer in _layers(small_image):
        with tarfile.open(_blob(small_image, layer["digest"])) as tar:
            members.append({member.name: member for member in tar})
    base, middle, top = members
    assert sum(member.islnk() for member in base.values()) > 100
    assert middle["srv/app/empty"].gid == 4000000
    assert middle["srv/app/kept/link"].mtime < 0
    assert {"srv/app/.wh.gone", "srv/app/kept/.wh.deleted", "srv/app/opaque/.wh..wh..opq"} <= set(top)
    tree = json.loads(small_image.tree.read_bytes())
    assert tree["srv/app/random"]["nlink"] == 2
    assert tree["srv/app/kept/hardlink"]["nlink"] == 1, "the other name was copied up"
    assert tree["srv/app/turns/link"]["target"] == "dir"
    assert "srv/app/not utf-8 \udcff\udcfe" in tree


@pytest.mark.image
def test_demo_image_has_what_real_images_have(demo_image: BuiltImage) -> None:
    tree = json.loads(demo_image.tree.read_bytes())
    names = [name for layer in _layers(demo_image) for name in _names(_blob(demo_image, layer["digest"]))]
    assert "usr/share/doc/.wh..wh..opq" in names
    assert "usr/bin/.wh.less" in names, "a file of the second layer is removed"
    assert "usr/share/.wh.zoneinfo" in names, "a directory of the base layer is removed"
    assert "security.capability" in tree["usr/bin/ping"]["xattrs"]
    assert tree["media"]["target"] == "mnt"
    assert any(path.endswith("numpy/core/__init__.py") for path in tree)
    assert not [path for path in tree if path.startswith(("var/lib/apt/lists/", "tmp/"))]
    assert not [path for path in tree if path.endswith(".deb")]
    config = _config(demo_image)["config"]
    assert config["User"] == "app"
    assert config["Entrypoint"] + config["Cmd"] == ["python3", "ready.py"]


def _names(blob: Path) -> list[str]:
    with tarfile.open(blob) as tar:
        return tar.getnames()
