"""What a directory takes on disk, as du(1) counts it: allocated blocks, and each inode once."""

import os
import stat
from pathlib import Path

from snapshotter.records import Usage

_BLOCK = 512  # st_blocks, whatever the file system's own are


def disk_usage(directory: Path) -> Usage:
    """Linear in the number of entries; what disappears meanwhile is not counted."""
    status = os.lstat(directory)
    size, inodes = status.st_blocks * _BLOCK, 1
    linked: set[tuple[int, int]] = set()
    waiting = [os.fspath(directory)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif status.st_nlink > 1:
                    inode = status.st_dev, status.st_ino
                    if inode in linked:
                        continue
                    linked.add(inode)
                size += status.st_blocks * _BLOCK
                inodes += 1
    return Usage(size, inodes)
