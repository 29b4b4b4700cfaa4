"""Caches of a node, one after another on directories that stay, and what tests ask of them."""

from pathlib import Path

from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_settings import Limit
from lazyfs.node.cache_store import NodeCache

from .samples import BOOT, Layer, has

PLENTY = Limit(1 << 40)


def name(number: int) -> str:
    return f"{number:064x}"


def fill(cache: LayerCache, layer: Layer) -> None:
    for index in range(len(layer.chunks)):
        cache.put(index, layer.plain(index))


def present(cache: LayerCache) -> list[bool]:
    return [has(cache, index) for index in range(len(cache.chunks))]


class Nodes:
    """Opens the cache of one node after another, on directories that stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[str] = []
        self.opened: list[NodeCache] = []

    def __call__(self, *limits: Limit, weights: tuple[float, ...] = (), boot: bytes = BOOT) -> NodeCache:
        directories = []
        for number, limit in enumerate(limits or (PLENTY,)):
            path = self.directory / f"disk{number}"
            path.mkdir(exist_ok=True)
            directories.append(CacheDirectory(path, limit, weights[number] if weights else 1.0))
        self.opened.append(NodeCache(directories, boot, self.reports.append))
        return self.opened[-1]
