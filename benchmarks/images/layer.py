"""Upper directory of an overlay -> layer: a tar stream, gzipped (OCI image spec, layer.md).

Written with Python's tarfile, in PAX format: whiteouts and opaque markers stand where the walk
meets them, times keep their nanoseconds, extended attributes are SCHILY.xattr records, as Docker,
BuildKit and GNU tar write them.
"""

import hashlib
import os
import stat
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from benchmarks.images.errors import BuildError

_OPAQUE = "trusted.overlay.opaque"
_BUFFER = 1 << 16


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A finished layer blob: digests as ``sha256:<hex>``, size in bytes of the gzip."""

    digest: str
    diff_id: str
    size: int


class _GzipSink:
    """Compresses what is written to it, as gzip -6 does, and hashes it before and after.

    zlib's own gzip header carries no time and no name: the same tree gives the same blob.
    """

    def __init__(self, out: BinaryIO, stop: threading.Event) -> None:
        self._out = out
        self._stop = stop
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise BuildError("packing was interrupted")
        self._plain.update(data)
        self._emit(self._deflate.compress(data))
        return len(data)

    def finish(self) -> PackedLayer:
        self._emit(self._deflate.flush())
        return PackedLayer(
            f"sha256:{self._packed.hexdigest()}", f"sha256:{self._plain.hexdigest()}", self._size
        )

    def _emit(self, data: bytes) -> None:
        self._packed.update(data)
        self._size += len(data)
        self._out.write(data)


def pack_layer(tree: Path, blob: Path, *, with_root: bool, stop: threading.Event) -> PackedLayer:
    """Write the layer that `tree` (a base tree, or an overlay's upper directory) stands for to `blob`.

    With `with_root` names begin with ``./`` and the root directory has an entry, as base images
    made from a root file system have it; without, names are as builders of upper layers write them.
    Setting `stop` from another thread ends the work with `BuildError`.
    """
    prefix = "./" if with_root else ""
    first_names: dict[tuple[int, int], str] = {}
    with blob.open("wb") as out:
        sink = _GzipSink(out, stop)
        tar = tarfile.open(  # noqa: SIM115 (closed by closing, below)
            fileobj=cast(BinaryIO, sink), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BUFFER
        )
        with closing(tar):
            for relative in _walk(tree, with_root):
                _add(tar, tree / relative, prefix + relative, first_names)
        packed = sink.finish()
        out.flush()
        os.fsync(out.fileno())
    return packed


def _walk(tree: Path, with_root: bool) -> Iterator[str]:
    """Paths below `tree`, parents first, siblings by the bytes of their names."""
    if with_root:
        yield ""
    pending = [""]
    while pending:
        relative = pending.pop()
        if relative:
            yield relative
        path = tree / relative
        if not path.is_symlink() and path.is_dir():
            names = sorted((child.name for child in path.iterdir()), key=os.fsencode, reverse=True)
            pending += [f"{relative}/{name}" if relative else name for name in names]


def _add(tar: tarfile.TarFile, path: Path, name: str, first_names: dict[tuple[int, int], str]) -> None:
    info = path.lstat()
    if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
        tar.addfile(_marker(f"{name.removesuffix(path.name)}.wh.{path.name}", info))
        return
    member = _member(path, name, info)
    if member is None:
        return
    if not member.isdir() and info.st_nlink > 1:
        first = first_names.setdefault((info.st_dev, info.st_ino), name)
        if first != name:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
    if member.isreg():
        with path.open("rb") as file:
            tar.addfile(member, file)
        return
    tar.addfile(member)
    if member.isdir() and _xattrs(path, overlay=True).get(_OPAQUE) == b"y":
        tar.addfile(_marker(f"{name}/.wh..wh..opq", info))


def _marker(name: str, info: os.stat_result) -> tarfile.TarInfo:
    """The empty file that stands for what a layer removes (OCI image spec, layer.md, Whiteouts)."""
    member = tarfile.TarInfo(name)
    member.mode = 0o600
    member.mtime = int(info.st_mtime)
    return member


def _member(path: Path, name: str, info: os.stat_result) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(info.st_mode)
    member.uid, member.gid = info.st_uid, info.st_gid
    member.mtime = info.st_mtime_ns // 10**9
    member.pax_headers = _records(path, info)
    match stat.S_IFMT(info.st_mode):
        case stat.S_IFREG:
            member.size = info.st_size
        case stat.S_IFDIR:
            member.type = tarfile.DIRTYPE
        case stat.S_IFLNK:
            member.type = tarfile.SYMTYPE
            member.linkname = os.readlink(path)  # noqa: PTH115 (a Path would tidy it up)
        case stat.S_IFIFO:
            member.type = tarfile.FIFOTYPE
        case stat.S_IFCHR | stat.S_IFBLK as kind:
            member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            member.devmajor, member.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        case _:
            return None  # a socket: tar has no word for it
    return member


def _records(path: Path, info: os.stat_result) -> dict[str, str]:
    """The PAX records that tarfile does not know to write: extended attributes, nanoseconds."""
    records = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in _xattrs(path, overlay=False).items()
    }
    if info.st_mtime_ns % 10**9:
        # As text, since a float holds today's time to 240 ns only.
        seconds, nanoseconds = divmod(abs(info.st_mtime_ns), 10**9)
        records["mtime"] = f"{'-' if info.st_mtime_ns < 0 else ''}{seconds}.{nanoseconds:09d}"
    return records


def _xattrs(path: Path, *, overlay: bool) -> dict[str, bytes]:
    """The extended attributes of `path`: those that overlayfs keeps for itself, or all others."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if name.startswith("trusted.overlay.") is overlay
    }
