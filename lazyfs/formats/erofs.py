"""EROFS on-disk structures, as far as a bootstrap uses them.

After the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst. All integers are
little-endian. Inodes are found by nid, their byte offset divided by 32 (`meta_blkaddr` is 0 here).
"""

import numpy as np

BLOCK_BITS = 9
BLOCK = 1 << BLOCK_BITS
SUPERBLOCK_OFFSET = 1024
MAGIC = 0xE0F5E1E2
SLOT = 32
INCOMPAT_CHUNKED_FILE = 0x4
INCOMPAT_DEVICE_TABLE = 0x8
DEVICE_SLOT_SIZE = 128
XATTR_HEADER_SIZE = 12
NULL_ADDRESS = 0xFFFFFFFF
MAX_BLOCKS = 0xFFFFFFFF
CHUNK_INDEXES = 1 << 5

LAYOUT_PLAIN = 0
LAYOUT_INLINE = 2
LAYOUT_CHUNKED = 4

XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)

SUPERBLOCK = np.dtype(
    [
        ("magic", "<u4"),
        ("checksum", "<u4"),
        ("feature_compat", "<u4"),
        ("blkszbits", "u1"),
        ("sb_extslots", "u1"),
        ("root_nid", "<u2"),
        ("inos", "<u8"),
        ("build_time", "<u8"),
        ("build_time_nsec", "<u4"),
        ("blocks", "<u4"),
        ("meta_blkaddr", "<u4"),
        ("xattr_blkaddr", "<u4"),
        ("uuid", "V16"),
        ("volume_name", "V16"),
        ("feature_incompat", "<u4"),
        ("compression", "<u2"),
        ("extra_devices", "<u2"),
        ("devt_slotoff", "<u2"),
        ("dirblkbits", "u1"),
        ("xattr_prefix_count", "u1"),
        ("xattr_prefix_start", "<u4"),
        ("packed_nid", "<u8"),
        ("xattr_filter", "u1"),
        ("reserved", "V23"),
    ]
)

DEVICE_SLOT = np.dtype([("tag", "S64"), ("blocks", "<u4"), ("mapped_blkaddr", "<u4"), ("reserved", "V56")])

INODE = np.dtype(  # struct erofs_inode_extended
    [
        ("format", "<u2"),
        ("xattr_icount", "<u2"),
        ("mode", "<u2"),
        ("reserved", "<u2"),
        ("size", "<u8"),
        ("u", "<u4"),
        ("ino", "<u4"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),
        ("nsec", "<u4"),
        ("nlink", "<u4"),
        ("reserved2", "V16"),
    ]
)

DIRENT = np.dtype([("nid", "<u8"), ("nameoff", "<u2"), ("type", "u1"), ("reserved", "u1")])

assert SUPERBLOCK.itemsize == 128
assert DEVICE_SLOT.itemsize == DEVICE_SLOT_SIZE
assert INODE.itemsize == 64
assert DIRENT.itemsize == 12
