"""The cache of a real node: `lazyfs cache`, disks that are full or gone, and bits that flip."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.images import BuiltImage
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.waiting import wait_until

from .conftest import Node, assert_error, drop_page_cache, succeed

MIB = 1 << 20


@pytest.fixture(scope="session")
def truth(built_small: BuiltImage) -> dict[str, str]:
    """The sha256 of every file of the small image."""
    tree = json.loads(built_small.tree.read_bytes())
    return {path: record["sha256"] for path, record in tree.items() if record["type"] == "file"}


def assert_right(view: Path, truth: dict[str, str]) -> None:
    for path, digest in truth.items():
        assert hashlib.sha256((view / path).read_bytes()).hexdigest() == digest, path


def shown(node: Node) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(succeed(node("cache", "--json")).stdout)
    return values


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        for _ in list_mounts(disk):
            unmount(disk, detach=True)


def with_directories(node: Node, *directories: Path, limit: str = "100%") -> None:
    node.root.mkdir()
    tables = [f'[[cache.directory]]\npath = "{path}"\nlimit = "{limit}"\n' for path in directories]
    (node.root / "config.toml").write_text("".join(tables))


def test_show_pin_prune_verify(node: Node, small: str, truth: dict[str, str], tmp_path: Path) -> None:
    assert_error(node("cache"), 3)
    view = node.mount(small, tmp_path / "view", "--no-fill")
    assert_right(view, truth)
    (image,) = shown(node)["images"]
    assert 0 < image["present_bytes"] <= image["bytes"]
    assert image["reference"] in succeed(node("cache")).stdout
    succeed(node("cache", "pin", small))
    assert ", pinned" in succeed(node("cache")).stdout
    assert_error(node("cache", "prune", small), 8, "pinned")
    succeed(node("cache", "unpin", small))
    assert "would drop" in succeed(node("cache", "prune", small, "--dry-run")).stdout
    assert "match their digests" in succeed(node("cache", "verify")).stdout
    # In use, and nothing of it is here any more: it comes again.
    succeed(node("cache", "prune", small))
    assert shown(node)["images"][0]["present_bytes"] == 0
    drop_page_cache()
    assert_right(view, truth)
    node.umount(view)
    succeed(node("shutdown"))
    (image,) = shown(node)["images"]
    assert image["present_bytes"] > 0
    assert_error(node("cache", "prune"), 2)
    assert_error(node("cache", "prune", "--older", "soon"), 2, "'soon' is not an age")
    assert_error(node("cache", "pin", "oci:/nowhere:tag"), 3, "never opened")
    succeed(node("cache", "prune", "--to", "0"))
    assert [layer["disk_bytes"] for layer in shown(node)["layers"]] == [0] * len(image["layers"])


def test_warming_what_a_start_reads(node: Node, copied_small: str) -> None:
    succeed(node("profile", copied_small, "--ready", "exit", "--", "/bin/true"))
    pack = json.loads(succeed(node("cache", "warm", "--pack", copied_small, "--json")).stdout)["pack"]
    assert pack["state"] == "done"
    (image,) = shown(node)["images"]
    assert 0 < image["present_bytes"] < image["bytes"] / 2


def test_a_bit_flips_on_the_disk(node: Node, small: str, truth: dict[str, str], tmp_path: Path) -> None:
    warmed = json.loads(succeed(node("cache", "warm", small, "--json")).stdout)
    assert warmed["present_bytes"] == warmed["bytes"] > MIB
    succeed(node("shutdown"))
    layer = max(shown(node)["layers"], key=lambda each: int(each["bytes"]))
    assert layer["present_bytes"] == layer["bytes"]
    data = node.root / "cache" / layer["toc"] / "data"
    for way in ("verify", "--paranoid"):
        flip_all_over(data)
        if way == "verify":
            assert_error(node("cache", "verify"), 5, "damaged on the disk")
        view = node.mount(small, tmp_path / "view", *(["--paranoid"] if way != "verify" else []))
        assert_right(view, truth)
        node.umount(view)
        if way != "verify":
            assert node.status()["cache"]["damaged_chunks"] > 0
        succeed(node("shutdown"))
        succeed(node("cache", "warm", small))
        succeed(node("shutdown"))


def flip_all_over(path: Path) -> None:
    """A bit in each piece of 100 kB."""
    with path.open("r+b") as data:
        for offset in range(50_000, path.stat().st_size, 100_000):
            data.seek(offset)
            (byte,) = data.read(1)
            data.seek(offset)
            data.write(bytes((byte ^ 4,)))


def test_a_full_disk_fails_no_read_and_is_used_again_when_there_is_room(
    node: Node, small: str, truth: dict[str, str], small_disk: Path, tmp_path: Path
) -> None:
    with_directories(node, small_disk)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    view = node.mount(small, tmp_path / "view")
    assert_right(view, truth)
    status = node.status()
    assert status["cache_write_failures"] > 0
    assert any("No space left" in reason for reason in status["recent_failures"])
    assert sum(layer["present_bytes"] for layer in status["layers"]) == 0
    ballast.unlink()
    drop_page_cache()
    assert_right(view, truth)
    assert sum(layer["present_bytes"] for layer in node.status()["layers"]) > MIB
    node.umount(view)


def test_the_limit_is_kept(node: Node, small: str, truth: dict[str, str], tmp_path: Path) -> None:
    view = node.mount(small, tmp_path / "view", "--cache-limit", "2M")
    for _ in range(2):
        assert_right(view, truth)
        (directory,) = shown(node)["directories"]
        assert MIB // 2 < directory["used"] <= 2 * MIB
        drop_page_cache()
    assert_error(node("mount", small, tmp_path / "view", "--cache-limit", "much"), 8)
    node.umount(view)
    assert_error(node("mount", small, tmp_path / "view", "--cache-limit", "much"), 2, "'much' is not a size")


def test_a_disk_that_goes_away_takes_its_contents_and_nothing_else(
    make_node: Callable[..., Node], small: str, truth: dict[str, str], small_disk: Path, tmp_path: Path
) -> None:
    node = make_node()
    lost, other = small_disk / "cache", tmp_path / "other"
    lost.mkdir()
    other.mkdir()
    with_directories(node, lost, other)
    view = node.mount(small, tmp_path / "view")
    assert_right(view, truth)
    unmount(small_disk, detach=True)
    wait_until(lambda: not lost.exists(), "the disk's end")
    drop_page_cache()
    assert_right(view, truth)
    node.umount(view)
    succeed(node("shutdown"))
    view = node.mount(small, tmp_path / "view")
    assert_right(view, truth)
    directories = shown(node)["directories"]
    assert directories[0]["problem"] == "No such file or directory"
    assert directories[1]["used"] > MIB
    assert any(str(lost) in reason for reason in node.status()["recent_failures"])
    node.umount(view)
