"""What this kernel can do for `ladder`: a tiny image is mounted in each way, by the code that mounts images, and read.

Nothing is mounted where anybody could see it, and files have no names: a probe that is killed leaves nothing.
"""

import io
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from lazyfs.errors import LazyfsError, NodeError, UnsupportedError
from lazyfs.formats.bootstrap import JOINED, build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.spread import spread
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.formats.toc import Tree
from lazyfs.mount.ladder import FILE, LOOP, TREE, Rung
from lazyfs.mount.loop import open_erofs_on_loop
from lazyfs.mount.syscalls import open_erofs

log = logging.getLogger(__name__)

_NAME = "probe"
_CONTENT = b"lazyfs" * 1000
_XATTRS = {
    "user.lazyfs": b"probe",
    "security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
}


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
    stream, tree = _image()
    with _file(directory, build(merge([tree]), [len(stream)])) as bootstrap, _file(directory, stream) as data:
        return open_erofs(_path(bootstrap), [_path(data)])


def _probe_loop(directory: Path) -> int:
    _, tree = _image()
    laid_out = spread(merge([tree]))
    joined = build(laid_out.tree, [laid_out.size], JOINED) + _CONTENT
    joined += bytes(-len(joined) % 4096)
    with _file(directory, joined) as file:
        return open_erofs_on_loop(_path(file))


def _image() -> tuple[bytes, Tree]:
    """A layer of one file, as a tar stream and as a tree."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(_NAME)
        member.size = len(_CONTENT)
        member.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
            for name, value in _XATTRS.items()
        }
        archive.addfile(member, io.BytesIO(_CONTENT))
    builder = TreeBuilder("probe")
    stream.seek(0)
    for entry in walk(FileSource(stream)):
        builder.add(entry, entry.data_offset, entry.sparse)
    return stream.getvalue(), builder.finish(len(stream.getvalue()))


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
    file = os.open(_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        if os.pread(file, len(_CONTENT) + 1, 0) != _CONTENT:
            raise NodeError("the test image has wrong bytes")
        for name, value in _XATTRS.items():
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
