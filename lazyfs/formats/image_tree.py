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
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.layer_view import resolve_links
from lazyfs.formats.toc import FLAG_IMPLIED, FLAG_OPAQUE, MAX_INODES, WHITEOUT, Inodes, Sparse, Tree, Xattrs

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ImageTree:
    """Like `toc.Tree`, without whiteouts, flags or links to lower layers; `device` is the layer (0 the lowest)
    whose device has the inode's data, `links` the link count."""

    inodes: Inodes
    device: Ints
    links: Ints
    counts: Ints
    names: list[bytes]
    entries: Ints
    targets: list[bytes]
    xattr_sets: list[Xattrs]
    sparse_inodes: Ints
    sparse: Sparse


@dataclass(frozen=True, slots=True)
class _Joined:
    """All layers in one numbering: inode i of layer l is `base[l] + i`. Directory columns are by inode."""

    base: Ints
    mode: Ints
    flags: Ints
    first_entry: Ints
    entry_count: Ints
    names: list[bytes]
    rank: Ints
    target: Ints


@dataclass(frozen=True, slots=True)
class _Level:
    """The entries of all directories of one depth, in (directory, name) order."""

    parent: Ints
    entry: Ints
    inode: Ints
    described_by: Ints
    below_group: Ints
    below_inode: Ints


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
    number = np.full(len(joined.mode), -1, np.int64)
    roots = joined.base[::-1]
    number[roots[0]] = 0
    opaque = np.flatnonzero(joined.flags[roots] & FLAG_OPAQUE)
    described = np.flatnonzero((joined.flags[roots] & FLAG_IMPLIED) == 0)
    source = [roots[described[:1]] if len(described) else roots[:1]]
    contents = roots[: opaque[0] + 1] if len(opaque) else roots
    owners = np.zeros(len(contents), np.int64)
    levels: list[_Level] = []
    numbered: list[Ints] = []
    count = 1
    while len(contents):
        level = _expand(joined, owners, contents)
        fresh = _number(level.inode, number, count)
        count += len(fresh)
        source.append(level.described_by[fresh])
        numbered.append(number[level.inode])
        levels.append(level)
        owners, contents = number[level.inode[level.below_group]], level.below_inode
    return _assemble(layers, joined, np.concatenate(source), levels, numbered)


def _join(layers: Sequence[Tree]) -> _Joined:
    sizes = np.array([len(layer.inodes) for layer in layers], np.int64)
    base = np.cumsum(sizes) - sizes
    names = [name for layer in layers for name in layer.names]
    mode = np.concatenate([layer.inodes.mode for layer in layers]).astype(np.int64)
    entry_count = np.zeros(len(mode), np.int64)
    directories = np.flatnonzero((mode & 0o170000) == stat.S_IFDIR)
    entry_count[directories] = np.concatenate([layer.counts for layer in layers])
    target = np.concatenate([layer.entries for layer in layers]).astype(np.int64)
    shift = np.repeat(base, [len(layer.entries) for layer in layers])
    target = np.where(target == WHITEOUT, -1, target + shift)
    return _Joined(
        base=base,
        mode=mode,
        flags=np.concatenate([layer.inodes.flags for layer in layers]).astype(np.int64),
        first_entry=np.cumsum(entry_count) - entry_count,
        entry_count=entry_count,
        names=names,
        rank=_ranks(names, len(layers)),
        target=resolve_links(layers, base, target),
    )


def _ranks(names: list[bytes], layers: int) -> Ints:
    """Numbers that order names as their bytes do, within one directory."""
    if layers == 1:  # sorted within each directory already
        return np.arange(len(names), dtype=np.int64)
    order = {name: rank for rank, name in enumerate(sorted(set(names)))}
    return np.fromiter(map(order.__getitem__, names), np.int64, len(names))


def ranges(start: Ints, count: Ints) -> Ints:
    """The concatenation of `range(start[i], start[i] + count[i])`."""
    total = int(count.sum())
    ends = np.cumsum(count)
    flat: Ints = np.arange(total, dtype=np.int64) + np.repeat(start - (ends - count), count)
    return flat


def _expand(joined: _Joined, owners: Ints, contents: Ints) -> _Level:
    """`contents` are directories of layers, topmost layer first within each merged directory of `owners`."""
    count = joined.entry_count[contents]
    entry = ranges(joined.first_entry[contents], count)
    parent = np.repeat(owners, count)
    key = parent * (len(joined.names) + 1) + joined.rank[entry]
    order = np.argsort(key, kind="stable")
    entry, parent, key = entry[order], parent[order], key[order]
    first = (
        np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if len(key) else np.zeros(0, np.int64)
    )
    group = np.repeat(np.arange(len(first)), np.diff(np.concatenate((first, [len(key)]))))

    inode = joined.target[entry]
    is_dir = (inode >= 0) & ((joined.mode[inode] & 0o170000) == stat.S_IFDIR)
    flags = np.where(is_dir, joined.flags[inode], 0)
    ended = _earlier(~is_dir, first, group)
    open_ = is_dir & ~ended
    contributes = open_ & ~_earlier(is_dir & (flags & FLAG_OPAQUE != 0), first, group)
    row = np.arange(len(key))
    describes = np.where(open_ & (flags & FLAG_IMPLIED == 0), row, len(row))
    described = np.minimum.reduceat(describes, first) if len(first) else describes
    described = np.where(described < len(row), described, first)

    kept = np.flatnonzero(inode[first] >= 0)
    new_group = np.full(len(first), -1, np.int64)
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
    before: Ints = np.cumsum(mask, dtype=np.int64) - mask
    earlier: npt.NDArray[np.bool_] = before > before[first][group]
    return earlier


def _number(inode: Ints, number: Ints, count: int) -> Ints:
    """Give the next numbers to inodes named for the first time; returns the rows that named them, in order."""
    candidates = np.flatnonzero(number[inode] < 0)
    _, index = np.unique(inode[candidates], return_index=True)
    fresh = candidates[np.sort(index)]
    number[inode[fresh]] = count + np.arange(len(fresh))
    return fresh


def _assemble(
    layers: Sequence[Tree], joined: _Joined, source: Ints, levels: list[_Level], numbered: list[Ints]
) -> ImageTree:
    parent = np.concatenate([level.parent for level in levels])
    entry = np.concatenate([level.entry for level in levels])
    entries = np.concatenate(numbered)
    xattr_sets, set_base = _join_xattrs(layers)
    columns = {
        f.name: np.concatenate([getattr(layer.inodes, f.name) for layer in layers])[source]
        for f in fields(Inodes)
    }
    device = np.searchsorted(joined.base, source, side="right") - 1
    columns["xattrs"] = np.where(columns["xattrs"] > 0, columns["xattrs"] + set_base[device], 0)
    columns["flags"] = np.zeros(len(source), np.uint8)
    is_dir = (columns["mode"] & 0o170000) == stat.S_IFDIR
    directories = np.flatnonzero(is_dir)
    links = np.bincount(entries, minlength=len(source))
    subdirectories = np.bincount(parent[is_dir[entries]], minlength=len(source))
    final = np.full(len(joined.mode), -1, np.int64)
    final[source] = np.arange(len(source))
    sparse_inodes, sparse = _join_sparse(layers, joined.base, final)
    return ImageTree(
        inodes=Inodes(**columns),
        device=device,
        links=np.where(is_dir, 2 + subdirectories, links),
        counts=np.bincount(parent, minlength=len(source))[directories],
        names=[joined.names[index] for index in entry.tolist()],
        entries=entries,
        targets=_join_targets(layers, source),
        xattr_sets=xattr_sets,
        sparse_inodes=sparse_inodes,
        sparse=sparse,
    )


def _join_xattrs(layers: Sequence[Tree]) -> tuple[list[Xattrs], Ints]:
    sizes = np.array([len(layer.xattr_sets) for layer in layers], np.int64)
    return [pairs for layer in layers for pairs in layer.xattr_sets], np.cumsum(sizes) - sizes


def _join_targets(layers: Sequence[Tree], source: Ints) -> list[bytes]:
    mode = np.concatenate([layer.inodes.mode for layer in layers]) & 0o170000
    targets = [target for layer in layers for target in layer.targets]
    position = np.cumsum((mode == stat.S_IFLNK) | (mode == 0)) - 1
    symlinks = source[mode[source] == stat.S_IFLNK]
    return [targets[index] for index in position[symlinks].tolist()]


def _join_sparse(layers: Sequence[Tree], base: Ints, final: Ints) -> tuple[Ints, Sparse]:
    """Sparse inodes and segments in the image's numbering and order, without those that are hidden."""
    shift = np.repeat(base, [len(layer.sparse.inode) for layer in layers])
    owner = final[np.concatenate([layer.sparse.inode for layer in layers]).astype(np.int64) + shift]
    files = np.concatenate([layer.sparse_inodes for layer in layers]).astype(np.int64)
    files = final[files + np.repeat(base, [len(layer.sparse_inodes) for layer in layers])]
    kept = np.flatnonzero(owner >= 0)
    order = kept[np.argsort(owner[kept], kind="stable")]
    columns = {
        name: np.concatenate([getattr(layer.sparse, name) for layer in layers])[order]
        for name in ("offset", "data", "length")
    }
    return np.sort(files[files >= 0]), Sparse(inode=owner[order].astype(np.uint32), **columns)
