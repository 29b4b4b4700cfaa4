"""The tree of an image: the trees of its layers, laid over one another as the OCI image-spec says.

The work is done level by level on whole arrays. All directories of one depth are expanded at once: the
entries that the layers have for one name of one directory stand together, topmost layer first, and the first
of them decides. A whiteout or a file ends the search; a directory is joined with those below it, down to the
first that is opaque or no directory. What a directory is (mode, owner, times, xattrs) is said by the topmost
layer that has a member for it.

Merging here rather than in overlayfs makes link counts exact, keeps whiteouts out of what the kernel is
shown, and makes one mount of any number of layers (docs/design.md has the figures).
"""

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.columns import Column, ranges, shares
from lazyfs.formats.layer_view import resolve_links
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import FLAG_IMPLIED, FLAG_OPAQUE, MAX_INODES, Inodes, Sparse, Tree, Xattrs

Ints = npt.NDArray[np.int32]
"""Rows of columns, of which there are at most MAX_INODES."""


@dataclass(frozen=True, slots=True)
class ImageTree:
    """Like `toc.Tree`, without whiteouts, flags or links to lower layers; `device` is the layer (0 the lowest)
    whose device has the inode's data, `links` the link count."""

    inodes: Inodes
    device: Ints
    links: Ints
    counts: Ints
    names: Strings
    entries: Ints
    targets: Strings
    xattr_sets: list[Xattrs]
    sparse_inodes: Ints
    sparse: Sparse


@dataclass(frozen=True, slots=True)
class _Joined:
    """All layers in one numbering: inode i of layer l is `base[l] + i`. Directory columns are by inode."""

    base: Ints
    mode: npt.NDArray[np.uint16]
    flags: npt.NDArray[np.uint8]
    first_entry: Ints
    entry_count: Ints
    names: Strings
    rank: Ints
    target: Ints


@dataclass(frozen=True, slots=True)
class _Level:
    """The entries of directories of one depth, in (directory, name) order."""

    parent: Ints
    entry: Ints
    inode: Ints
    described_by: Ints
    below_group: Ints
    below_inode: Ints


@dataclass(frozen=True, slots=True)
class _Found:
    """Entries of the image: of the directory `parent`, with the name of `entry`, for `inode` in the image's numbers."""

    parent: Ints
    entry: Ints
    inode: Ints


def merge(layers: Sequence[Tree]) -> ImageTree:
    """The image's tree, from its layers' trees, lowest first.

    Raises BadInputError where a hard link names a path that no lower layer has, LimitError where the layers
    together have more than MAX_INODES inodes or entries.
    """
    if not layers:
        raise BadInputError("the image has no layers", hint="there is nothing in it that could be mounted")
    largest = max(sum(len(layer.inodes) for layer in layers), sum(len(layer.names) for layer in layers))
    if largest > MAX_INODES:
        raise LimitError(f"the image's layers have {largest} inodes or names, the limit is {MAX_INODES}")
    joined = _join(layers)
    number = np.full(len(joined.mode), -1, np.int32)
    roots = joined.base[::-1]
    number[roots[0]] = 0
    opaque = np.flatnonzero(joined.flags[roots] & FLAG_OPAQUE)
    described = np.flatnonzero((joined.flags[roots] & FLAG_IMPLIED) == 0)
    source = [roots[described[:1]] if len(described) else roots[:1]]
    contents = roots[: opaque[0] + 1] if len(opaque) else roots
    owners = np.zeros(len(contents), np.int32)
    found: list[_Found] = []
    count = 1
    while len(contents):
        below: list[tuple[Ints, Ints]] = []
        for part in _whole_directories(joined, owners, contents):
            level = _expand(joined, owners[part], contents[part])
            fresh = _number(level.inode, number, count)
            count += len(fresh)
            source.append(level.described_by[fresh])
            found.append(_Found(level.parent, level.entry, number[level.inode]))
            below.append((number[level.inode[level.below_group]], level.below_inode))
        owners, contents = (np.concatenate(column) for column in zip(*below, strict=True))
    return _assemble(layers, joined, np.concatenate(source), found)


def _whole_directories(joined: _Joined, owners: Ints, contents: Ints) -> Iterator[slice]:
    """Some of `contents` at a time, all that have one owner together."""
    first = np.flatnonzero(np.concatenate(([True], owners[1:] != owners[:-1])))
    edges = np.concatenate((first, [len(owners)]))
    for share in shares(np.add.reduceat(joined.entry_count[contents], first)):
        yield slice(edges[share.start], edges[share.stop])


def _join(layers: Sequence[Tree]) -> _Joined:
    sizes = np.array([len(layer.inodes) for layer in layers], np.int32)
    base = np.cumsum(sizes, dtype=np.int32) - sizes
    names = Strings.join([layer.names for layer in layers])
    mode = np.concatenate([layer.inodes.mode for layer in layers])
    entry_count = np.zeros(len(mode), np.int32)
    entry_count[(mode & 0o170000) == stat.S_IFDIR] = np.concatenate([layer.counts for layer in layers])
    target = np.concatenate([layer.entries for layer in layers]).astype(np.int32)  # a whiteout becomes -1
    shift = np.repeat(base, [len(layer.entries) for layer in layers])
    target[target >= 0] += shift[target >= 0]
    return _Joined(
        base=base,
        mode=mode,
        flags=np.concatenate([layer.inodes.flags for layer in layers]),
        first_entry=np.cumsum(entry_count, dtype=np.int32) - entry_count,
        entry_count=entry_count,
        names=names,
        rank=_ranks(names, len(layers)),
        target=resolve_links(layers, base, target),
    )


def _ranks(names: Strings, layers: int) -> Ints:
    """Numbers that order names as their bytes do, within one directory."""
    if layers == 1:  # sorted within each directory already
        return np.arange(len(names), dtype=np.int32)
    return names.ranks()


def _expand(joined: _Joined, owners: Ints, contents: Ints) -> _Level:
    """`contents` are directories of layers, topmost layer first within each merged directory of `owners`."""
    count = joined.entry_count[contents]
    entry = ranges(joined.first_entry[contents], count)
    parent = np.repeat(owners, count)
    key = parent.astype(np.int64) * (len(joined.names) + 1) + joined.rank[entry]
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        entry, parent, key = entry[order], parent[order], key[order]
    opens = np.concatenate(([True], key[1:] != key[:-1]))[: len(key)]
    del key
    first = np.flatnonzero(opens).astype(np.int32)
    group = np.cumsum(opens, dtype=np.int32) - 1

    inode = joined.target[entry]
    is_dir = (inode >= 0) & ((joined.mode[inode] & 0o170000) == stat.S_IFDIR)
    flags = np.where(is_dir, joined.flags[inode], 0)
    ended = _earlier(~is_dir, first, group)
    open_ = is_dir & ~ended
    contributes = open_ & ~_earlier(is_dir & (flags & FLAG_OPAQUE != 0), first, group)
    row = np.arange(len(entry), dtype=np.int32)
    describes = np.where(open_ & (flags & FLAG_IMPLIED == 0), row, np.int32(len(row)))
    described = np.minimum.reduceat(describes, first) if len(first) else describes
    described = np.where(described < len(row), described, first)

    kept = np.flatnonzero(inode[first] >= 0).astype(np.int32)
    new_group = np.full(len(first), -1, np.int32)
    new_group[kept] = np.arange(len(kept))
    below = np.flatnonzero(contributes)
    return _Level(
        parent=parent[first[kept]],
        entry=entry[first[kept]],
        inode=inode[first[kept]],
        described_by=inode[described[kept]],
        below_group=new_group[group[below]],
        below_inode=inode[below],
    )


def _earlier(mask: npt.NDArray[np.bool_], first: Ints, group: Ints) -> npt.NDArray[np.bool_]:
    """For each row: does `mask` hold for an earlier row of its group?"""
    before: Ints = np.cumsum(mask, dtype=np.int32) - mask
    earlier: npt.NDArray[np.bool_] = before > before[first][group]
    return earlier


def _number(inode: Ints, number: Ints, count: int) -> Ints:
    """Give the next numbers to inodes named for the first time; returns the rows that named them, in order."""
    candidates = np.flatnonzero(number[inode] < 0)
    _, index = np.unique(inode[candidates], return_index=True)
    fresh = candidates[np.sort(index)].astype(np.int32)
    number[inode[fresh]] = count + np.arange(len(fresh))
    return fresh


def _assemble(layers: Sequence[Tree], joined: _Joined, source: Ints, found: list[_Found]) -> ImageTree:
    parent, entry, entries = (
        np.concatenate([getattr(each, column.name) for each in found]) for column in fields(_Found)
    )
    xattr_sets, set_base = _join_xattrs(layers)
    columns = {
        column.name: _rows([getattr(layer.inodes, column.name) for layer in layers], source)
        for column in fields(Inodes)
    }
    device = np.searchsorted(joined.base, source, side="right").astype(np.int32) - 1
    columns["xattrs"] = np.where(columns["xattrs"] > 0, columns["xattrs"] + set_base[device], 0).astype(
        np.uint32
    )
    columns["flags"] = np.zeros(len(source), np.uint8)
    is_dir = (columns["mode"] & 0o170000) == stat.S_IFDIR
    directories = np.flatnonzero(is_dir)
    links = np.bincount(entries, minlength=len(source)).astype(np.int32)
    subdirectories = np.bincount(parent[is_dir[entries]], minlength=len(source)).astype(np.int32)
    final = np.full(len(joined.mode), -1, np.int32)
    final[source] = np.arange(len(source))
    sparse_inodes, sparse = _join_sparse(layers, joined.base, final)
    return ImageTree(
        inodes=Inodes(**columns),
        device=device,
        links=np.where(is_dir, 2 + subdirectories, links),
        counts=np.bincount(parent, minlength=len(source))[directories].astype(np.int32),
        names=joined.names.take(entry),
        entries=entries,
        targets=_join_targets(layers, source),
        xattr_sets=xattr_sets,
        sparse_inodes=sparse_inodes,
        sparse=sparse,
    )


def _rows(columns: Sequence[Column], rows: Ints) -> Column:
    """These rows of the columns, joined. Of an image of one layer they are that layer's own column."""
    if len(columns) == 1 and np.array_equal(rows, np.arange(len(columns[0]))):
        return columns[0]
    return np.concatenate(columns)[rows]


def _join_xattrs(layers: Sequence[Tree]) -> tuple[list[Xattrs], Ints]:
    sizes = np.array([len(layer.xattr_sets) for layer in layers], np.int32)
    return [pairs for layer in layers for pairs in layer.xattr_sets], np.cumsum(sizes, dtype=np.int32) - sizes


def _join_targets(layers: Sequence[Tree], source: Ints) -> Strings:
    mode = np.concatenate([layer.inodes.mode for layer in layers]) & 0o170000
    targets = Strings.join([layer.targets for layer in layers])
    position = np.cumsum((mode == stat.S_IFLNK) | (mode == 0)) - 1
    return targets.take(position[source[mode[source] == stat.S_IFLNK]])


def _join_sparse(layers: Sequence[Tree], base: Ints, final: Ints) -> tuple[Ints, Sparse]:
    """Sparse inodes and segments in the image's numbering and order, without those that are hidden."""
    shift = np.repeat(base, [len(layer.sparse.inode) for layer in layers])
    owner = final[np.concatenate([layer.sparse.inode for layer in layers]).astype(np.int32) + shift]
    files = np.concatenate([layer.sparse_inodes for layer in layers]).astype(np.int32)
    files = final[files + np.repeat(base, [len(layer.sparse_inodes) for layer in layers])]
    kept = np.flatnonzero(owner >= 0)
    order = kept[np.argsort(owner[kept], kind="stable")]
    columns = {
        name: np.concatenate([getattr(layer.sparse, name) for layer in layers])[order]
        for name in ("offset", "data", "length")
    }
    return np.sort(files[files >= 0]), Sparse(inode=owner[order].astype(np.uint32), **columns)
