"""Single look-ups in the layers below one layer, for hard links that name a path of a lower layer.

Such links are rare (an image builder that did not copy the file up), so this walks name by name instead
of merging whole trees. A link is resolved when its layer is applied: only lower layers are seen.
"""

import bisect
import stat
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError
from lazyfs.formats.toc import FLAG_OPAQUE, WHITEOUT, Tree

_MAX_SYMLINK_HOPS = 40
Ints = npt.NDArray[np.int64]
Found = list[tuple[int, int]]
"""One path in several layers: (layer, inode), topmost first; more than one only for directories."""


def resolve_links(layers: Sequence[Tree], base: Ints, target: Ints) -> Ints:
    """Replace entries that name a link to a lower layer by the inode (joined numbering) that it links to."""
    resolved: dict[int, int] = {}
    for index, layer in enumerate(layers):
        mode = layer.inodes.mode & 0o170000
        links = np.flatnonzero(mode == 0)
        if not len(links):
            continue
        position = np.cumsum((mode == stat.S_IFLNK) | (mode == 0)) - 1
        views = [_LayerView(below) for below in layers[:index]]
        for link in links.tolist():
            path = layer.targets[int(position[link])]
            lower = _look_up(views, path)
            if lower is None:
                raise BadInputError(
                    f"layer {index}: a hard link to {path[:200]!r}, which neither it nor a layer below has",
                    hint="the image cannot be unpacked by an ordinary runtime either; build it again",
                )
            inode = int(base[lower[0]]) + lower[1]
            resolved[int(base[index]) + link] = resolved.get(inode, inode)
    if not resolved:
        return target
    table = np.arange(int(target.max()) + 1)
    for link, inode in resolved.items():
        table[link] = inode
    return np.where(target >= 0, table[target], target)


class _LayerView:
    """One layer's tree, by (directory inode, name)."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        directories = np.flatnonzero((tree.inodes.mode & 0o170000) == stat.S_IFDIR)
        counts = tree.counts.astype(np.int64)
        starts = np.cumsum(counts) - counts
        self._range = dict(
            zip(
                directories.tolist(),
                zip(starts.tolist(), (starts + counts).tolist(), strict=True),
                strict=True,
            )
        )
        has_target = ((tree.inodes.mode & 0o170000) == stat.S_IFLNK) | ((tree.inodes.mode & 0o170000) == 0)
        self._target = np.cumsum(has_target) - 1

    def entry(self, directory: int, name: bytes) -> int | None:
        """The inode of `name`, WHITEOUT, or None where this layer says nothing of it."""
        start, end = self._range[directory]
        at = bisect.bisect_left(self.tree.names, name, start, end)
        return int(self.tree.entries[at]) if at < end and self.tree.names[at] == name else None

    def kind(self, inode: int) -> int:
        return int(self.tree.inodes.mode[inode]) & 0o170000

    def is_opaque(self, inode: int) -> bool:
        return bool(self.tree.inodes.flags[inode] & FLAG_OPAQUE)

    def target(self, inode: int) -> bytes:
        return self.tree.targets[int(self._target[inode])]


def _look_up(views: list[_LayerView], path: bytes) -> tuple[int, int] | None:
    """(layer, inode) of the file at `path`; None where there is none, or a directory."""
    root: Found = _opened(views, [(index, 0) for index in range(len(views))][::-1])
    stack = [root]
    todo = path.split(b"/")[::-1]
    hops = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            stack = stack[:-1] or [root]
            continue
        found = _child(views, stack[-1], part)
        if not found:
            return None
        layer, inode = found[0]
        kind = views[layer].kind(inode)
        if kind == stat.S_IFDIR:
            stack.append(found)
        elif not todo:
            return layer, inode
        elif kind == stat.S_IFLNK and hops < _MAX_SYMLINK_HOPS:
            hops += 1
            target = views[layer].target(inode)
            stack = [root] if target.startswith(b"/") else stack
            todo.extend(target.split(b"/")[::-1])
        else:
            return None
    return None


def _child(views: list[_LayerView], directory: Found, name: bytes) -> Found:
    found: Found = []
    for layer, inode in directory:
        entry = views[layer].entry(inode, name)
        if entry is None:
            continue
        if entry == WHITEOUT:
            break
        if views[layer].kind(entry) != stat.S_IFDIR:
            return found or [(layer, entry)]
        found.append((layer, entry))
    return _opened(views, found)


def _opened(views: list[_LayerView], found: Found) -> Found:
    """`found` down to the first opaque directory."""
    for at, (layer, inode) in enumerate(found):
        if views[layer].is_opaque(inode):
            return found[: at + 1]
    return found
