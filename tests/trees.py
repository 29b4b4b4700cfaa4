"""Random file trees as the members of layers, and tar streams of them, written by Python's tarfile.

`random_layers` keeps a model of what is there, so that what it makes can be unpacked by any tar: a parent
is a directory, a hard link's target exists. Names are few and odd, so that they meet each other.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

FILE, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = "fhlcbdp"

_TYPES = {
    FILE: tarfile.REGTYPE,
    HARDLINK: tarfile.LNKTYPE,
    SYMLINK: tarfile.SYMTYPE,
    CHAR: tarfile.CHRTYPE,
    BLOCK: tarfile.BLKTYPE,
    DIRECTORY: tarfile.DIRTYPE,
    FIFO: tarfile.FIFOTYPE,
}

NAMES = (
    b"a",
    b"b",
    b"dir",
    b"x.y",
    b"-",
    b"!",
    b".-",
    b".a",
    b"..a",
    b"..-",
    b"...",
    b" ",
    b"\x01",
    b"new\nline",
    b"n" * 255,
    "é".encode(),
    b"\xff\xfe",
)
"""Some stand before `.`, some between `.` and `..`, some behind."""

OWNERS = (0, 0, 0, 1, 1000, 65535, 65536, 2**31, 2**32 - 2)
# What ext4 can hold, from which trees are compared.
SECONDS = (0, 1, -1, 1_700_000_000, 2**31, 2**32 - 1, 2**33, 1 - 2**31)
FILE_SIZES = (0, 1, 511, 512, 513, 4096, 5000, 33_000, 150_000)


@dataclass(frozen=True)
class Entry:
    """One member. `mtime` is in nanoseconds; `sparse` has the data segments (offset, length) of `content`."""

    path: bytes
    kind: str = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    content: bytes = b""
    sparse: tuple[tuple[int, int], ...] | None = None


def layer_tar(entries: Sequence[Entry], prefix: bytes = b"", format_: int = tarfile.PAX_FORMAT) -> bytes:
    """The layer as a tar stream; `prefix` (such as `./`) is put before every name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_, errors="surrogateescape") as archive:
        for entry in entries:
            info, data = _member(entry, prefix)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _member(entry: Entry, prefix: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo("./" if entry.path == b"." else _text(prefix + entry.path))
    info.type = _TYPES[entry.kind]
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.linkname = _text(prefix + entry.target if entry.kind == HARDLINK else entry.target)
    info.devmajor, info.devminor = entry.rdev
    info.pax_headers = {_xattr_keyword(name): _text(value) for name, value in entry.xattrs.items()}
    info.mtime = entry.mtime // 10**9
    if entry.mtime % 10**9:
        sign = "-" if entry.mtime < 0 else ""
        seconds, nanoseconds = divmod(abs(entry.mtime), 10**9)
        info.pax_headers["mtime"] = f"{sign}{seconds}.{nanoseconds:09d}"
    data = entry.content
    if entry.sparse is not None:
        data = b"".join(entry.content[offset : offset + length] for offset, length in entry.sparse)
        numbers = [number for segment in entry.sparse for number in segment]
        info.pax_headers |= {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(len(entry.content)),
        }
        table = b"".join(b"%d\n" % number for number in (len(entry.sparse), *numbers))
        data = table + bytes(-len(table) % 512) + data
    info.size = len(data)
    return info, data


def _xattr_keyword(name: bytes) -> str:
    """A keyword ends at its first equals sign, so GNU tar escapes it."""
    return "SCHILY.xattr." + _text(name.replace(b"%", b"%25").replace(b"=", b"%3D"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def random_layers(rng: Random, layers: int, members: int) -> list[list[Entry]]:
    """`layers` layers of about `members` members each, lowest first."""
    world = _World(rng)
    return [world.layer(members) for _ in range(layers)]


class _World:
    """What an unpacker would have on disk: path -> kind, for all that the layers so far leave."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kinds: dict[bytes, str] = {b"": DIRECTORY}

    def layer(self, members: int) -> list[Entry]:
        self._below = dict(self._kinds)
        self._touched: set[bytes] = set()
        self._linked: set[bytes] = set()
        entries: list[Entry] = []
        if self._rng.random() < 0.5:
            entries.append(self._attributed(Entry(b".", DIRECTORY)))
        for _ in range(members):
            entry = self._rng.choices(
                (self._plain, self._directory, self._link, self._whiteout, self._opaque), (8, 4, 2, 2, 1)
            )[0]()
            if entry is not None:
                entries.append(entry)
        return entries

    def _plain(self) -> Entry | None:
        path = self._free_path()
        if self._is_linked(path):
            return None
        kind = self._rng.choices((FILE, SYMLINK, CHAR, BLOCK, FIFO), (10, 4, 1, 1, 1))[0]
        self._put(path, kind)
        entry = self._attributed(Entry(path, kind))
        if kind == SYMLINK:
            return replace(entry, target=self._symlink_target())
        if kind in (CHAR, BLOCK):
            rdev = (self._rng.choice((1, 255, 256, 4095)), self._rng.choice((0, 255, 256, 2**20 - 1)))
            return replace(entry, rdev=rdev)
        return self._filled(entry) if kind == FILE else entry

    def _directory(self) -> Entry | None:
        path = self._rng.choice(self._directories()[:30]) if self._rng.random() < 0.3 else self._free_path()
        if not path or self._is_linked(path):
            return None
        self._put(path, DIRECTORY)
        return self._attributed(Entry(path, DIRECTORY))

    def _link(self) -> Entry | None:
        targets = [path for path, kind in self._kinds.items() if kind not in (DIRECTORY, "")]
        path = self._free_path()
        target = self._rng.choice(targets) if targets else path
        if target == path or target.startswith(path + b"/") or self._is_linked(path):
            return None
        self._linked.add(target)
        self._put(path, self._kinds[target])
        return Entry(path, HARDLINK, target=target)

    def _whiteout(self) -> Entry | None:
        paths = [path for path in self._below if path and self._untouched(path)]
        if not paths:
            return None
        path = self._rng.choice(paths)
        self._remove(path)
        self._touched.add(path)
        directory, name = split(path)
        return Entry(join(directory, b".wh." + name))

    def _opaque(self) -> Entry | None:
        """In a directory of which this layer has nothing yet, so that the order cannot matter."""
        directories = [
            path for path, kind in self._below.items() if kind == DIRECTORY and path and self._untouched(path)
        ]
        if not directories:
            return None
        path = self._rng.choice(directories)
        for child in [child for child in self._kinds if child.startswith(path + b"/")]:
            self._remove(child)
        self._touched.add(path)
        return Entry(join(path, b".wh..wh..opq"))

    def _is_linked(self, path: bytes) -> bool:
        """Is it a target of a hard link of this layer, which must stay what it is, or a directory of one?"""
        return any(target == path or target.startswith(path + b"/") for target in self._linked)

    def _untouched(self, path: bytes) -> bool:
        """Nothing of this layer is at, above or below the path, so it is still the lower layers'."""
        return path in self._kinds and not any(
            other == path or other.startswith(path + b"/") or path.startswith(other + b"/")
            for other in self._touched | self._linked
        )

    def _directories(self) -> list[bytes]:
        found = [path for path, kind in self._kinds.items() if kind == DIRECTORY and path.count(b"/") < 5]
        self._rng.shuffle(found)
        return found

    def _free_path(self) -> bytes:
        """A path whose parent is a directory, or nothing yet; anything may be there already."""
        path = join(self._directories()[0], self._rng.choice(NAMES))
        while path not in self._kinds and self._rng.random() < 0.2:
            path = join(path, self._rng.choice(NAMES))
        return path

    def _put(self, path: bytes, kind: str) -> None:
        if kind != DIRECTORY or self._kinds.get(path) != DIRECTORY:
            self._remove(path)
        self._kinds[path] = kind
        self._touched.add(path)
        parent = split(path)[0]
        while parent not in self._kinds:
            self._kinds[parent] = DIRECTORY
            self._touched.add(parent)
            parent = split(parent)[0]

    def _remove(self, path: bytes) -> None:
        for gone in [each for each in self._kinds if each == path or each.startswith(path + b"/")]:
            del self._kinds[gone]

    def _symlink_target(self) -> bytes:
        rng = self._rng
        length = rng.choice((1, 32, 33, 416, 448, 449, 512, 513, 4095))
        return rng.choice((b"a", b"../dir", b".//a/", b"/etc/passwd", b"\xff", b"x" * length))

    def _attributed(self, entry: Entry) -> Entry:
        rng = self._rng
        mtime = rng.choice(SECONDS) * 10**9 + rng.choice((0, 1, 500_000_000, 999_999_999))
        mode = 0o777 if entry.kind == SYMLINK else rng.choice((0o644, 0o755, 0o7777, 0, 0o1777, 0o4711))
        if entry.kind == DIRECTORY:
            mode &= ~0o2000  # which what is made in it would inherit
        entry = replace(entry, mode=mode, uid=rng.choice(OWNERS), gid=rng.choice(OWNERS), mtime=mtime)
        return replace(entry, xattrs=self._xattrs(entry.kind)) if rng.random() < 0.2 else entry

    def _xattrs(self, kind: str) -> dict[bytes, bytes]:
        rng = self._rng
        names = [b"trusted.a", b"trusted." + b"n" * 200, b"security.lazyfs", b"trusted.b=c%"]
        if kind in (FILE, DIRECTORY):
            names += [b"user.a", b"user.a.", b"user.\xc3\xa9"]
        sizes = (0, 1, 3, 4, 100, 400, 900)
        chosen = rng.sample(names, rng.randint(1, 3))
        return {name: rng.randbytes(rng.choice(sizes)) for name in chosen}

    def _filled(self, entry: Entry) -> Entry:
        rng = self._rng
        size = rng.choice(FILE_SIZES)
        if rng.random() < 0.15:
            return self._sparse(entry)
        return replace(entry, content=rng.randbytes(size) if rng.random() < 0.7 else bytes(size))

    def _sparse(self, entry: Entry) -> Entry:
        """Segments of whole blocks: where others end inside a block, readers of tar do not agree."""
        rng = self._rng
        unit = rng.choice((512, 4096))
        at = 0
        segments = []
        content = bytearray()
        for _ in range(rng.randint(0, 4)):
            at += rng.randint(0, 8) * unit
            length = rng.randint(1, 8) * unit
            segments.append((at, length))
            content += bytes(at - len(content)) + rng.randbytes(length)
            at += length
        if segments and rng.random() < 0.3:  # only the last may end inside a block
            segments[-1] = (segments[-1][0], segments[-1][1] - 1)
            del content[-1]
            at -= 1
        else:
            content += bytes(rng.choice((0, 1, 512, 100_000)))
        if len(content) > at:  # as GNU tar ends the map of a file whose end is a hole
            segments.append((len(content), 0))
        return replace(entry, content=bytes(content), sparse=tuple(segments))


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory and name else directory or name


def split(path: bytes) -> tuple[bytes, bytes]:
    directory, _, name = path.rpartition(b"/")
    return directory, name
