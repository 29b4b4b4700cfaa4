"""What this kernel can do for `ladder`: a tiny image is mounted in each way, by the code that mounts images, and read.

Nothing is mounted where anybody could see it, and files have no names: a probe that is killed leaves nothing.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from lazyfs.errors import LazyfsError, NodeError, UnsupportedError
from lazyfs.mount.ladder import FILE, LOOP, TREE, Rung
from lazyfs.mount.loop import open_erofs_on_loop
from lazyfs.mount.probe_image import BOOTSTRAP, CONTENT, DEVICE, JOINED, NAME, XATTRS
from lazyfs.mount.syscalls import open_erofs

log = logging.getLogger(__name__)


def probe(directory: Path) -> list[Rung]:
    """Try each rung with images in ``directory``: not every file system has files that can be mounted."""
    if os.geteuid() != 0:
        raise NodeError("only root can find out how images are mounted here", hint="run it as root")
    return [_try(FILE, partial(_probe_file, directory)), _try(LOOP, partial(_probe_loop, directory)), _fuse()]


def _try(mode: str, attempt: Callable[[], int]) -> Rung:
    try:
        root = attempt()
        try:
            _check(root)
        finally:
            os.close(root)
    except (LazyfsError, OSError) as error:
        log.info("mount mode %s: %s", mode, error)
        return Rung(mode, False, str(error))
    return Rung(mode, True, "a test image was mounted and read")


def _fuse() -> Rung:
    there = Path("/dev/fuse").exists()
    return Rung(TREE, there, "there is /dev/fuse" if there else "no /dev/fuse (modprobe fuse)")


def _probe_file(directory: Path) -> int:
    with _file(directory, BOOTSTRAP) as bootstrap, _file(directory, DEVICE) as data:
        return open_erofs(_path(bootstrap), [_path(data)])


def _probe_loop(directory: Path) -> int:
    with _file(directory, JOINED) as file:
        return open_erofs_on_loop(_path(file))


def _file(directory: Path, content: bytes) -> IO[bytes]:
    """A file without a name, so that a probe that is killed leaves nothing."""
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - the caller's
    file.write(content)
    file.flush()
    return file


def _path(file: IO[bytes]) -> Path:
    return Path(f"/proc/self/fd/{file.fileno()}")


def _check(root: int) -> None:
    """Raise unless the image's file is there, with all that belongs to it."""
    file = os.open(NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        if os.pread(file, len(CONTENT) + 1, 0) != CONTENT:
            raise NodeError("the test image has wrong bytes")
        for name, value in XATTRS.items():
            try:
                found = os.getxattr(file, name)
            except OSError as error:
                raise UnsupportedError(
                    f"no extended attributes {name} ({error.strerror}): CONFIG_EROFS_FS_XATTR, _SECURITY"
                ) from error
            if found != value:
                raise NodeError(f"the test image has a wrong {name}")
    finally:
        os.close(file)
