"""Mounting images where people and containers want them, and unmounting what nobody uses any more.

    <root>/m/<key>   the image's EROFS mount, one however many use it
    target           that tree again (a bind mount), or an overlay with the tree as its only lower directory

Who uses an image is read from the kernel's own table of mounts, so there is no record that a killed
process could leave wrong. One lock makes "look, then mount or unmount" one step.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, NodeError, NotFoundError, UsageError
from lazyfs.mount.mountinfo import MountEntry, all_mounts, mount_at
from lazyfs.mount.syscalls import bind, mount_erofs, mount_overlay, unmount


def mount_view(paths: NodePaths, image: Mapping[str, Any], target: Path) -> None:
    """Show the image read-only at `target`. `image` is the daemon's answer to `open_image`."""
    with _locked(paths), _released_on_failure(paths):
        bind(_attach(paths, image), target)


def mount_writable(paths: NodePaths, image: Mapping[str, Any], target: Path, directory: Path) -> None:
    """Mount an overlay on the image at `target`; what is written goes to `directory`/upper."""
    upper, work = directory / "upper", directory / "work"
    with _locked(paths), _released_on_failure(paths):
        lower = _attach(paths, image)
        try:
            upper.mkdir(parents=True)
            work.mkdir(mode=0o700)
            # An overlay's root is its upper directory's: it must look as the image's does.
            of = lower.stat()
            os.chown(upper, of.st_uid, of.st_gid)
            upper.chmod(of.st_mode & 0o7777)
        except OSError as error:
            raise NodeError(
                f"{error.filename}: {error.strerror}", hint="free some space below --root"
            ) from error
        mount_overlay(target, [lower], upper, work)


def unmount_image(paths: NodePaths, target: Path, *, detach: bool = False) -> None:
    """Undo `mount_view` or `mount_writable` at `target`, with what was written there.

    Raises NotFoundError if nothing of this node is mounted there, BusyError while it is in use.
    """
    with _locked(paths):
        entry = mount_at(target)
        if entry is None or not _is_ours(paths, entry):
            raise NotFoundError(
                f"{target} is not an image mounted by this node ({paths.root})",
                hint="`lazyfs status` lists them",
            )
        unmount(target, detach=detach)
        upper = _option(entry, "upperdir")
        if upper is not None and Path(upper).is_relative_to(paths.mounts):
            shutil.rmtree(Path(upper).parent, ignore_errors=True)
        _release_unused(paths)


def release_unused(paths: NodePaths) -> None:
    """Unmount the images that no target uses."""
    with _locked(paths):
        _release_unused(paths)


def targets(paths: NodePaths) -> list[MountEntry]:
    """Where images of this node are mounted for somebody."""
    return [entry for entry in all_mounts() if _is_ours(paths, entry)]


def check_target(target: Path) -> None:
    """Raise unless `target` can be mounted on: an empty directory that nothing is mounted on."""
    if not target.is_dir():
        raise NotFoundError(f"{target} is not a directory", hint=f"mkdir {target}")
    if mount_at(target) is not None:
        raise BusyError(f"something is mounted on {target} already", hint=f"lazyfs umount {target}")
    if any(target.iterdir()):
        raise UsageError(
            f"{target} is not empty", hint="choose an empty directory, so that nothing is hidden"
        )


def _attach(paths: NodePaths, image: Mapping[str, Any]) -> Path:
    """The image's own EROFS mount, made if it is not there."""
    directory = paths.images / str(image["key"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(f"{directory}: {error.strerror}") from error
    if mount_at(directory) is None:
        mount_erofs(Path(image["bootstrap"]), [Path(device) for device in image["devices"]], directory)
    return directory


def _release_unused(paths: NodePaths) -> None:
    entries = all_mounts()
    used = {_image_of(paths, entry, entries) for entry in entries}
    for entry in entries:
        if entry.target.parent == paths.images and entry.target not in used:
            unmount(entry.target, detach=True)
            entry.target.rmdir()


def _is_ours(paths: NodePaths, entry: MountEntry) -> bool:
    return _image_of(paths, entry, all_mounts()) is not None


def _image_of(paths: NodePaths, entry: MountEntry, entries: list[MountEntry]) -> Path | None:
    """The image mount (below <root>/m) that `entry` shows; None for the image mounts themselves and for others."""
    if entry.target.parent == paths.images:
        return None
    if entry.kind == "overlay":
        lower = Path(_option(entry, "lowerdir") or "")
        return lower if lower.parent == paths.images else None
    if entry.kind == "erofs":
        for image in entries:
            if image.device == entry.device and image.target.parent == paths.images:
                return image.target
    return None


def _option(entry: MountEntry, name: str) -> str | None:
    for option in entry.super_options.split(","):
        key, equals, value = option.partition("=")
        if key == name and equals:
            return value
    return None


@contextmanager
def _released_on_failure(paths: NodePaths) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _release_unused(paths)
        raise


@contextmanager
def _locked(paths: NodePaths) -> Iterator[None]:
    try:
        paths.images.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(paths.images / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{paths.images}: {error.strerror}", hint="mounting needs root") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
