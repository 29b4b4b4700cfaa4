"""A node in this process, without FUSE; and damage to the image that it reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.daemon.node import Node
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache_settings import CacheSettings
from lazyfs.stores import Image, LayoutStore, load_image, parse_reference

PATIENCE = 60.0

MakeNode = Callable[[], "OpenNode"]


class OpenNode:
    """A node whose devices are read here and not by FUSE."""

    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        self.table = DeviceTable()
        self.node = Node(self.paths, self.table, CacheSettings())
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self.node.close()
        self._closed = True

    def open(self, layout: Path, tag: str = "lazy") -> dict[str, Any]:
        return self.node.open_image(f"oci:{layout}:{tag}", Path("/"))

    def devices(self, image: dict[str, Any]) -> list[bytes]:
        return [self._read(inode) for inode in image["layers"]]

    def wait_kept(self) -> None:
        """Who reads has its bytes a moment before the cache has them."""
        for layer in self.node._layers.all():
            layer.fetcher.wait_kept(PATIENCE)

    def _read(self, inode: int) -> bytes:
        device = self.table.numbered(inode)
        assert device is not None
        return device.content.request(0, device.content.size).result(PATIENCE)


def blobs(layout: Path) -> list[Path]:
    """The blobs of the converted layers, lowest first."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:lazy"))
    return [layout / "blobs" / layer.digest.replace(":", "/") for layer, _ in image.layers]


def damage(blob: Path) -> bytes:
    """Overwrite the whole blob; its bytes as they were."""
    right = blob.read_bytes()
    blob.write_bytes(bytes(byte ^ 0xFF for byte in right))
    return right


def retag(layout: Path, tag: str, change: Callable[[Image], Image]) -> None:
    """Another image in the layout, made from the lazy one."""
    with LayoutStore(layout) as store:
        image = change(load_image(store, parse_reference(f"oci:{layout}:lazy")))
        config = store.put_document(image.config.to_bytes(), image.manifest.config.media_type)
        manifest = replace(image.manifest, config=config)
        store.put_tag(tag, store.put_document(manifest.to_bytes(), OCI_MANIFEST))
