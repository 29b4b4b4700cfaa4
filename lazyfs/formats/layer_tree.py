"""From the members of one layer's tar to its tree, as an unpacker would leave it, in the TOC's columns.

What counts is what a container engine makes of the archive (containerd's archive.Apply, and tar as root):
the last member of a name wins; a directory member over a directory changes its attributes and keeps its
entries; anything else over a directory takes its entries away; a parent without a member is implied; a
path through a symlink of this layer goes where the symlink points, never out of the root.
`.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` hides all that lower layers have in its directory
(OCI image-spec, layer.md, "Whiteouts").
"""

import stat
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.tarwalk import Kind, Member
from lazyfs.formats.toc import (
    FLAG_IMPLIED,
    FLAG_OPAQUE,
    INODE_COLUMNS,
    MAX_INODES,
    WHITEOUT,
    Inodes,
    Sparse,
    Tree,
    Xattrs,
)
from lazyfs.formats.toc_check import (
    ACL_XATTRS,
    MAX_DEPTH,
    MAX_NAME,
    MAX_SYMLINK,
    is_image_xattr,
    xattr_fault,
)

_NO_NAMES = frozenset((b"", b".", b".."))
_WHITEOUT_PREFIX = b".wh."
_WHITEOUT_META_PREFIX = b".wh..wh."
_OPAQUE_MARKER = b".wh..wh..opq"
_MAX_SYMLINK_HOPS = 40
_NO_OWNER = 2**32 - 1

_TYPE_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}

Segment = tuple[int, int, int]
"""(file offset, device offset, length)"""

APPENDIX = 1 << 61
"""Device offsets from here on count from where the appendix begins, which is known when the stream has ended."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode on its way into the columns. `children` is there for directories only."""

    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    nsec: int = 0
    data: int = 0
    rdev: int = 0
    flags: int = 0
    xattrs: Xattrs = ()
    target: bytes = b""
    sparse: tuple[Segment, ...] | None = None
    children: "dict[bytes, Node] | None" = None
    number: int = field(default=-1)


_HIDDEN = Node(mode=0)
"""What a whiteout puts in a directory."""


class TreeBuilder:
    """Takes the members of one layer in the order of its tar; `finish` gives the tree."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._root = _implied_directory()
        self._directories: dict[bytes, Node] = {b"": self._root}
        self._count = 1

    def add(self, member: Member, data: int, sparse: tuple[Segment, ...] | None) -> None:
        """Apply one member, whose data lies at `data` on the device, or in the segments of `sparse`."""
        self._count_node()
        parent_path, name = self._split(member)
        if not name:
            self._update_directory(self._root, member)
            return
        parent = self._directory(parent_path, member)
        assert parent.children is not None
        if name.startswith(_WHITEOUT_PREFIX):
            self._whiteout(parent, name)
        elif member.kind is Kind.DIRECTORY:
            self._add_directory(parent, name, member)
        elif member.kind is Kind.HARDLINK:
            self._add_link(parent, name, member)
        else:
            self._replace(parent, name, self._leaf(member, data, sparse))

    def finish(self, appendix_start: int) -> Tree:
        """The tree, with the appendix beginning at this device offset."""
        return _columns(self._root, appendix_start)

    def _count_node(self) -> None:
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
        if directory in self._directories and len(last) <= MAX_NAME and last not in _NO_NAMES:
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

    def _directory(self, path: bytes, member: Member) -> Node:
        """The directory at `path`, made as implied where it is missing."""
        known = self._directories.get(path)
        if known is not None:
            return known
        node = self._walk(path.split(b"/"), member, create=True)
        if node is None or node.children is None:
            raise self._error(member, f"its parent {path[:200]!r} is not a directory")
        self._directories[path] = node
        return node

    def _walk(self, parts: list[bytes], member: Member, *, create: bool) -> Node | None:
        """Follow `parts` from the root, through symlinks, which cannot lead above it."""
        stack = [self._root]
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
            children = stack[-1].children
            if children is None:
                return None
            node = children.get(part)
            if node is None or node is _HIDDEN:
                if not create:
                    return None
                self._count_node()
                node = children[part] = _implied_directory() if node is None else _recreated_directory()
            if stat.S_ISLNK(node.mode):
                hops += 1
                if hops > _MAX_SYMLINK_HOPS:
                    raise self._error(member, "too many symlinks in its path")
                if node.target.startswith(b"/"):
                    stack = [self._root]
                todo.extend(node.target.split(b"/")[::-1])
                continue
            stack.append(node)
            if len(stack) > MAX_DEPTH:
                raise self._error(member, f"more than {MAX_DEPTH} levels of directories")
        return stack[-1]

    def _update_directory(self, node: Node, member: Member) -> None:
        if member.kind is not Kind.DIRECTORY:
            raise self._error(member, "the root is not a directory")
        node.mode = stat.S_IFDIR | member.mode
        node.uid, node.gid = _owner(member.uid), _owner(member.gid)
        node.mtime, node.nsec = member.mtime, member.mtime_nsec
        node.xattrs = self._kept_xattrs(member)
        node.flags &= ~FLAG_IMPLIED

    def _add_directory(self, parent: Node, name: bytes, member: Member) -> None:
        assert parent.children is not None
        old = parent.children.get(name)
        if old is None or old.children is None:
            # What was here hid the name in lower layers: their directory does not come back.
            node = _implied_directory() if old is None else _recreated_directory()
            self._replace(parent, name, node)
            old = node
        self._update_directory(old, member)

    def _replace(self, parent: Node, name: bytes, node: Node) -> None:
        assert parent.children is not None
        old = parent.children.get(name)
        parent.children[name] = node
        if old is not None and (old.children is not None or stat.S_ISLNK(old.mode)):
            # Paths that went through the old directory or symlink lead elsewhere now.
            self._directories = {b"": self._root}

    def _whiteout(self, parent: Node, name: bytes) -> None:
        assert parent.children is not None
        if name == _OPAQUE_MARKER:
            parent.flags |= FLAG_OPAQUE
        elif not name.startswith(_WHITEOUT_META_PREFIX):  # AUFS's own book-keeping
            hidden = name[len(_WHITEOUT_PREFIX) :]
            if hidden in (b"", b".", b".."):
                return
            old = parent.children.get(hidden)
            if old is None:
                parent.children[hidden] = _HIDDEN
            elif old.children is not None:
                # A whiteout speaks of lower layers only: what this layer puts there stays.
                old.flags = FLAG_OPAQUE

    def _add_link(self, parent: Node, name: bytes, member: Member) -> None:
        assert parent.children is not None
        parts = _parts(member.target)
        if not parts or b".." in parts:
            raise self._error(member, f"a hard link to {member.target[:200]!r}")
        directory = self._walk(parts[:-1], member, create=False)
        target = directory.children.get(parts[-1]) if directory and directory.children is not None else None
        if target is None or target is _HIDDEN:
            path = b"/".join(parts)
            if len(path) > MAX_SYMLINK:
                raise self._error(member, "the target of a hard link is too long")
            self._replace(parent, name, Node(mode=0, target=path))
            return
        if target.children is not None:
            raise self._error(member, f"a hard link to the directory {member.target[:200]!r}")
        if parent.children.get(name) is not target:
            self._replace(parent, name, target)

    def _leaf(self, member: Member, data: int, sparse: tuple[Segment, ...] | None) -> Node:
        if member.kind is Kind.FILE:
            return Node(
                mode=stat.S_IFREG | member.mode,
                uid=_owner(member.uid),
                gid=_owner(member.gid),
                size=member.size,
                mtime=member.mtime,
                nsec=member.mtime_nsec,
                data=data if member.size and sparse is None else 0,
                xattrs=self._kept_xattrs(member) if member.xattrs else (),
                sparse=sparse,
            )
        size = 0
        if member.kind is Kind.SYMLINK:
            size = len(member.target)
            if not 0 < size <= MAX_SYMLINK or b"\0" in member.target:
                raise self._error(
                    member, f"a symlink target that is empty or longer than {MAX_SYMLINK} bytes"
                )
        is_device = member.kind in (Kind.CHAR, Kind.BLOCK)
        major, minor = member.rdev
        if is_device and not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise self._error(member, f"device number {major}:{minor} is out of range")
        return Node(
            # Linux has no other mode for symlinks, whatever the archive says.
            mode=_TYPE_BITS[member.kind] | (0o777 if member.kind is Kind.SYMLINK else member.mode),
            uid=_owner(member.uid),
            gid=_owner(member.gid),
            size=size,
            mtime=member.mtime,
            nsec=member.mtime_nsec,
            rdev=major << 20 | minor if is_device else 0,
            xattrs=self._kept_xattrs(member),
            target=member.target if member.kind is Kind.SYMLINK else b"",
        )

    def _kept_xattrs(self, member: Member) -> Xattrs:
        if not member.xattrs:
            return ()
        kept = tuple(pair for pair in member.xattrs if _can_have(member.kind, pair[0]))
        if fault := xattr_fault(kept):
            raise self._error(member, fault)
        return kept


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


def _implied_directory() -> Node:
    return Node(mode=stat.S_IFDIR | 0o755, flags=FLAG_IMPLIED, children={})


def _recreated_directory() -> Node:
    """A directory where this layer hid the name before: it inherits neither entries nor attributes."""
    return Node(mode=stat.S_IFDIR | 0o755, flags=FLAG_OPAQUE, children={})


def _columns(root: Node, appendix_start: int) -> Tree:
    """Number the inodes in canonical order and turn nodes into columns."""
    order = [root]
    root.number = 0
    counts: list[int] = []
    names: list[bytes] = []
    entries: list[int] = []
    for node in order:  # grows while it is read: breadth first
        if node.children is None:
            continue
        first = len(names)
        for name in sorted(node.children):
            child = node.children[name]
            if name.startswith(_WHITEOUT_META_PREFIX):
                continue  # AUFS keeps there what has several names; they are hard links to it
            names.append(name)
            if child is _HIDDEN:
                entries.append(WHITEOUT)
                continue
            if child.number < 0:
                child.number = len(order)
                order.append(child)
            entries.append(child.number)
        counts.append(len(names) - first)
    sets: dict[Xattrs, int] = {(): 0}
    columns = {
        name: np.fromiter(map(attrgetter(name), order), dtype, len(order))
        for name, dtype in INODE_COLUMNS.items()
        if name != "xattrs"
    }
    columns["xattrs"] = np.fromiter(
        (sets.setdefault(node.xattrs, len(sets)) for node in order), "u4", len(order)
    )
    sparse = [node for node in order if node.sparse is not None]
    segments = np.array(
        [(node.number, *segment) for node in sparse for segment in node.sparse or ()], np.uint64
    ).reshape(-1, 4)
    appended = segments[:, 2] >= APPENDIX
    segments[appended, 2] -= np.uint64(APPENDIX - appendix_start)
    return Tree(
        inodes=Inodes(**columns),
        counts=np.array(counts, "u4"),
        names=names,
        entries=np.array(entries, "u4"),
        targets=[node.target for node in order if node.target],
        xattr_sets=list(sets)[1:],
        sparse_inodes=np.array([node.number for node in sparse], "u4"),
        sparse=Sparse(segments[:, 0].astype("u4"), segments[:, 1], segments[:, 2], segments[:, 3]),
    )
