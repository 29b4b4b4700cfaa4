"""How much of a launch pack was of use: what of it the running containers have read.

The daemon does not see that, since what a pack brings is read out of the kernel's page cache. But the kernel knows
which pages of the image's files are in memory, and nothing but a reader brings a page of a file there: the pack
fills the pages of the devices below.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lazyfs.beneath import read_beneath
from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError
from lazyfs.formats import pack, toc
from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.formats.frames import open_side_data
from lazyfs.formats.image_paths import extents, regular_files
from lazyfs.formats.image_tree import ImageTree, merge
from lazyfs.formats.oci_descriptor import parse_digest
from lazyfs.formats.pack_read import Pack
from lazyfs.formats.profile import Touch, resolve
from lazyfs.mount.images import find_image_mounts
from lazyfs.mount.residency import resident_pages


def uses(paths: NodePaths, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each launched image that is mounted: `hits` and `waste`, units of its pack that were read, or were not."""
    keys = {image["digest"]: image["key"] for image in status["images"]}
    found = []
    for launch in status["launches"]:
        mounts = find_image_mounts(paths, keys.get(launch["image"], ""))
        if mounts and launch["state"] == "done":
            with suppress(LazyfsError, OSError):  # it was unmounted, or its files removed, just now
                found.append(_use(paths, launch, mounts[-1]))
    return found


def _use(paths: NodePaths, launch: Mapping[str, Any], mount: Path) -> dict[str, Any]:
    # By root, of what the daemon's account has written.
    stored = read_beneath(paths.packs, parse_digest(launch["pack"]), pack.HEADER.size + pack.MAX_INDEX_SIZE)
    index = pack.decode_index(stored[pack.HEADER.size :])
    tocs = [
        toc.decode(open_side_data(read_beneath(paths.tocs, digest, toc.MAX_TOC_SIZE)))
        for digest in index.tocs
    ]
    chunks = [each.chunks for each in tocs]
    tree = merge([each.tree for each in tocs])
    brought = Pack(index, chunks)
    units = {place for frame in range(len(brought)) for place in brought.places(frame)}
    touched = resolve(list(_touches(tree, brought, chunks, mount)), tree, chunks).units
    first = [table.first_units() for table in chunks]
    numbered = {(layer, int(first[layer][chunk]) + unit) for layer, chunk, unit in units}
    hits = len(numbered.intersection(touched))
    return {
        "image": launch["image"],
        "hits": hits,
        "waste": len(numbered) - hits,
        "waste_bytes": (len(numbered) - hits) * UNIT_SIZE,
    }


def _touches(tree: ImageTree, brought: Pack, chunks: list[Any], mount: Path) -> Iterator[Touch]:
    """Pages in memory of the files that the pack has something of."""
    starts: list[set[int]] = [set() for _ in chunks]
    for frame in range(len(brought)):
        for layer, chunk, unit in brought.places(frame):
            starts[layer].add(int(chunks[layer].start[chunk]) + unit * UNIT_SIZE)
    sorted_starts = [np.array(sorted(each), np.int64) for each in starts]
    seen: set[int] = set()
    for path, inode in regular_files(tree):
        if inode not in seen and any(
            _overlaps(sorted_starts[each.layer], each.start, each.start + each.length)
            for each in extents(tree, inode)
        ):
            seen.add(inode)
            for page in resident_pages(mount / os.fsdecode(path)):
                yield Touch(path, page, page)


def _overlaps(starts: Any, low: int, high: int) -> bool:
    """Is a unit that begins at one of `starts` in [low, high)?"""
    return bool(np.searchsorted(starts, high) > np.searchsorted(starts, low - UNIT_SIZE, side="right"))
