"""What a directory tree holds, as JSON: one record per path, with all that a layer can say of it.

`python -m benchmarks.images.tree DIR` writes the listing of DIR to standard output. The builder
makes one of every image it builds, from overlayfs, before the image is ever packed; whoever shows
the image later (tar, containerd, lazyfs) is compared with it.
"""

import hashlib
import json
import os
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def list_tree(root: Path) -> dict[str, dict[str, Any]]:
    """Every path below `root` ("." is the root itself), to its record.

    Names that are not UTF-8 are surrogate-escaped. ``nlink`` counts the names within the tree
    rather than asking the inode, because overlayfs goes on counting names that an upper layer
    has hidden; directories have none, since what it means is the file system's own affair.
    """
    records: dict[str, dict[str, Any]] = {}
    inodes: dict[str, tuple[int, int]] = {}
    pending = ["."]
    while pending:
        relative = pending.pop()
        path = root / relative
        info = path.lstat()
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            continue  # a socket: no layer can hold one
        records[relative] = _record(path, info, kind)
        if kind == "dir":
            pending += [os.fspath(child.relative_to(root)) for child in path.iterdir()]
        else:
            inodes[relative] = (info.st_dev, info.st_ino)
    names = Counter(inodes.values())
    for relative, inode in inodes.items():
        records[relative]["nlink"] = names[inode]
    return dict(sorted(records.items()))


def _record(path: Path, info: os.stat_result, kind: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "type": kind,
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
        "uid": info.st_uid,
        "gid": info.st_gid,
        "mtime_ns": info.st_mtime_ns,
    }
    if kind == "file":
        record["size"] = info.st_size
        with path.open("rb") as file:
            record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == "symlink":
        record["target"] = os.readlink(path)  # noqa: PTH115 (a Path would tidy it up)
    elif kind in ("char", "block"):
        record["rdev"] = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False).hex()
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if not name.startswith("trusted.overlay.")
    }
    if xattrs:
        record["xattrs"] = xattrs
    return record


if __name__ == "__main__":
    json.dump(list_tree(Path(sys.argv[1])), sys.stdout, indent=0)
