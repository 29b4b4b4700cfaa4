"""Places in the layers of an image that is launched: units of chunks, and the whole pages that they make.

A place is (layer, chunk, unit), the unit counted from the chunk's first.
"""

from collections.abc import Sequence

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.node.cache import LayerCache

PAGE = 4096


def missing(layer: int, cache: LayerCache, offset: int, length: int) -> list[tuple[int, int, int]]:
    """(layer, chunk, unit) of the units of a range that are not in the cache."""
    chunks = cache.chunks
    found = []
    for chunk in chunks.covering(offset, length):
        start = int(chunks.start[chunk])
        first = max(0, offset - start) // UNIT_SIZE
        last = (min(offset + length, int(chunks.start[chunk + 1])) - 1 - start) // UNIT_SIZE
        found += [(layer, chunk, unit) for unit in cache.missing_units(chunk) if first <= unit <= last]
    return found


def by_chunk(places: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, list[int]]]:
    """(layer, chunk, units): what stands together of one chunk."""
    groups: list[tuple[int, int, list[int]]] = []
    for layer, chunk, unit in places:
        if groups and groups[-1][:2] == (layer, chunk):
            groups[-1][2].append(unit)
        else:
            groups.append((layer, chunk, [unit]))
    return groups


def unit_length(table: ChunkTable, chunk: int, unit: int) -> int:
    return min(UNIT_SIZE, table.length(chunk) - unit * UNIT_SIZE)


def page_ranges(
    places: Sequence[tuple[int, int, int]], caches: Sequence[LayerCache]
) -> list[tuple[int, int, int]]:
    """(layer, start, end) of the whole pages that lie in these units and in what else is in the caches.

    A page that reaches into a unit which is not there is left out: the unit that comes later brings it.
    """
    together: list[tuple[int, int, int]] = []
    for layer, chunk, units in by_chunk(places):
        table = caches[layer].chunks
        for unit in units:
            start = int(table.start[chunk]) + unit * UNIT_SIZE
            end = start + unit_length(table, chunk, unit)
            if together and together[-1][0] == layer and together[-1][2] == start:
                together[-1] = (layer, together[-1][1], end)
            else:
                together.append((layer, start, end))
    return [found for each in together if (found := _whole_pages(*each, caches[each[0]]))]


def _whole_pages(layer: int, start: int, end: int, cache: LayerCache) -> tuple[int, int, int] | None:
    low, high = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, cache.chunks.device_size)
    if low < start and cache.read(low, start - low) is None:
        low += PAGE
    if high > end and cache.read(end, high - end) is None:
        high -= PAGE
    return (layer, low, high) if low < high else None
