"""The bootstrap: an EROFS image of metadata alone, whose files point into the devices of an image's layers.

Written on the node from columns that have been checked, never taken from a stranger: what the kernel is
given is only what this module can write. `docs/format.md` draws the layout:

    0       superblock (at 1024), device table: one slot per layer
    nodes   root directory
            plain inodes     64 bytes each, in tree order: directories, files, devices
            short symlinks   inode and target within one block
            others           with xattrs, long symlinks, sparse files
    blocks  directory blocks, then the targets of long symlinks

Files have the layout "flat plain" and a block address in one address space: the bootstrap's own blocks,
then each device at its mapped block address. So an inode is 64 bytes and a file of any size needs no
chunk index. Only sparse files are chunk based.

It comes in two shapes: SEPARATE, the blocks of tar and a device for each layer; JOINED, the blocks and the
one device that the oldest EROFS knows, for a file in which the data follow the metadata (see `spread`).
"""

import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lazyfs.errors import LimitError
from lazyfs.formats import erofs
from lazyfs.formats.bootstrap_dirs import Directories, lay_out_directories
from lazyfs.formats.columns import batches, ranges
from lazyfs.formats.erofs import INODE, SLOT
from lazyfs.formats.image_tree import ImageTree
from lazyfs.formats.toc_types import Xattrs

VERSION = 1
"""Part of the name under which a node keeps a bootstrap: a new layout is a new name."""

MAX_CHUNK_INDEXES = 1 << 20
"""Of one sparse file; the converter realigns files that would need more."""
MAX_SIZE = 512 << 20
"""Of a bootstrap: eight million plain inodes."""
MAX_DEVICES = 4096
"""Behind their table lies the root directory, whose nid has 16 bits."""
_MAX_CHUNK_BITS = 31
_DEVICE_ALIGNMENT = 4096

Ints = npt.NDArray[np.int64]
Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shape:
    """`block` bytes to a block; with a `device_table` data lie in devices, else behind the metadata."""

    block: int
    device_table: bool


SEPARATE = Shape(block=512, device_table=True)
JOINED = Shape(block=4096, device_table=False)
"""Needs no feature of EROFS, so each kernel that has EROFS mounts it."""


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where each inode lies, and which data layout it has. Offsets are bytes in the bootstrap."""

    offset: Ints
    layout: npt.NDArray[np.uint16]
    xattr_size: Ints
    end: int


@dataclass(frozen=True, slots=True)
class _SparseFile:
    inode: int
    chunk_bits: int
    addresses: Ints


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where everything lies; `directory_block`, `link_block` and `end` are in blocks."""

    areas: list[bytes]
    chunked: list[_SparseFile]
    place: _Placement
    directories: Directories
    long_symlinks: Ints
    link_blocks: Ints
    directory_block: int
    link_block: int
    end: int
    bases: Ints


def build(tree: ImageTree, device_sizes: Sequence[int], shape: Shape = SEPARATE) -> bytearray:
    """The bootstrap of an image, whose layers' devices have `device_sizes` bytes (multiples of a block), lowest first.

    JOINED takes what `spread.spread` makes: one device and no sparse files; it begins where the bootstrap ends.
    Raises LimitError as `check` does.
    """
    plan, block = _plan(tree, device_sizes, shape), shape.block
    written = bytearray(plan.end * block)
    image = np.frombuffer(written, np.uint8)
    _write_header(image, tree, int(plan.place.offset[0]), plan.bases, device_sizes, shape)
    address = _data_addresses(tree, plan.bases, plan.directories, plan.directory_block, block)
    address[plan.long_symlinks] = plan.link_block + np.cumsum(plan.link_blocks) - plan.link_blocks
    _write_inodes(image, tree, plan.place, address, plan.directories)
    _write_tails(image, tree, plan.place, plan.areas, plan.chunked, plan.bases)
    written[plan.directory_block * block : plan.link_block * block] = plan.directories.blocks
    _write_long_targets(image, tree, plan.long_symlinks, address * block)
    return written


def check(tree: ImageTree, device_sizes: Sequence[int]) -> None:
    """Raise LimitError unless `build` can lay the image out, without the memory for the result.

    It cannot where the image does not fit EROFS's 32-bit block addresses (2 TiB, joined 16), or where
    the bootstrap would be larger than MAX_SIZE: a small TOC can ask for very much.
    """
    _plan(tree, device_sizes, SEPARATE)


def _plan(tree: ImageTree, device_sizes: Sequence[int], shape: Shape) -> _Plan:
    block = shape.block
    if len(device_sizes) > MAX_DEVICES:
        raise LimitError(f"the image has {len(device_sizes)} layers, the limit is {MAX_DEVICES}")
    areas = [_xattr_area(pairs) for pairs in tree.xattr_sets]
    first_inode = _align(erofs.SUPERBLOCK_OFFSET + 128 + erofs.DEVICE_SLOT_SIZE * len(device_sizes), block)
    chunked = _plan_all_sparse(tree)
    place = _place_inodes(tree, areas, chunked, first_inode, block)
    _limit_size(place.end + block * len(tree.counts))
    directories = lay_out_directories(tree, place.offset // SLOT, block)
    long_symlinks, link_blocks = _long_symlinks(tree, place, block)
    directory_block = _align(place.end, block) // block
    link_block = directory_block + len(directories.blocks) // block
    end = link_block + int(link_blocks.sum())
    _limit_size(end * block)
    return _Plan(
        areas=areas,
        chunked=chunked,
        place=place,
        directories=directories,
        long_symlinks=long_symlinks,
        link_blocks=link_blocks,
        directory_block=directory_block,
        link_block=link_block,
        end=end,
        bases=_device_bases(end * block, device_sizes, block),
    )


def _align(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _limit_size(size: int) -> None:
    if size > MAX_SIZE:
        raise LimitError(
            f"the image's metadata would have {size} bytes, the limit is {MAX_SIZE}",
            hint="images of fewer directories, symlinks, extended attributes or sparse files need less",
        )


def _device_bases(own_size: int, device_sizes: Sequence[int], block: int) -> Ints:
    """First block of each device in the common address space; the last element is its end."""
    at = _align(own_size, _DEVICE_ALIGNMENT)
    bases = []
    for size in device_sizes:
        bases.append(at // block)
        at = _align(at + size, _DEVICE_ALIGNMENT)
    bases.append(at // block)
    if bases[-1] >= erofs.MAX_BLOCKS:
        limit = block * (erofs.MAX_BLOCKS + 1) >> 40
        raise LimitError(f"the image has {at} bytes, EROFS with {block}-byte blocks addresses {limit} TiB")
    return np.array(bases, np.int64)


def _place_inodes(
    tree: ImageTree, areas: list[bytes], chunked: list[_SparseFile], first: int, block: int
) -> _Placement:
    """Give every inode its offset, so that neither a core nor an inline target crosses a block."""
    kind = tree.inodes.mode & 0o170000
    size = tree.inodes.size.astype(np.int64)
    count = len(kind)
    area_sizes = np.array([0] + [len(area) for area in areas], np.int64)
    xattr_size = area_sizes[tree.inodes.xattrs]
    layout = np.full(count, erofs.LAYOUT_PLAIN, np.uint16)
    short = (kind == stat.S_IFLNK) & (xattr_size == 0) & (size <= block - INODE.itemsize)
    layout[short] = erofs.LAYOUT_INLINE
    extra = xattr_size.copy()
    for file in chunked:
        layout[file.inode] = erofs.LAYOUT_CHUNKED
        extra[file.inode] = _align(int(xattr_size[file.inode]), 8) + 8 * len(file.addresses)

    offset = np.zeros(count, np.int64)
    offset[0] = first  # whatever xattrs it has: the superblock has 16 bits for the root's nid
    start = first + _align(INODE.itemsize + int(extra[0]), INODE.itemsize)
    others = ~short & (np.arange(count) > 0)
    plain = np.flatnonzero(others & (extra == 0))
    offset[plain] = start + INODE.itemsize * np.arange(len(plain))
    at = _align(start + INODE.itemsize * len(plain), block)
    symlinks = np.flatnonzero(short)
    slots = _round_up(INODE.itemsize + size[symlinks], SLOT)
    for slot in sorted(set(slots.tolist())):
        members = symlinks[slots == slot]
        per_block = block // slot
        nth = np.arange(len(members))
        offset[members] = at + nth // per_block * block + nth % per_block * slot
        at += -(-len(members) // per_block) * block
    large = np.flatnonzero(others & (extra > 0))
    sizes = _round_up(INODE.itemsize + extra[large], INODE.itemsize)
    offset[large] = at + np.cumsum(sizes) - sizes
    return _Placement(offset, layout, xattr_size, at + int(sizes.sum()))


def _round_up(values: Ints, unit: int) -> Ints:
    return -(-values // unit) * unit


def _data_addresses(
    tree: ImageTree, bases: Ints, directories: Directories, directory_block: int, block: int
) -> Ints:
    """The block address of each inode's data, or the device number of a device node."""
    inodes = tree.inodes
    kind = inodes.mode & 0o170000
    address = np.zeros(len(kind), np.int64)
    regular = (kind == stat.S_IFREG) & (inodes.size > 0)
    address[regular] = bases[tree.device[regular]] + inodes.data[regular].astype(np.int64) // block
    address[kind == stat.S_IFDIR] = directory_block + directories.first_block
    devices = (kind == stat.S_IFCHR) | (kind == stat.S_IFBLK)
    major, minor = (inodes.rdev >> 20).astype(np.int64), (inodes.rdev & 0xFFFFF).astype(np.int64)
    # The kernel's new_encode_dev().
    address[devices] = ((minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12))[devices]
    return address


def _write_header(
    image: Buffer, tree: ImageTree, root_offset: int, bases: Ints, device_sizes: Sequence[int], shape: Shape
) -> None:
    superblock = np.zeros(1, erofs.SUPERBLOCK)
    superblock["magic"] = erofs.MAGIC
    superblock["blkszbits"] = shape.block.bit_length() - 1
    superblock["root_nid"] = root_offset // SLOT
    superblock["inos"] = len(tree.inodes)
    superblock["blocks"] = len(image) // shape.block if shape.device_table else bases[-1]
    start = erofs.SUPERBLOCK_OFFSET
    image[start : start + superblock.nbytes] = np.frombuffer(superblock.tobytes(), np.uint8)
    if not shape.device_table:
        return
    superblock["feature_incompat"] = erofs.INCOMPAT_DEVICE_TABLE | (
        erofs.INCOMPAT_CHUNKED_FILE if len(tree.sparse_inodes) else 0
    )
    superblock["extra_devices"] = len(device_sizes)
    superblock["devt_slotoff"] = (erofs.SUPERBLOCK_OFFSET + 128) // erofs.DEVICE_SLOT_SIZE
    slots = np.zeros(len(device_sizes), erofs.DEVICE_SLOT)
    slots["tag"] = [f"layer{index}" for index in range(len(device_sizes))]
    slots["blocks"] = np.array(device_sizes, np.int64) // shape.block
    slots["mapped_blkaddr"] = bases[:-1]
    header = superblock.tobytes() + slots.tobytes()
    image[start : start + len(header)] = np.frombuffer(header, np.uint8)


def _write_inodes(
    image: Buffer, tree: ImageTree, place: _Placement, address: Ints, directories: Directories
) -> None:
    inodes = tree.inodes
    size = inodes.size.copy()
    size[(inodes.mode & 0o170000) == stat.S_IFDIR] = directories.size
    # Offsets are multiples of 32: two half-inodes each, so that whole rows are copied rather than bytes.
    halves = image.reshape(-1, SLOT)
    for batch in batches(len(inodes)):
        xattr_size = place.xattr_size[batch]
        records = np.zeros(len(xattr_size), INODE)
        records["format"] = 1 | place.layout[batch] << 1
        icount = (xattr_size - erofs.XATTR_HEADER_SIZE) // 4 + 1
        records["xattr_icount"] = np.where(xattr_size > 0, icount, 0)
        records["mode"] = inodes.mode[batch]
        records["size"] = size[batch]
        records["u"] = address[batch]
        records["ino"] = np.arange(batch.start + 1, batch.stop + 1)
        records["uid"] = inodes.uid[batch]
        records["gid"] = inodes.gid[batch]
        records["mtime"] = inodes.mtime[batch]
        records["nsec"] = inodes.nsec[batch]
        records["nlink"] = tree.links[batch]
        rows = records.view(np.uint8).reshape(len(records), INODE.itemsize)
        slot = place.offset[batch] // SLOT
        halves[slot] = rows[:, :SLOT]
        halves[slot + 1] = rows[:, SLOT:]


def _write_tails(
    image: Buffer,
    tree: ImageTree,
    place: _Placement,
    areas: list[bytes],
    chunked: list[_SparseFile],
    bases: Ints,
) -> None:
    """What follows inode cores: inline targets, xattrs, chunk indexes."""
    symlinks = np.flatnonzero((tree.inodes.mode & 0o170000) == stat.S_IFLNK)
    inline = place.layout[symlinks] == erofs.LAYOUT_INLINE
    sizes = tree.inodes.size[symlinks].astype(np.int64)
    text = np.frombuffer(tree.targets.data, np.uint8)
    starts = tree.targets.start[:-1].astype(np.int64)
    into = ranges(place.offset[symlinks[inline]] + INODE.itemsize, sizes[inline])
    image[into] = text[ranges(starts[inline], sizes[inline])]
    for inode in np.flatnonzero(tree.inodes.xattrs > 0).tolist():
        area = areas[int(tree.inodes.xattrs[inode]) - 1]
        at = int(place.offset[inode]) + INODE.itemsize
        image[at : at + len(area)] = np.frombuffer(area, np.uint8)
    for file in chunked:
        _write_chunk_indexes(image, place, file, int(bases[tree.device[file.inode]]))


def _xattr_area(pairs: Xattrs) -> bytes:
    """The inline xattr area (struct erofs_xattr_ibody_header and entries) of one set."""
    area = bytearray(erofs.XATTR_HEADER_SIZE)
    for name, value in pairs:
        prefix, index = next((p, i) for p, i in erofs.XATTR_PREFIXES if name.startswith(p))
        suffix = name[len(prefix) :]
        area += struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
        area += bytes(-len(area) % 4)
    return bytes(area)


def _long_symlinks(tree: ImageTree, place: _Placement, block: int) -> tuple[Ints, Ints]:
    """Symlinks whose target does not lie behind the inode, and how many blocks each target takes."""
    is_symlink = (tree.inodes.mode & 0o170000) == stat.S_IFLNK
    inodes = np.flatnonzero(is_symlink & (place.layout == erofs.LAYOUT_PLAIN))
    return inodes, _round_up(tree.inodes.size[inodes].astype(np.int64), block) // block


def _write_long_targets(image: Buffer, tree: ImageTree, inodes: Ints, offset: Ints) -> None:
    position = np.cumsum((tree.inodes.mode & 0o170000) == stat.S_IFLNK) - 1
    for inode in inodes.tolist():
        target = tree.targets[int(position[inode])]
        at = int(offset[inode])
        image[at : at + len(target)] = np.frombuffer(target, np.uint8)


def chunk_bits(size: int, segments: Sequence[tuple[int, int]]) -> int:
    """log2 of the largest chunk in which a sparse file of `size` can be described.

    `segments` are (file offset, length), starting at multiples of 512. Every chunk must be all data or all
    hole, so each segment starts and ends where a chunk does; only the end of the file is free.
    """
    edges = 1 << _MAX_CHUNK_BITS
    for offset, length in segments:
        edges |= offset
        if offset + length < size:
            edges |= offset + length
    return (edges & -edges).bit_length() - 1


def _plan_all_sparse(tree: ImageTree) -> list[_SparseFile]:
    planned = []
    indexes = 0
    for inode in tree.sparse_inodes.tolist():
        planned.append(_plan_sparse(tree, inode))
        indexes += len(planned[-1].addresses)
        _limit_size(8 * indexes)
    return planned


def _plan_sparse(tree: ImageTree, inode: int) -> _SparseFile:
    """Chunk addresses of one sparse file, relative to its device; -1 is a hole."""
    sparse = tree.sparse
    low, high = np.searchsorted(sparse.inode, [inode, inode + 1])
    size = int(tree.inodes.size[inode])
    offsets = sparse.offset[low:high].astype(np.int64)
    lengths = sparse.length[low:high].astype(np.int64)
    bits = chunk_bits(size, list(zip(offsets.tolist(), lengths.tolist(), strict=True)))
    count = -(-size // (1 << bits))
    if bits < erofs.BLOCK_BITS or count > MAX_CHUNK_INDEXES:
        raise LimitError(
            f"a sparse file of {size} bytes needs {count} chunk indexes, the limit is {MAX_CHUNK_INDEXES}"
        )
    addresses = np.full(count, -1, np.int64)
    chunks = -(-lengths // (1 << bits))
    into = ranges(offsets >> bits, chunks)
    nth = ranges(np.zeros(len(chunks), np.int64), chunks)
    addresses[into] = (
        np.repeat(sparse.data[low:high].astype(np.int64) // SEPARATE.block, chunks)
        + (nth << bits) // SEPARATE.block
    )
    return _SparseFile(inode, bits, addresses)


def _write_chunk_indexes(image: Buffer, place: _Placement, file: _SparseFile, base: int) -> None:
    indexes = np.zeros(
        len(file.addresses), np.dtype([("advise", "<u2"), ("device", "<u2"), ("block", "<u4")])
    )
    indexes["block"] = np.where(file.addresses < 0, erofs.NULL_ADDRESS, file.addresses + base)
    core = int(place.offset[file.inode])
    at = core + INODE.itemsize + _align(int(place.xattr_size[file.inode]), 8)
    image[at : at + indexes.nbytes] = np.frombuffer(indexes.tobytes(), np.uint8)
    info = struct.pack("<I", erofs.CHUNK_INDEXES | (file.chunk_bits - erofs.BLOCK_BITS))
    image[core + 16 : core + 20] = np.frombuffer(info, np.uint8)
