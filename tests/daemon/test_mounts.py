"""Images mounted and unmounted by many at once, through daemons that live and daemons that were killed."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, LazyfsError, NodeError
from lazyfs.mount import images
from lazyfs.mount.images import mount_view, mount_writable, targets, unmount_image
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

from .conftest import LOWER
from .processes import kill, open_made

pytestmark = pytest.mark.root


def test_a_dead_image_is_not_used_again(paths: NodePaths, made: Path, target: Path, tmp_path: Path) -> None:
    """While one is still mounted somewhere, the same image works through the next daemon."""
    mount_view(paths, open_made(paths, made), target)
    kill(paths)
    with pytest.raises(OSError, match="Input/output error"):
        (target / "big").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    mount_view(paths, open_made(paths, made), other)
    assert (other / "big").read_bytes() == LOWER[0].content
    assert {entry.target for entry in targets(paths)} == {target, other}
    unmount_image(paths, target)
    assert (other / "text").read_text() == "upper"
    unmount_image(paths, other)


def test_it_is_killed_between_opening_and_mounting(paths: NodePaths, made: Path, target: Path) -> None:
    image = open_made(paths, made)
    kill(paths)
    with pytest.raises(LazyfsError):
        mount_view(paths, image, target)
    unmount(paths.fuse, detach=True)
    with pytest.raises(NodeError, match="has ended"):
        mount_writable(paths, image, target, paths.mounts / "rw")
    assert list_mounts(target) == []
    assert [path.name for path in paths.images.iterdir()] == [".lock"]
    assert not (paths.mounts / "rw").exists()


def test_one_target_for_many_at_once(paths: NodePaths, made: Path, target: Path) -> None:
    image = open_made(paths, made)

    def mount() -> bool:
        try:
            mount_view(paths, image, target)
        except BusyError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: mount(), range(8))) == 1
    unmount_image(paths, target)
    assert list_mounts(target) == []


def test_mounting_and_unmounting_at_once(paths: NodePaths, made: Path, tmp_path: Path) -> None:
    """The image's own mount comes and goes; nobody finds it gone."""
    image = open_made(paths, made)
    directories = [tmp_path / f"target{number}" for number in range(4)]

    def use(directory: Path) -> None:
        directory.mkdir()
        for number in range(8):
            if number % 2:
                mount_view(paths, image, directory)
            else:
                mount_writable(paths, image, directory, paths.mounts / f"{directory.name}-{number}")
            assert (directory / "text").read_text() == "upper"
            unmount_image(paths, directory)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, directories))
        assert list(paths.mounts.iterdir()) == []
        assert [path.name for path in paths.images.iterdir()] == [".lock"]
    finally:
        for directory in directories:
            unmount(directory, detach=True)


def test_a_mount_that_fails_leaves_nothing(
    paths: NodePaths, made: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise NodeError("no")

    image = open_made(paths, made)
    monkeypatch.setattr(images, "mount_overlay", fail)
    with pytest.raises(NodeError, match="no"):
        mount_writable(paths, image, target, paths.mounts / "rw")
    monkeypatch.setattr(images, "bind", fail)
    with pytest.raises(NodeError, match="no"):
        mount_view(paths, image, target)
    assert list(paths.mounts.iterdir()) == []
    assert [path.name for path in paths.images.iterdir()] == [".lock"]


def test_a_disk_that_fails_while_an_image_is_mounted_leaves_no_directory(
    paths: NodePaths, made: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_made(paths, made)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing_disk:
        failing_disk.setattr(images, "mount_erofs", fail)
        with pytest.raises(NodeError, match="Input/output error"):
            mount_view(paths, image, target)
    assert [path.name for path in paths.images.iterdir()] == [".lock"]
    mount_view(paths, image, target)
    unmount_image(paths, target)
