"""What snapshots have on disk: `snapshots/<id>/fs`, and `work` beside it for an overlay to write through.

A directory is made as `snapshots/new-…` and renamed when it has its id, and taken away the other way round: so
whatever is named by a number is whole. What is named otherwise belongs to nobody once no call is under way.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp

from lazyfs.errors import NodeError
from lazyfs.mount.syscalls import unmount
from snapshotter.limits import Limiter, choose_limiter

log = logging.getLogger(__name__)

_NEW, _OLD = "new-", "old-"


class Directories:
    """The directories below `<root>/snapshots`. Callers see to it that nobody makes one while others are forsaken."""

    def __init__(self, root: Path, limiter: Limiter | None = None) -> None:
        self._base = root / "snapshots"
        try:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NodeError(f"{self._base}: {error.strerror}", hint="choose another --root") from error
        self._limiter = limiter or choose_limiter(self._base)
        self._showing = threading.Lock()

    def fs(self, number: int) -> Path:
        """What the snapshot itself holds; of a lazy one, where its image is shown."""
        return self._base / str(number) / "fs"

    def work(self, number: int) -> Path:
        return self._base / str(number) / "work"

    def make(self, writable: bool) -> Path:
        """A new directory that has no number yet."""
        try:
            directory = Path(mkdtemp(prefix=_NEW, dir=self._base))
            (directory / "fs").mkdir(mode=0o755)
            (directory / "fs").chmod(0o755)
            if writable:
                (directory / "work").mkdir(mode=0o711)
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}", hint="free some space") from error
        return directory

    def limit(self, directory: Path, number: int, size: int) -> None:
        """Let what is written to a new directory, which will have this number, be at most so much."""
        self._limiter.limit(directory, number, size)

    def show(self, numbers: Iterable[int]) -> None:
        """Be sure that directories can be used, which after a reboot those with a limit cannot."""
        with self._showing:
            for number in numbers:
                self._limiter.show(self._base / str(number))

    def place(self, directory: Path, number: int) -> None:
        """Give a new directory its number."""
        target = self._base / str(number)
        try:
            if target.exists():
                # Of a call that was killed between this rename and the end of its transaction.
                self._forsake(target)
            directory.rename(target)
        except OSError as error:
            raise NodeError(f"{target}: {error.strerror}", hint="free some space") from error

    def forsake(self, kept: set[int]) -> set[int]:
        """Take their numbers from the directories whose number is not `kept`, and their mounts away.

        Returns those numbers at which something was mounted.
        """
        unmounted = set()
        for directory in list(self._base.iterdir()):
            number = int(directory.name) if directory.name.isdigit() else None
            if number in kept or directory.name.startswith(_OLD):
                continue
            if self._forsake(directory) and number is not None:
                unmounted.add(number)
        return unmounted

    def delete(self, directories: Iterable[Path] | None = None) -> None:
        """Delete directories, by default all that were forsaken; what cannot be deleted is left for the next time."""
        for directory in list(self._base.glob(f"{_OLD}*")) if directories is None else directories:
            # Mounted by a call that ran beside the one that forsook it.
            _unmount(directory)
            shutil.rmtree(directory, onerror=_log_failure)

    def _forsake(self, directory: Path) -> bool:
        """True if something was mounted there."""
        mounted = _unmount(directory)
        if directory.name.isdigit():
            self._limiter.forget(directory, int(directory.name))
        directory.rename(self._base / f"{_OLD}{directory.name}-{time.monotonic_ns()}")
        return mounted


def _unmount(directory: Path) -> bool:
    """What is mounted below a snapshot's directory, or is that directory; True if something was."""
    mounted = False
    for target in (directory / "fs", directory):
        while unmount(target, detach=True):
            mounted = True
    return mounted


def _log_failure(function: object, path: str, reason: object) -> None:
    if isinstance(reason, tuple) and not isinstance(reason[1], FileNotFoundError):
        log.warning("cannot delete %s: %s", path, reason[1])
