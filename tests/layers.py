"""Layers converted for tests: blobs in a layout, devices as plain files, a bootstrap beside them."""

import gzip
import hashlib
import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from converter.layer import ConvertedLayer, Settings, convert_layer
from lazyfs.formats import toc as toc_module
from lazyfs.formats.bootstrap import build
from lazyfs.formats.image_tree import ImageTree, merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_LAYER
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.formats.toc_types import WHITEOUT, Toc, Tree
from lazyfs.node.sources import open_chunk
from lazyfs.stores import LayoutStore, Store, write_blob
from tests.trees import Entry, join, layer_tar


@dataclass(frozen=True)
class ImageFiles:
    tocs: list[Toc]
    devices: list[Path]
    bootstrap: Path


def compressed(stream: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(stream, 1)
    return zstandard.compress(stream) if kind == "zstd" else stream


def put_layer(store: Store, blob: bytes) -> Descriptor:
    digest, size = write_blob(store, blob)
    return Descriptor(OCI_LAYER, digest, size)


def convert_stream(
    stream: bytes, directory: Path, compression: str = "none", settings: Settings | None = None
) -> ConvertedLayer:
    """Convert one tar stream, within one layout in `directory`."""
    with LayoutStore(directory, create=True) as store:
        layer = put_layer(store, compressed(stream, compression))
        diff_id = f"sha256:{hashlib.sha256(stream).hexdigest()}"
        return convert_layer(store, layer, diff_id, store, settings or Settings())


def device_bytes(converted: ConvertedLayer, directory: Path) -> bytes:
    """The device as a node gets it: chunk by chunk, each from its frame alone."""
    chunks = converted.toc.chunks
    digest = converted.descriptor.digest
    with LayoutStore(directory) as store:
        return b"".join(
            open_chunk(
                converted.toc.codec,
                chunks,
                index,
                store.read(digest, int(chunks.blob_offset[index]), int(chunks.blob_length[index])),
                digest,
            )
            for index in range(len(chunks))
        )


def convert_image_files(streams: Sequence[bytes], directory: Path, compression: str = "none") -> ImageFiles:
    """What a node would have for an image of these layers; the TOCs have gone through their encoded form."""
    layout = directory / "layout"
    converted = [convert_stream(stream, layout, compression) for stream in streams]
    tocs = [toc_module.decode(toc_module.encode(each.toc)) for each in converted]
    devices = [directory / f"device{index}" for index in range(len(tocs))]
    for each, device in zip(converted, devices, strict=True):
        device.write_bytes(device_bytes(each, layout))
    bootstrap = directory / "bootstrap"
    bootstrap.write_bytes(build_bootstrap(tocs))
    return ImageFiles(tocs, devices, bootstrap)


def build_bootstrap(tocs: Sequence[Toc]) -> bytearray:
    return build(merge([each.tree for each in tocs]), [each.chunks.device_size for each in tocs])


def layer_tree(entries: Sequence[Entry], prefix: bytes = b"") -> Tree:
    """The tree of a layer of these members; its files' data stay where the tar stream has them."""
    return stream_tree(layer_tar(entries, prefix))


def stream_tree(stream: bytes) -> Tree:
    builder = TreeBuilder("layer")
    for member in walk(FileSource(io.BytesIO(stream))):
        builder.add(member, member.data_offset, member.sparse)
    return builder.finish(len(stream))


def inode_paths(tree: Tree | ImageTree) -> dict[bytes, int]:
    """Each path of a tree and its inode, or WHITEOUT."""
    paths: dict[bytes, int] = {b"": 0}
    directories = {0: b""}
    names, row = list(tree.names), 0
    kinds = tree.inodes.mode & 0o170000
    for directory, count in zip(
        (kinds == stat.S_IFDIR).nonzero()[0].tolist(), tree.counts.tolist(), strict=True
    ):
        for name, inode in zip(
            names[row : row + count], tree.entries[row : row + count].tolist(), strict=True
        ):
            path = join(directories[directory], name)
            paths[path] = inode
            if inode != WHITEOUT and kinds[inode] == stat.S_IFDIR:
                directories[inode] = path
        row += count
    return paths
