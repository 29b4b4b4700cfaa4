"""Mounting images where people and containers want them, and unmounting what nobody uses any more.

    <root>/m/<key>-<n>       the image's own mount, one however many use it; <key>-loop<n>, <key>-tree<n> in those modes
    <root>/m/<key>-direct    the same where all layers are whole in the cache: it needs no daemon
    target                   that tree again (a bind mount), or an overlay with the tree as its only lower directory

`n` is the minor device number of the devices' FUSE mount: an image mount whose daemon was killed is dead for ever,
and is not found by who mounts the image through the next daemon. The number is not used again while it lives.

Who uses an image is read from the kernel's own table of mounts, so there is no record that a killed
process could leave wrong. One lock makes "look, then mount or unmount" one step.
"""

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

from lazyfs.beneath import open_named, proc_path
from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, LazyfsError, NodeError, NotFoundError, UsageError
from lazyfs.mount import ladder
from lazyfs.mount.direct import DirectFile, are_held, open_direct
from lazyfs.mount.loop import mount_erofs_on_loop
from lazyfs.mount.mountinfo import MountEntry, all_mounts, list_mounts, mount_at
from lazyfs.mount.read_ahead import restore_read_ahead, switch_off_read_ahead, without_read_ahead
from lazyfs.mount.syscalls import bind, bind_image, mount_erofs, mount_overlay, unmount

log = logging.getLogger(__name__)

DIRECT = "direct"
_KEY = re.compile(r"[0-9a-zA-Z]{1,64}")


def mount_view(paths: NodePaths, image: Mapping[str, Any], target: Path) -> None:
    """Show the image read-only at `target`. `image` is the daemon's answer to `open_image`."""
    with _locked(paths), _released_on_failure(paths):
        check_target(target)
        bind(_attach(paths, image), target)


def mount_writable(paths: NodePaths, image: Mapping[str, Any], target: Path, directory: Path) -> None:
    """Mount an overlay on the image at `target`; what is written goes to `directory`/upper."""
    with _locked(paths), _released_on_failure(paths):
        check_target(target)
        lower = _attach(paths, image)
        try:
            _mount_overlay(lower, target, directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise


def _mount_overlay(lower: Path, target: Path, directory: Path) -> None:
    upper, work = directory / "upper", directory / "work"
    try:
        upper.mkdir(parents=True)
        work.mkdir(mode=0o700)
        # An overlay's root is its upper directory's: it must look as the image's does.
        of = lower.stat()
        os.chown(upper, of.st_uid, of.st_gid)
        shutil.copystat(lower, upper)
    except OSError as error:
        raise NodeError(f"{error.filename}: {error.strerror}", hint="free some space below --root") from error
    mount_overlay(target, [lower], upper, work)


def unmount_image(paths: NodePaths, target: Path) -> None:
    """Undo `mount_view` or `mount_writable` at `target`, with what was written there.

    Raises NotFoundError if nothing of this node is mounted there, BusyError while it is in use.
    """
    with _locked(paths):
        entry = mount_at(target)
        if entry is None or _image_of(paths, entry, all_mounts()) is None:
            raise NotFoundError(
                f"{target} is not an image mounted by this node ({paths.root})",
                hint="`lazyfs status` lists them",
            )
        unmount(target)
        upper = _option(entry, "upperdir")
        if upper is not None and Path(upper).is_relative_to(paths.mounts):
            shutil.rmtree(Path(upper).parent, ignore_errors=True)
        _release_unused(paths)


def unmount_below(paths: NodePaths, directory: Path) -> None:
    """Take away whatever is mounted below `directory`, whoever uses it."""
    with _locked(paths):
        for entry in list_mounts(directory):
            unmount(entry.target, detach=True)
        _release_unused(paths)


def release_unused(paths: NodePaths) -> None:
    """Unmount the images that no target uses."""
    with _locked(paths):
        _release_unused(paths)


def targets(paths: NodePaths) -> list[MountEntry]:
    """Where images of this node are mounted for somebody."""
    entries = all_mounts()
    return [entry for entry in entries if _image_of(paths, entry, entries) is not None]


def find_image_mounts(paths: NodePaths, key: str) -> list[Path]:
    """Where the image with this key is mounted, by whichever daemon."""
    entries = list_mounts(paths.images)
    return [entry.target for entry in entries if entry.target.name.rpartition("-")[0] == key]


def is_shown(paths: NodePaths, target: Path) -> bool:
    """Is an image mounted at `target`, and served by the devices that are mounted now?"""
    entries = all_mounts()
    at = {entry.target: entry for entry in entries}
    shown, devices = at.get(target), at.get(paths.fuse)
    image = _image_of(paths, shown, entries) if shown is not None else None
    if image is None:
        return False
    if image.name.rpartition("-")[2] == DIRECT:
        return True
    number = devices.device.partition(":")[2] if devices is not None else "-"
    return re.fullmatch(r".*-\D*" + number, image.name) is not None


def is_direct(paths: NodePaths, entry: MountEntry) -> bool:
    """Is this an image, or a mount of one, that the kernel reads without the daemon?"""
    image = entry.target if entry.target.parent == paths.images else _image_of(paths, entry, all_mounts())
    return image is not None and image.name.rpartition("-")[2] == DIRECT


def check_target(target: Path) -> None:
    """Raise unless `target` can be mounted on: an empty directory that nothing is mounted on."""
    if mount_at(target) is not None:
        raise BusyError(f"something is mounted on {target} already", hint=f"lazyfs umount {target}")
    try:
        if not target.is_dir():
            raise NotFoundError(f"{target} is not a directory", hint=f"mkdir {target}")
        empty = not any(target.iterdir())
    except OSError as error:
        raise NodeError(f"{target}: {error.strerror}") from error
    if not empty:
        raise UsageError(
            f"{target} is not empty", hint="choose an empty directory, so that nothing is hidden"
        )


def _attach(paths: NodePaths, image: Mapping[str, Any]) -> Path:
    """The image's own mount, made if it is not there."""
    if not _KEY.fullmatch(image["key"]) or image["mode"] not in ladder.MODES:
        raise NodeError(f"the daemon of {paths.root} names no image by {image['key'][:80]!r}")
    direct = paths.images / f"{image['key']}-{DIRECT}"
    if image["mode"] == ladder.FILE and mount_at(direct) is not None:
        return direct
    served = _served(paths, image)
    if served is not None and mount_at(served) is not None:
        return served
    with ExitStack() as opened:
        files = open_direct(paths, image.get("direct", ()), opened)
        directory = direct if files and all(files) else served
        if directory is not None and any(files) and _make_direct(paths, image, files, directory):
            return directory
    if served is None:
        raise NodeError(f"the daemon of {paths.root} has ended", hint="try again: that starts a new one")
    _make(paths, image, (), served)
    return served


def _served(paths: NodePaths, image: Mapping[str, Any]) -> Path | None:
    """Where the image is mounted of what the daemon serves, or is to be; None where none serves."""
    devices = mount_at(paths.fuse)
    if devices is None:
        return None
    mode = "" if image["mode"] == ladder.FILE else image["mode"]
    return paths.images / f"{image['key']}-{mode}{devices.device.partition(':')[2]}"


def _make_direct(
    paths: NodePaths, image: Mapping[str, Any], files: Sequence[DirectFile | None], directory: Path
) -> bool:
    """As `_make`; False where it cannot be, or those files do not stay: their devices are to be mounted then."""
    try:
        _make(paths, image, files, directory)
    except LazyfsError as error:
        log.info("%s is not mounted from the cache's own files: %s", image["reference"], error)
        return False
    if are_held(files):
        return True
    log.warning("layers of %s are being dropped just now; mounting their devices", image["reference"])
    unmount(directory, detach=True)
    with suppress(OSError):
        directory.rmdir()
    return False


def _make(
    paths: NodePaths, image: Mapping[str, Any], files: Sequence[DirectFile | None], directory: Path
) -> None:
    """Mount the image at `directory`, which is made; of the devices, and of those `files` that there are."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _mount_image(paths, image, files, directory)
    except BaseException as error:
        with suppress(OSError):
            directory.rmdir()
        if isinstance(error, OSError):
            raise NodeError(f"{directory}: {error.strerror}") from error
        raise


def _mount_image(
    paths: NodePaths, image: Mapping[str, Any], files: Sequence[DirectFile | None], directory: Path
) -> None:
    """As its mode says (see `ladder`)."""
    launch = image.get("launch", False)
    with ExitStack() as opened:

        def named(place: Path, name: str) -> Path:
            """What the daemon names, as it is opened: its account must not lead root anywhere else."""
            descriptor = open_named(place, name, image["reference"])
            opened.callback(os.close, descriptor)
            return proc_path(descriptor)

        match image["mode"]:
            case ladder.LOOP:
                mount_erofs_on_loop(named(paths.fuse, image["view"]), directory)
                if launch:
                    switch_off_read_ahead(directory)
            case ladder.TREE:
                bind_image(named(paths.fuse, image["view"]), directory)
            case _:
                direct = [*files, *repeat(None, len(image["devices"]) - len(files))]
                devices = [
                    named(paths.fuse, device) if file is None else file.path
                    for file, device in zip(direct, image["devices"], strict=True)
                ]
                # One whose layers are all here has nothing to wait for.
                launch = launch and not (files and all(files))
                with without_read_ahead(directory) if launch else nullcontext():
                    mount_erofs(named(paths.bootstraps, image["bootstrap"]), devices, directory)


def _release_unused(paths: NodePaths) -> None:
    entries = all_mounts()
    used = {_image_of(paths, entry, entries) for entry in entries}
    for entry in entries:
        if entry.target.parent == paths.images and entry.target not in used:
            restore_read_ahead(entry.target)
            unmount(entry.target, detach=True)
            entry.target.rmdir()


def _image_of(paths: NodePaths, entry: MountEntry, entries: list[MountEntry]) -> Path | None:
    """The image mount (below <root>/m) that `entry` shows; None for the image mounts themselves and for others."""
    if entry.target.parent == paths.images:
        return None
    if entry.kind == "overlay":
        lower = Path(_option(entry, "lowerdir") or "")
        return lower if lower.parent == paths.images else None
    if entry.kind in ("erofs", "fuse.lazyfs"):
        for image in entries:
            if (image.device, image.root) == (
                entry.device,
                entry.root,
            ) and image.target.parent == paths.images:
                return image.target
    return None


def _option(entry: MountEntry, name: str) -> str | None:
    """An option of an overlay. In a path backslashes stand before commas, colons and backslashes."""
    for option in re.findall(r"(?:\\.|[^,])+", entry.super_options):
        key, equals, value = option.partition("=")
        if key == name and equals:
            return re.sub(r"\\(.)", r"\1", value)
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
