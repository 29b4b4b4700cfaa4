"""What an unclean stop of a node left behind, and taking it away: `lazyfs doctor`, and its `--repair`.

Locks are not among it: the kernel takes them back with the process that held them.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lazyfs.beneath import open_beneath
from lazyfs.cli.workspace import abandoned_runs, remove_leftovers
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.keeper.client import KeeperClient
from lazyfs.mount.images import is_direct, targets
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.node.files import TORN

_ROUNDS = 3
_TORN_AGE = 3600.0
"""Seconds after which nobody writes to a file any more that has its first name yet."""


@dataclass(frozen=True, slots=True)
class Leftover:
    what: str
    mend: Callable[[], None]


def find_leftovers(paths: NodePaths) -> list[Leftover]:
    """In the order in which they are to be mended. Needs root to see all of it."""
    if not paths.root.is_dir():
        return []
    running = DaemonClient(paths).is_running()
    found: list[Leftover] = []
    if running and not KeeperClient(paths).is_running():
        found.append(Leftover("a daemon without keeper", lambda: _ignore(ensure_daemon(paths))))
    if not running:
        found += _dead_mounts(paths)
        found += [
            Leftover(f"socket {path} that nobody listens on", partial(path.unlink, missing_ok=True))
            for path in (paths.socket, paths.keeper_socket)
            if path.is_socket()
        ]
    runs = abandoned_runs(paths)
    if runs:
        found.append(Leftover(f"{len(runs)} runs that were killed", partial(remove_leftovers, paths)))
    found += _unused_uppers(paths)
    found += _unused_mount_points(paths)
    found += _torn_files(paths)
    found += [
        Leftover(f"{path}, put aside", partial(path.unlink, missing_ok=True))
        for path in paths.state.glob("*.damaged")
    ]
    return found


def mend_leftovers(paths: NodePaths) -> Iterator[Leftover]:
    """Each as it is taken away. In rounds, since a mount that is gone leaves its mount point."""
    for _ in range(_ROUNDS):
        for left in find_leftovers(paths):
            left.mend()
            yield left


def _ignore(_: object) -> None:
    pass


def _dead_mounts(paths: NodePaths) -> Iterator[Leftover]:
    """Images that go through the daemon of a node that has ended can never be read again; nor can what is mounted
    from them."""
    mounts = (*targets(paths), *list_mounts(paths.images), *list_mounts(paths.fuse))
    for target in dict.fromkeys(entry.target for entry in mounts if not is_direct(paths, entry)):
        yield Leftover(f"mount {target}, whose node has ended", lambda target=target: _unmount(target))  # type: ignore[misc]


def _unmount(target: Path) -> None:
    while unmount(target, detach=True):
        pass


def _unused_uppers(paths: NodePaths) -> Iterator[Leftover]:
    """What was written to a `mount --rw` that is gone, as after a reboot."""
    options = [entry.super_options for entry in targets(paths)]
    for directory in paths.mounts.glob("rw-*"):
        if not any(directory.name in each for each in options):
            yield Leftover(f"{directory}, whose mount is gone", partial(shutil.rmtree, directory))


def _unused_mount_points(paths: NodePaths) -> Iterator[Leftover]:
    mounted = {entry.target for entry in list_mounts(paths.images)}
    for path in paths.images.glob("*"):
        if path.is_dir() and path not in mounted and not path.name.startswith("."):
            yield Leftover(f"{path}, on which nothing is mounted", partial(_remove_directory, path))


def _remove_directory(path: Path) -> None:
    with suppress(OSError):  # used again meanwhile
        path.rmdir()


def _torn_files(paths: NodePaths) -> Iterator[Leftover]:
    old = time.time() - _TORN_AGE
    whole = (paths.root, paths.tocs, paths.documents, paths.packs, paths.signatures, paths.seen)
    for directory in (*whole, *paths.proofs.glob("*"), *paths.bootstraps.glob("*")):
        for file in directory.glob(f"{TORN}*"):
            with suppress(FileNotFoundError):
                if os.lstat(file).st_mtime < old:
                    yield Leftover(f"{file}, half written", partial(_remove_file, paths, file))


def _remove_file(paths: NodePaths, file: Path) -> None:
    """In the root, or in a directory of the daemon's account, which must not lead root to another."""
    with suppress(OSError):
        if file.parent == paths.root:
            file.unlink()
            return
        directory = open_beneath(
            paths.root, file.parent.relative_to(paths.root), os.O_RDONLY | os.O_DIRECTORY
        )
        try:
            os.unlink(file.name, dir_fd=directory)
        finally:
            os.close(directory)
