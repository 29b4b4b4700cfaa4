"""What others make of layers and bootstraps: GNU tar on a directory, the kernel's EROFS, fsck.erofs."""

import functools
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lazyfs.mount.syscalls import mount_erofs, unmount
from tests.trees import DIRECTORY, Entry, join, layer_tar, split

REPOSITORY = Path(__file__).parents[1]
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


@dataclass(frozen=True)
class Record:
    """What stat(2) and its sisters say of one path; `first` is the first path of the same inode."""

    mode: int
    owner: tuple[int, int]
    mtime: int
    links: int
    rdev: tuple[int, int]
    size: int
    first: bytes
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    sha256: str


Snapshot = dict[bytes, Record]


def snapshot(root: Path) -> Snapshot:
    """All paths below `root`, the root itself as b""."""
    records: Snapshot = {}
    firsts: dict[int, bytes] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = root / os.fsdecode(path)
        status = full.lstat()
        if stat.S_ISDIR(status.st_mode):
            names = sorted((os.fsencode(child.name) for child in full.iterdir()), reverse=True)
            pending += [join(path, name) for name in names]
        records[path] = _record(full, status, firsts.setdefault(status.st_ino, path))
    return records


def _record(path: Path, status: os.stat_result, first: bytes) -> Record:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    digest = ""
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Record(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        mtime=status.st_mtime_ns,
        links=status.st_nlink,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        first=first,
        target=os.readlink(os.fsencode(path)) if stat.S_ISLNK(status.st_mode) else b"",  # noqa: PTH115 - as it is
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        sha256=digest,
    )


class TarReferee:
    """Layers unpacked over one another by GNU tar; whiteouts are carried out before each.

    What tar does otherwise is put right: a directory that a layer only implies keeps its time, one that no
    layer describes is root's, with mode 0755 and time 0, and one that a layer describes anew loses the xattrs
    it had (OCI image-spec, layer.md: its attributes "MUST be replaced").
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._times: dict[bytes, int | None] = {b"": None}

    def apply(self, layer: Sequence[Entry]) -> None:
        entries: list[Entry] = []
        for entry in layer:
            if split(entry.path)[1].startswith(_WHITEOUT):
                self._hide(entry.path)
            else:
                entries.append(entry)
        for run in self._runs(entries):
            self._unpack(run)

    def expected(self) -> Snapshot:
        records = snapshot(self._root)
        for path, time in self._times.items():
            if time is not None:
                records[path] = replace(records[path], mtime=time)
            else:
                records[path] = replace(records[path], mode=stat.S_IFDIR | 0o755, owner=(0, 0), mtime=0)
        return records

    def _runs(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        """Cut before what tar cannot do in one go: another type than what is there, a directory described anew."""
        run: list[Entry] = []
        kinds: dict[bytes, bool] = {}
        members: set[bytes] = set()
        for entry in entries:
            is_directory = entry.kind == DIRECTORY
            if kinds.get(entry.path, is_directory) != is_directory or (
                is_directory and entry.path in members
            ):
                yield run
                run, kinds, members = [], {}, set()
            run.append(entry)
            members.add(entry.path)
            kinds[entry.path] = is_directory
            parent = split(entry.path)[0]
            while parent:
                kinds[parent] = True
                parent = split(parent)[0]
        yield run

    def _unpack(self, run: Sequence[Entry]) -> None:
        for entry in run:
            full = self._full(entry.path)
            if os.path.lexists(full):
                if (entry.kind == DIRECTORY) != stat.S_ISDIR(full.lstat().st_mode):
                    self._remove(entry.path)
                elif entry.kind == DIRECTORY:
                    for name in os.listxattr(full):
                        os.removexattr(full, name)
        self._check_parents(run)
        archive = self._root.with_suffix(".tar")
        archive.write_bytes(layer_tar(run))
        subprocess.run(
            [
                *("tar", "-C", self._root, "-xPpf", archive, "--numeric-owner", "--same-owner"),
                *("--xattrs", "--xattrs-include=*", "--delay-directory-restore"),
                *("--warning=no-unknown-keyword", "--warning=no-timestamp"),
            ],
            check=True,
            umask=0o022,
        )
        described = {b"" if entry.path == b"." else entry.path for entry in run if entry.kind == DIRECTORY}
        base = os.fsencode(self._root)
        for directory, _, _ in os.walk(base):
            path = directory[len(base) + 1 :]
            if path in described:
                self._times[path] = os.lstat(directory).st_mtime_ns
            else:
                self._times.setdefault(path, None)

    def _hide(self, marker: bytes) -> None:
        directory, name = split(marker)
        if name == _OPAQUE:
            for child in list(self._full(directory).iterdir()):
                self._remove(join(directory, os.fsencode(child.name)))
        else:
            self._remove(join(directory, name[len(_WHITEOUT) :]))

    def _check_parents(self, entries: Sequence[Entry]) -> None:
        """This is root's tar: what it writes must not leave the directory through a symlink."""
        for entry in entries:
            directory = split(entry.path)[0]
            while directory:
                assert not self._full(directory).is_symlink()
                directory = split(directory)[0]

    def _remove(self, path: bytes) -> None:
        subprocess.run(["rm", "-rf", "--", self._full(path)], check=True)
        for gone in [each for each in self._times if each == path or each.startswith(path + b"/")]:
            del self._times[gone]

    def _full(self, path: bytes) -> Path:
        return self._root / os.fsdecode(path)


@contextmanager
def mounted(bootstrap: Path, devices: Sequence[Path], target: Path) -> Iterator[Path]:
    """The image as the kernel shows it."""
    target.mkdir(exist_ok=True)
    mount_erofs(bootstrap, devices, target)
    try:
        yield target
    finally:
        unmount(target)


@functools.cache
def fsck_program() -> str:
    """A fsck.erofs that reads 512-byte blocks; a test that cannot have one fails."""
    made = subprocess.run(
        [REPOSITORY / "scripts/erofs_utils.sh"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.fail(f"no fsck.erofs that could be the referee: {made.stderr.strip()}")
    return made.stdout.strip()


def fsck(bootstrap: Path, devices: Sequence[Path]) -> None:
    """Fail unless fsck.erofs accepts the image."""
    command = [fsck_program(), *(f"--device={device}" for device in devices), str(bootstrap)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    assert result.returncode == 0, result.stdout + result.stderr


def empty_directory(path: Path) -> Path:
    """The directory, made anew: hypothesis runs many examples in one."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
