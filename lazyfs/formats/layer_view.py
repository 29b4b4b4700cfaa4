"""Single look-ups in the layers below one layer, for hard links that name a path of a lower layer.

Such links are rare (an image builder that did not copy the file up), so this walks name by name instead
of merging whole trees. A link is resolved when its layer is applied: only lower layers are seen.
"""

import bisect
import stat
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.toc_types import FLAG_OPAQUE, WHITEOUT, Tree

_MAX_SYMLINK_HOPS = 40
_MAX_STEPS = 4_000_000
"""Names looked up in one layer each, by all links of an image: some seconds."""
Ints = npt.NDArray[np.int32]
Found = list[tuple[int, int]]
"""One path in several layers: (layer, inode), topmost first; more than one only for directories."""


def resolve_links(layers: Sequence[Tree], base: Ints, target: Ints) -> Ints:
    """Replace entries that name a link to a lower layer by the inode (joined numbering) that it links to."""
    look_up = _LookUp()
    for index, layer in enumerate(layers):
        mode = layer.inodes.mode & 0o170000
        links = np.flatnonzero(mode == 0)
        if not len(links):
            continue
        position = np.cumsum((mode == stat.S_IFLNK) | (mode == 0)) - 1
        look_up.views += [_LayerView(below) for below in layers[len(look_up.views) : index]]
        for link in links.tolist():
            path = layer.targets[int(position[link])]
            lower = look_up.file(path)
            if lower is None:
                shown = path[:200].decode("utf-8", "backslashreplace")
                raise BadInputError(
                    f"layer {index + 1} of {len(layers)}: a hard link to {shown!r}, which no layer up to it has",
                    hint="the image cannot be unpacked by an ordinary runtime either; build it again",
                )
            look_up.resolved[index, link] = lower
    if not look_up.resolved:
        return target
    table = np.arange(int(target.max()) + 1, dtype=np.int32)
    for (layer_index, link), (lower_index, inode) in look_up.resolved.items():
        table[base[layer_index] + link] = base[lower_index] + inode
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


class _LookUp:
    """Paths of the layers whose `views` it has. `resolved` has what links of these layers turned out to be."""

    def __init__(self) -> None:
        self.views: list[_LayerView] = []
        self.resolved: dict[tuple[int, int], tuple[int, int]] = {}
        self._steps = _MAX_STEPS

    def file(self, path: bytes) -> tuple[int, int] | None:
        """(layer, inode) of the file at `path`; None where there is none, or a directory."""
        root = self._opened([(index, 0) for index in range(len(self.views))][::-1])
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
            found = self._child(stack[-1], part)
            if not found:
                return None
            layer, inode = found[0]
            kind = self.views[layer].kind(inode)
            if kind == stat.S_IFDIR:
                stack.append(found)
            elif not todo:
                return layer, inode
            elif kind == stat.S_IFLNK and hops < _MAX_SYMLINK_HOPS:
                hops += 1
                target = self.views[layer].target(inode)
                stack = [root] if target.startswith(b"/") else stack
                todo.extend(target.split(b"/")[::-1])
            else:
                return None
        return None

    def _child(self, directory: Found, name: bytes) -> Found:
        self._steps -= len(directory)
        if self._steps < 0:
            raise LimitError("the image has too many hard links from one layer to files of another")
        found: Found = []
        for layer, inode in directory:
            entry = self.views[layer].entry(inode, name)
            if entry is None:
                continue
            if entry == WHITEOUT:
                break
            child = self.resolved.get((layer, entry), (layer, entry))
            if self.views[child[0]].kind(child[1]) != stat.S_IFDIR:
                if not found:
                    return [child]
                break
            found.append(child)
        return self._opened(found)

    def _opened(self, found: Found) -> Found:
        """`found` down to the first opaque directory."""
        for at, (layer, inode) in enumerate(found):
            if self.views[layer].is_opaque(inode):
                return found[: at + 1]
        return found
