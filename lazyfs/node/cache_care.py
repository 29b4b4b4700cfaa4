"""What people do with a node's cache: look at it, prune it, pin images, verify it. With a daemon or without one."""

import logging
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, NotFoundError, UsageError
from lazyfs.formats.strict_json import plain
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_directory import layer_size
from lazyfs.node.cache_eviction import oldest, unused_since
from lazyfs.node.cache_store import NodeCache
from lazyfs.node.seen import SeenImage, SeenImages, SeenLayer

log = logging.getLogger(__name__)
_LAYER = re.compile(r"[0-9a-f]{64}")

DAY = 86400.0


class CacheCare:
    """Answers are JSON-able; sizes are bytes, times are seconds since 1970."""

    def __init__(
        self,
        paths: NodePaths,
        cache: NodeCache,
        seen: SeenImages,
        mounted: Callable[[], Iterable[str]],
        pruned: Callable[[Iterable[str]], None],
    ) -> None:
        """`mounted` names the bootstraps that are mounted; `pruned` is told which layers are about to be."""
        self._paths = paths
        self._cache = cache
        self._seen = seen
        self._mounted = mounted
        self._pruned = pruned
        cache.pinned = seen.pinned_layers()

    def note(self, image: SeenImage) -> None:
        """An image was opened."""
        self._seen.note(image)
        self._cache.pinned = self._seen.pinned_layers()

    def show(self) -> dict[str, Any]:
        """`images` (the last opened first), `layers`, `directories` and counters."""
        self._cache.release_holds()
        for directory in self._cache.directories:
            directory.measure()
        seen = self._seen.all()
        users: dict[str, int] = {}
        for image in seen:
            for toc in image.tocs:
                users[toc] = users.get(toc, 0) + 1
        known = {layer.toc: layer for image in seen for layer in image.layers}
        names = dict.fromkeys([*known, *self._cache.names()])
        layers = {name: self._layer(name, known.get(name), users.get(name, 0)) for name in names}
        return {
            "images": [_image(image, layers) for image in seen],
            "layers": list(layers.values()),
            **self._cache.status(),
        }

    def prune(
        self,
        reference: str | None = None,
        unused_for: float | None = None,
        size: int | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Drop an image, what was not read for so many seconds, or the oldest until the cache has so many bytes.

        Pinned images stay, and so does what the kernel has mounted. Returns `chunks`, `bytes` (about),
        `layers`, and `mounted`: those of which nothing may go since the kernel reads them.
        Raises NotFoundError when the image was never opened here, BusyError when it is pinned.
        """
        if [reference, unused_for, size].count(None) != 2:
            raise UsageError("one of an image, an age and a size says what to prune")
        free = [name for name in self._cache.names() if name not in self._cache.pinned]
        if reference is not None:
            names, rule = self._only_of(reference), partial(unused_since, moment=float("inf"))
        elif unused_for is not None:
            names, rule = free, partial(unused_since, moment=time.time() - unused_for)
        else:
            used = sum(directory.measure() for directory in self._cache.directories)
            names, rule = free, partial(oldest, need=used - (size or 0))
        chosen = self._cache.choose(names, rule)
        freed = sum(int(cache.sizes()[indexes].sum()) for cache, indexes in self._caches(chosen))
        if not dry_run:
            self._pruned(chosen if reference is None else names)
            self._cache.drop(chosen)
            if reference is not None and not self._is_mounted(self._seen.find(reference)):
                self._forget(self._seen.find(reference))
        return {
            "chunks": sum(map(len, chosen.values())),
            "bytes": freed,
            "layers": list(chosen),
            "mounted": [name for name, cache in self._cache.each(names) if cache.held],
            "dry_run": dry_run,
        }

    def pin(self, reference: str, pinned: bool) -> dict[str, Any]:
        """Say whether an image must stay. NotFoundError when it was never opened here."""
        image = self._seen.pin(reference, pinned)
        self._cache.pinned = self._seen.pinned_layers()
        return {"reference": image.reference, "digest": image.digest, "pinned": image.pinned}

    def verify(self, name: str) -> dict[str, Any]:
        """Compare what the disk holds of a layer with its digests; what is damaged is dropped, to be fetched again.

        Returns `layer`, `bytes` that were compared, `damaged`, the numbers of the damaged chunks, and whether the
        kernel may have it `mounted_directly`: nothing of it is dropped then, but the next fetch writes over it.
        """
        cache = self._cache.layer(name) if _LAYER.fullmatch(name) else None
        if cache is None:
            raise NotFoundError(
                f"no layer {plain(name[:64])} is in the cache", hint="`lazyfs cache` lists them"
            )
        compared, damaged = 0, []
        for index in range(len(cache.chunks)):
            size = cache.verify(index)
            if size is None:
                damaged.append(index)
            else:
                compared += size
        return {"layer": name, "bytes": compared, "damaged": damaged, "mounted_directly": cache.held}

    def forget_old(self, days: float) -> None:
        """Remove images that nobody has opened for so long: records, TOCs, bootstraps, and layers of no other image."""
        oldest_kept = time.time() - days * DAY
        for image in self._seen.all():
            if days and image.opened < oldest_kept and not image.pinned and not self._is_mounted(image):
                log.info("nobody has opened %s for %g days", image.reference, days)
                names = self._only_of(image.reference)
                self._cache.drop(self._cache.choose(names, partial(unused_since, moment=oldest_kept)))
                self._forget(image)

    def _only_of(self, reference: str) -> list[str]:
        """Layers that no other image has."""
        image = self._seen.find(reference)
        if image.pinned:
            raise BusyError(f"{image.reference} is pinned", hint=f"lazyfs cache unpin {image.reference}")
        others = [other.tocs for other in self._seen.all() if other.reference != reference]
        return sorted(image.tocs.difference(*others))

    def _forget(self, image: SeenImage) -> None:
        for name in self._only_of(image.reference):
            if not self._cache.is_open(name):
                with suppress(OSError):
                    (self._paths.tocs / name).unlink()
        for path in self._paths.bootstraps.glob("*/*"):
            if path.name in image.keys:
                with suppress(OSError):
                    path.unlink()
        self._seen.forget(image.reference)

    def _is_mounted(self, image: SeenImage) -> bool:
        return not set(image.keys).isdisjoint(self._mounted())

    def _caches(self, chosen: dict[str, list[int]]) -> list[tuple[LayerCache, list[int]]]:
        found = [(self._cache.layer(name), indexes) for name, indexes in chosen.items()]
        return [(cache, indexes) for cache, indexes in found if cache is not None]

    def _layer(self, name: str, seen: SeenLayer | None, images: int) -> dict[str, Any]:
        cache = self._cache.layer(name)
        size = seen.bytes if seen is not None else 0
        return {
            "toc": name,
            "blob": seen.blob if seen is not None else "",
            "bytes": cache.chunks.device_size if cache is not None else size,
            "present_bytes": cache.present_bytes() if cache is not None else 0,
            "disk_bytes": layer_size(cache.directory) if cache is not None else 0,
            "directory": str(cache.directory.parent) if cache is not None else "",
            "images": images,
            "pinned": name in self._cache.pinned,
            "mounted_directly": cache is not None and cache.held,
            "last_used": int(cache.used.max()) if cache is not None and len(cache.used) else 0,
        }


def _image(image: SeenImage, layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    own = [layers[toc] for toc in dict.fromkeys(layer.toc for layer in image.layers)]
    return {
        "reference": image.reference,
        "digest": image.digest,
        "opened": int(image.opened),
        "last_used": max([int(image.opened), *(layer["last_used"] for layer in own)]),
        "pinned": image.pinned,
        "bytes": sum(layer.bytes for layer in image.layers),
        "present_bytes": sum(layer["present_bytes"] for layer in own),
        "shared_bytes": sum(layer["present_bytes"] for layer in own if layer["images"] > 1),
        "layers": [layer["toc"] for layer in own],
    }


def open_care(
    paths: NodePaths,
    cache: NodeCache,
    mounted: Callable[[], Iterable[str]],
    pruned: Callable[[Iterable[str]], None] = lambda names: None,
) -> CacheCare:
    return CacheCare(paths, cache, SeenImages(Path(paths.seen)), mounted, pruned)
