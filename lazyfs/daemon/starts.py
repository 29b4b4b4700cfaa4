"""What is read ahead of the start of an image: by its launch pack, else the entry point and its libraries.

Pages that a pack brings go where the kernel will read them. Until a start is over, the kernel reads nothing ahead
itself (`mount.read_ahead`).
"""

import threading
import time
from collections.abc import Sequence
from functools import partial

from lazyfs.config import NodePaths
from lazyfs.daemon.image_finder import Found
from lazyfs.daemon.layers import Layer
from lazyfs.daemon.views import Views
from lazyfs.mount import ladder
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.hot_files import HotFiles
from lazyfs.mount.images import find_image_mounts
from lazyfs.mount.read_ahead import without_any
from lazyfs.node.entry import Entry, EntryLayer, EntryPoints
from lazyfs.node.launch import Launch, LaunchLayer, PutPages
from lazyfs.node.launches import Launches
from lazyfs.stores import Image

SETTLE_SECONDS = 20.0
"""After a launch pack has come, until the kernel reads ahead again: starts take longer than packs."""


class Starts:
    """Thread safe."""

    def __init__(
        self, paths: NodePaths, table: DeviceTable, views: Views, launches: Launches, put_pages: PutPages
    ) -> None:
        """`put_pages` gives bytes of devices to the kernel before it asks for them."""
        self._paths = paths
        self._table = table
        self._views = views
        self._launches = launches
        self._put_pages = put_pages
        self._entries = EntryPoints()
        self._noting = threading.Lock()
        self._launched: dict[str, Launch] = {}

    def close(self) -> None:
        self._entries.close()

    def bind(self, found: Found, layers: Sequence[Layer], key: str, mode: str, direct: Sequence[str]) -> None:
        """Let what the image's pack brings go to its layers; not while the image is mounted and in use.

        `direct` has a name for each layer that the kernel reads from the cache, "" for the others.
        """
        launch = found.launch
        if launch is None:
            return
        if len(layers) != len(found.image.layers) or (key and find_image_mounts(self._paths, key)):
            reason = "the image is in use, or not all of it is wanted"
            self._launches.abandon(found.image.descriptor.digest, launch, reason)
            return
        for number, layer in enumerate(layers):
            layer.device.expect(launch, number)
        hot = self._views.hot_files(key, self._put_pages) if mode == ladder.TREE else None
        bound = []
        for number, (layer, name) in enumerate(zip(layers, direct, strict=True)):
            if name:
                bound.append(LaunchLayer(layer.inode, layer.cache, lambda _: True, _page_is_read))
            else:
                bound.append(self._bound(layer, number, key, mode, hot))
        launch.bind(bound)

    def is_launched(self, digest: str, key: str) -> bool:
        """Has the image with this manifest a launch pack here, or on its way? Its mount, of that key, settles later."""
        launch = self._launches.of(digest)
        if launch is None:
            return False
        with self._noting:
            self._launched[key] = launch
        return True

    def fetch_entry(self, image: Image, key: str, layers: Sequence[Layer], command: str) -> None:
        """Fetch the entry point ahead: `command`, or "" for what the image's config says."""
        words = [command] if command else [*image.config.entrypoint, *image.config.cmd]
        if words and self._launches.enabled:
            entry = Entry(words[0], image.config.env, image.config.working_dir or "/")
            parts = [EntryLayer(each.toc.tree, each.fetcher, each.cache) for each in layers]
            self._entries.start(key, parts, entry)

    def settled(self) -> list[str]:
        """The image mounts (names below `m`) that were launched a while ago, and should read ahead as ever."""
        now = time.monotonic()
        with self._noting:
            for key, launch in list(self._launched.items()):
                if launch.finished.is_set() and now > launch.progress.ended + SETTLE_SECONDS:
                    del self._launched[key]
            launching = set(self._launched)
        names = without_any(self._paths.images)
        return [name for name in names if name.rpartition("-")[0] not in launching]

    def are_under_way(self) -> bool:
        """Is there something that will be `settled`?"""
        return bool(self._launched)

    def _bound(self, layer: Layer, number: int, key: str, mode: str, hot: HotFiles | None) -> LaunchLayer:
        """Pages go where the kernel reads them: into the device, the file that joins all of them, or each file."""
        inode, put = layer.inode, self._put_pages
        if mode == ladder.LOOP:
            inode, put = self._views.pages_of(key, number, put)
        if hot is not None:
            put = partial(_put_into_files, hot, number)
        opened = partial(self._table.wait_opened, inode)
        return LaunchLayer(inode, layer.cache, opened, put)


def _put_into_files(hot: HotFiles, layer: int, inode: int, offset: int, data: bytes) -> bool:
    """Takes pages of a layer whose files the kernel reads one by one."""
    hot.take(layer, offset, offset + len(data))
    return True


def _page_is_read(inode: int, offset: int, data: bytes) -> bool:
    """Takes pages of a layer whose file in the cache is mounted: now that they were read the kernel has them."""
    return True
