"""From the members of one layer's tar to its tree, as an unpacker would leave it, in the TOC's columns.

What counts is what a container engine makes of the archive (containerd's archive.Apply, and tar as root):
the last member of a name wins; a directory member over a directory changes its attributes and keeps its
entries; anything else over a directory takes its entries away; a parent without a member is implied; a
path through a symlink of this layer goes where the symlink points, never out of the root.
`.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` hides all that lower layers have in its directory
(OCI image-spec, layer.md, "Whiteouts").
"""

import stat

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.layer_columns import WHITEOUT_META_PREFIX, Segment, columns
from lazyfs.formats.layer_rows import DIRECTORY, SYMLINK, Entries, InodeRows
from lazyfs.formats.tarwalk import Kind, Member
from lazyfs.formats.toc_check import (
    ACL_XATTRS,
    MAX_DEPTH,
    MAX_NAME,
    MAX_SYMLINK,
    is_image_xattr,
    xattr_fault,
)
from lazyfs.formats.toc_types import FLAG_IMPLIED, FLAG_OPAQUE, MAX_INODES, WHITEOUT, Tree, Xattrs

_NO_NAMES = frozenset((b"", b".", b".."))
_WHITEOUT_PREFIX = b".wh."
_OPAQUE_MARKER = b".wh..wh..opq"
_MAX_SYMLINK_HOPS = 40
_NOT_HERE = (Entries.NOTHING, WHITEOUT)
_NO_OWNER = 2**32 - 1

_TYPE_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}

_MAX_KNOWN_PATHS = 1 << 14
_ROOT = 0


class TreeBuilder:
    """Takes the members of one layer in the order of its tar; `finish` gives the tree."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._inodes = InodeRows()
        self._entries = Entries()
        self._targets = bytearray()
        """Of symlinks and of links to lower layers; their inodes' `data` say where."""
        self._xattr_sets: dict[Xattrs, int] = {(): 0}
        self._sparse: dict[int, tuple[Segment, ...]] = {}
        self._implied_directory()
        self._paths: dict[bytes, int] = {b"": _ROOT}
        """Directories that were met, by path: most members lie where the member before does."""
        self._count = 1

    def add(self, member: Member, data: int, sparse: tuple[Segment, ...] | None) -> None:
        """Apply one member, whose data lies at `data` on the device, or in the segments of `sparse`."""
        self._count_inode()
        parent_path, name = self._split(member)
        if not name:
            if member.kind is not Kind.DIRECTORY:
                raise self._error(member, "the root is not a directory")
            self._update_directory(_ROOT, member)
            return
        parent = self._paths.get(parent_path)
        if parent is None:
            parent = self._directory(parent_path, member)
        if name.startswith(_WHITEOUT_PREFIX):
            self._whiteout(parent, name)
        elif member.kind is Kind.DIRECTORY:
            self._add_directory(parent, name, member)
        elif member.kind is Kind.HARDLINK:
            self._add_link(parent, name, member)
        elif member.kind is Kind.FILE:
            self._replace(parent, name, self._file(member, data, sparse))
        else:
            self._replace(parent, name, self._special(member))

    def finish(self, appendix_start: int) -> Tree:
        """The tree, with the appendix beginning at this device offset. Nothing can be added after this."""
        inodes, entries, self._inodes, self._entries = self._inodes, self._entries, InodeRows(), Entries()
        return columns(
            inodes, entries, self._targets, list(self._xattr_sets)[1:], self._sparse, appendix_start
        )

    def _count_inode(self) -> None:
        self._count += 1
        if self._count > MAX_INODES:
            raise LimitError(f"{self._layer}: more than {MAX_INODES} files and directories")

    def _error(self, member: Member, what: str) -> BadInputError:
        shown = member.name[:200].decode("utf-8", "backslashreplace")
        return BadInputError(
            f"{self._layer}: tar member {shown!r} at byte {member.header_offset}: {what}",
            hint="the layer cannot be unpacked by an ordinary runtime either; build it again",
        )

    def _split(self, member: Member) -> tuple[bytes, bytes]:
        """Path of the parent (no leading, trailing, double slashes or dots) and name; both empty for the root."""
        path = member.name.removeprefix(b"./")
        # Most members lie in the directory of the member before.
        directory, _, last = path.rpartition(b"/")
        if directory in self._paths and len(last) <= MAX_NAME and last not in _NO_NAMES:
            if b"\0" in last:
                raise self._error(member, "a NUL in the name")
            return directory, last
        if b"\0" in path:
            raise self._error(member, "a NUL in the name")
        parts = _parts(path)
        if b".." in parts:
            raise self._error(member, "'..' in the name")
        name = parts.pop() if parts else b""
        longest = max(map(len, parts), default=0)
        if max(longest, len(name.removeprefix(_WHITEOUT_PREFIX))) > MAX_NAME:
            raise self._error(member, f"a name of more than {MAX_NAME} bytes")
        return b"/".join(parts), name

    def _directory(self, path: bytes, member: Member) -> int:
        """The directory at `path`, made as implied where it is missing."""
        inode = self._walk(path.split(b"/"), member, create=True)
        if inode is None or self._inodes.kind(inode) != DIRECTORY:
            raise self._error(member, f"its parent {path[:200]!r} is not a directory")
        if len(self._paths) >= _MAX_KNOWN_PATHS:
            self._paths = {b"": _ROOT}
        self._paths[path] = inode
        return inode

    def _walk(self, parts: list[bytes], member: Member, *, create: bool) -> int | None:
        """Follow `parts` from the root, through symlinks, which cannot lead above it."""
        stack = [_ROOT]
        todo = parts[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(stack) > 1:
                    stack.pop()
                continue
            if self._inodes.kind(stack[-1]) != DIRECTORY:
                return None
            inode = self._entries.get(stack[-1], part)
            if inode in _NOT_HERE:
                if not create:
                    return None
                self._count_inode()
                inode = self._new_directory(stack[-1], part, inode)
            if self._inodes.kind(inode) == SYMLINK:
                hops += 1
                if hops > _MAX_SYMLINK_HOPS:
                    raise self._error(member, "too many symlinks in its path")
                target = self._target(inode)
                if target.startswith(b"/"):
                    stack = [_ROOT]
                todo.extend(target.split(b"/")[::-1])
                continue
            stack.append(inode)
            if len(stack) > MAX_DEPTH:
                raise self._error(member, f"more than {MAX_DEPTH} levels of directories")
        return stack[-1]

    def _implied_directory(self) -> int:
        return self._inodes.add(stat.S_IFDIR | 0o755, flags=FLAG_IMPLIED)

    def _new_directory(self, parent: int, name: bytes, old: int) -> int:
        """A directory in the place of `old`; what hid the name in lower layers still does."""
        if old == Entries.NOTHING:
            inode = self._implied_directory()
        else:
            inode = self._inodes.add(stat.S_IFDIR | 0o755, flags=FLAG_OPAQUE)
        self._replace(parent, name, inode)
        return inode

    def _target(self, link: int) -> bytes:
        at = self._inodes.data(link)
        return bytes(self._targets[at : self._targets.index(0, at)])

    def _keep_target(self, target: bytes) -> int:
        at = len(self._targets)
        self._targets += target
        self._targets.append(0)
        return at

    def _update_directory(self, inode: int, member: Member) -> None:
        self._inodes.update(
            inode,
            stat.S_IFDIR | member.mode,
            _owner(member.uid),
            _owner(member.gid),
            member.mtime,
            member.mtime_nsec,
            self._inodes.flags(inode) & ~FLAG_IMPLIED,
            self._xattrs(member),
        )

    def _add_directory(self, parent: int, name: bytes, member: Member) -> None:
        old = self._entries.get(parent, name)
        if old in _NOT_HERE or self._inodes.kind(old) != DIRECTORY:
            old = self._new_directory(parent, name, old)
        self._update_directory(old, member)

    def _replace(self, parent: int, name: bytes, inode: int) -> None:
        old = self._entries.put(parent, name, inode)
        if old not in _NOT_HERE and self._inodes.kind(old) in (DIRECTORY, SYMLINK):
            # Paths that went through the old directory or symlink lead elsewhere now.
            self._paths = {b"": _ROOT}

    def _whiteout(self, parent: int, name: bytes) -> None:
        if name == _OPAQUE_MARKER:
            self._inodes.set_flags(parent, self._inodes.flags(parent) | FLAG_OPAQUE)
        elif not name.startswith(WHITEOUT_META_PREFIX):  # AUFS's own book-keeping
            hidden = name[len(_WHITEOUT_PREFIX) :]
            if hidden in (b"", b".", b".."):
                return
            old = self._entries.get(parent, hidden)
            if old == Entries.NOTHING:
                self._entries.put(parent, hidden, WHITEOUT)
            elif old != WHITEOUT and self._inodes.kind(old) == DIRECTORY:
                # A whiteout speaks of lower layers only: what this layer puts there stays.
                self._inodes.set_flags(old, FLAG_OPAQUE)

    def _add_link(self, parent: int, name: bytes, member: Member) -> None:
        parts = _parts(member.target)
        if not parts or b".." in parts:
            raise self._error(member, f"a hard link to {member.target[:200]!r}")
        directory = self._walk(parts[:-1], member, create=False)
        target = Entries.NOTHING if directory is None else self._entries.get(directory, parts[-1])
        if target in _NOT_HERE:
            path = b"/".join(parts)
            if len(path) > MAX_SYMLINK:
                raise self._error(member, "the target of a hard link is too long")
            self._replace(parent, name, self._inodes.add(0, data=self._keep_target(path)))
            return
        if self._inodes.kind(target) == DIRECTORY:
            raise self._error(member, f"a hard link to the directory {member.target[:200]!r}")
        if self._entries.get(parent, name) != target:
            self._replace(parent, name, target)

    def _file(self, member: Member, data: int, sparse: tuple[Segment, ...] | None) -> int:
        inode = self._inodes.add(
            stat.S_IFREG | member.mode,
            _owner(member.uid) if member.uid else 0,
            _owner(member.gid) if member.gid else 0,
            member.size,
            member.mtime,
            member.mtime_nsec,
            data if member.size and sparse is None else 0,
            0,
            0,
            self._xattrs(member) if member.xattrs else 0,
        )
        if sparse is not None:
            self._sparse[inode] = sparse
        return inode

    def _special(self, member: Member) -> int:
        size = at = 0
        # Linux has no other mode for symlinks, whatever the archive says.
        mode = _TYPE_BITS[member.kind] | (0o777 if member.kind is Kind.SYMLINK else member.mode)
        if member.kind is Kind.SYMLINK:
            size = len(member.target)
            if not 0 < size <= MAX_SYMLINK or b"\0" in member.target:
                raise self._error(
                    member, f"a symlink target that is empty or longer than {MAX_SYMLINK} bytes"
                )
            at = self._keep_target(member.target)
        major, minor = member.rdev if member.kind in (Kind.CHAR, Kind.BLOCK) else (0, 0)
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise self._error(member, f"device number {major}:{minor} is out of range")
        return self._inodes.add(
            mode,
            _owner(member.uid),
            _owner(member.gid),
            size,
            member.mtime,
            member.mtime_nsec,
            at,
            rdev=major << 20 | minor,
            xattrs=self._xattrs(member),
        )

    def _xattrs(self, member: Member) -> int:
        """The number of the member's set of xattrs, those left out that an inode of its kind cannot have."""
        if not member.xattrs:
            return 0
        kept = tuple(pair for pair in member.xattrs if _can_have(member.kind, pair[0]))
        if fault := xattr_fault(kept):
            raise self._error(member, fault)
        return self._xattr_sets.setdefault(kept, len(self._xattr_sets))


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _can_have(kind: Kind, xattr: bytes) -> bool:
    """Can an inode of this kind have this xattr, on Linux (xattr(7), acl(5))?"""
    if kind not in (Kind.FILE, Kind.DIRECTORY) and xattr.startswith(b"user."):
        return False
    if kind is Kind.SYMLINK and xattr in ACL_XATTRS:
        return False
    return is_image_xattr(xattr)


def _owner(number: int) -> int:
    """To chown(2) the highest number means "leave it", and what an unpacker makes is root's."""
    return 0 if number == _NO_OWNER else number
