"""Images in other forms than a device for each layer: joined in one file, or as a tree (see `mount.ladder`).

    <bootstrap directory>/<key>.joined      metadata of the joined file
    <bootstrap directory>/<key>.pieces      where its data come from (`spread.Pieces`, as four rows of 64 bits)
    <bootstrap directory>/<key>.view        which forms are shown, and the TOCs of the image's layers

With these a daemon that takes over shows again what the kernel knows, under the numbers that it knows: these
come of the key. The pieces are kept, not computed again, since a joined file must not change with the program.
"""

import io
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazyfs.daemon.layers import Layer
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.formats import erofs
from lazyfs.formats.bootstrap import JOINED, build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.spread import Pieces, spread
from lazyfs.mount import ladder
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.hot_files import HotFiles
from lazyfs.mount.image_files import ImageFiles, view_base, view_of
from lazyfs.node.files import write_new
from lazyfs.node.launch import PutPages
from lazyfs.node.mosaic import PAGE, FileBytes, Mosaic, Read

if TYPE_CHECKING:
    from lazyfs.node.device import RandomAccess

log = logging.getLogger(__name__)


class Views:
    """What is shown of images besides their layers' devices. Thread safe."""

    def __init__(self, directory: Path, table: DeviceTable) -> None:
        self._directory = directory
        self._table = table
        self._lock = threading.Lock()
        self._shown: dict[str, set[str]] = {}
        self._joined: dict[int, tuple[Mosaic, FileBytes, Sequence[Layer]]] = {}
        self._trees: dict[int, tuple[Callable[[], ImageFiles], Sequence[Layer]]] = {}

    def show(self, mode: str, key: str, layers: Sequence[Layer], *, again: bool = False) -> str:
        """Show the image for a mount of this mode; returns its name beside the devices, "" where these suffice.

        Raises what `merge` raises; where it is shown `again`, that was found to be none, and is left for the first who
        asks for the tree.
        """
        name = {ladder.LOOP: f"{key}.joined", ladder.TREE: key}.get(mode, "")
        if not name:
            return ""
        with self._lock:
            shown = self._shown.setdefault(key, set())
            if mode in shown:
                return name
            if mode == ladder.LOOP:
                self._show_joined(name, key, layers)
            else:
                self._show_tree(name, key, layers, again)
            shown.add(mode)
            record = {"modes": sorted(shown), "layers": [layer.toc_digest for layer in layers]}
            write_new(self._directory / f"{key}.view", json.dumps(record).encode())
        return name

    def restore(self, layers: Mapping[str, Layer]) -> None:
        """Show again what an earlier daemon showed, as far as its layers (by their TOCs) are here."""
        for path in self._directory.glob("*.view"):
            try:
                record = json.loads(path.read_bytes())
                if not set(record["layers"]) <= layers.keys():
                    continue
                of_image = [layers[digest] for digest in record["layers"]]
                for mode in record["modes"]:
                    self.show(mode, path.stem, of_image, again=True)
            except (LazyfsError, OSError, ValueError, KeyError, TypeError) as error:
                log.error("%s cannot be shown again: %s", path, error)

    def pages_of(self, key: str, layer: int, put_pages: PutPages) -> tuple[int, PutPages]:
        """The number of an image's joined file, and how to give it pages of a layer (of a device of that layer)."""
        base = view_base(key)
        mosaic, _, layers = self._joined[base]
        # Of the caches, not the devices: nobody is going to read what comes next. Metadata share no page with data.
        reads: list[Read] = [lambda *_: None, *(each.cache.read for each in layers)]

        def put(inode: int, offset: int, data: bytes) -> bool:
            for start, end in mosaic.places(layer + 1, offset, len(data)):
                # A page at the edge whose other bytes are not here is left out.
                for low, high in product((start, start + PAGE), (end, end - PAGE)):
                    found = mosaic.gather(low, high - low, reads) if low < high else None
                    if found is not None:
                        if not put_pages(inode, low, found):
                            return False
                        break
            return True

        return base, put

    def hot_files(self, key: str, put_pages: PutPages) -> HotFiles:
        """What gives the kernel pages of an image's tree from now on, when its files are opened."""
        base = view_base(key)
        files, layers = self._trees[base]
        hot = HotFiles(files, [each.cache for each in layers], put_pages)
        self._table.watch_opens(base, hot.opened)
        return hot

    def forget(self, gone: Set[str]) -> None:
        """Show no more what layers that go (by their TOCs) are part of; nobody has it mounted."""
        with self._lock:
            for path in self._directory.glob("*.view"):
                layers = self._layers_of(view_base(path.stem))
                if not gone.isdisjoint(layer.toc_digest for layer in layers):
                    self._forget(path.stem)
                    path.unlink(missing_ok=True)

    def _layers_of(self, base: int) -> Sequence[Layer]:
        if base in self._joined:
            return self._joined[base][2]
        return self._trees[base][1] if base in self._trees else ()

    def _forget(self, key: str) -> None:
        base = view_base(key)
        self._shown.pop(key, None)
        if base in self._joined:
            self._table.remove(f"{key}.joined")
            self._joined.pop(base)[1].close()
        if base in self._trees:
            self._table.remove_tree(base)
            del self._trees[base]

    def close(self) -> None:
        """When nothing is served any more."""
        for _, file, _ in self._joined.values():
            file.close()

    def origins(self, number: int, offset: int, size: int) -> list[tuple[Layer, int, int]]:
        """Which bytes of which layers' devices a read of a joined file, or of a file of a tree, is of."""
        base = view_of(number)
        joined, tree = self._joined.get(base), self._trees.get(base)
        if number == base and joined is not None:
            mosaic, _, layers = joined
            runs = [run for run in mosaic.runs(offset, size) if run.source > 0]
            return [(layers[run.source - 1], run.start, run.length) for run in runs]
        if tree is not None:
            files, layers = tree
            return [
                (layers[layer], start, length)
                for layer, start, length in files().origins(number, offset, size)
            ]
        return []

    def _show_joined(self, name: str, key: str, layers: Sequence[Layer]) -> None:
        metadata, pieces = self._directory / name, self._directory / f"{key}.pieces"
        if not (metadata.exists() and pieces.exists()):
            laid_out = spread(merge([layer.toc.tree for layer in layers]))
            parts = laid_out.pieces
            columns = io.BytesIO()
            np.save(columns, np.stack((parts.at, parts.layer, parts.start, parts.length)), allow_pickle=False)
            write_new(pieces, columns.getvalue())
            write_new(metadata, build(laid_out.tree, [laid_out.size], JOINED))
        file = FileBytes(metadata)
        mosaic = _joined(file, pieces, [layer.device.patient for layer in layers])
        self._table.add(view_base(key), name, mosaic)
        self._joined[view_base(key)] = mosaic, file, layers

    def _show_tree(self, name: str, key: str, layers: Sequence[Layer], again: bool) -> None:
        base = view_base(key)

        @cache
        def files() -> ImageFiles:
            tree = merge([layer.toc.tree for layer in layers])
            return ImageFiles(base, tree, [layer.device.patient for layer in layers])

        if not again:
            # In the loop that answers the kernel an error would end that, and a large image would keep all waiting.
            files()
        self._table.add_tree(base, name, files)
        self._trees[base] = files, layers


def _joined(metadata: FileBytes, path: Path, devices: "Sequence[RandomAccess]") -> Mosaic:
    """The joined file: what `path` says of the devices, behind the metadata."""
    try:
        at, layer, start, length = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NodeError(f"{path}: {error}", hint="remove it when nothing is mounted") from error
    base = metadata.size
    first = Pieces(*(np.array([value], np.int64) for value in (0, 0, 0, base)))
    header = np.frombuffer(
        metadata.peek(erofs.SUPERBLOCK_OFFSET, erofs.SUPERBLOCK.itemsize), erofs.SUPERBLOCK
    )
    return Mosaic(
        int(header["blocks"][0]) * JOINED.block,
        Pieces(
            np.concatenate((first.at, at + base)),
            np.concatenate((first.layer, layer + 1)),
            np.concatenate((first.start, start)),
            np.concatenate((first.length, length)),
        ),
        [metadata, *devices],
    )
