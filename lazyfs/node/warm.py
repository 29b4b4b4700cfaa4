"""Fetching what will be wanted before anybody reads it, a few seconds at a time: whoever waits sees it go on."""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from lazyfs.node.cache import LayerCache
from lazyfs.node.device import RandomAccess

SPAN = 4 << 20
AHEAD = 4
"""Spans that are on their way at once."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a device that is to be fetched; `number` rises along the way."""

    device: RandomAccess
    offset: int
    length: int
    number: int


def missing_spans(layers: Iterable[tuple[RandomAccess, LayerCache]]) -> list[Span]:
    """All that is not here of these layers, in whole chunks, neighbours joined. A span's number is that of its
    last chunk, counted over all layers: it means the same when some of them have been fetched."""
    spans: list[Span] = []
    number = 0
    for device, cache in layers:
        chunks, first = cache.chunks, len(spans)
        for index in range(len(chunks)):
            number += 1
            if not cache.missing_units(index):
                continue
            start, length = int(chunks.start[index]), chunks.length(index)
            last = spans[-1] if len(spans) > first else None
            if last is not None and last.offset + last.length == start and last.length + length <= SPAN:
                spans[-1] = Span(device, last.offset, last.length + length, number)
            else:
                spans.append(Span(device, start, length, number))
    return spans


def warm(spans: Iterable[Span], after: int, seconds: float) -> int | None:
    """Fetch the spans numbered above `after`, beginning no more of them when so many seconds are over.

    Returns where to go on, None when that was all. Raises the LazyfsError of a span that cannot be had.
    """
    deadline = time.monotonic() + seconds
    flying: deque[Future[bytes]] = deque()
    reached: int | None = None
    for span in spans:
        if span.number <= after:
            continue
        if time.monotonic() > deadline and reached is not None:
            break
        if len(flying) == AHEAD:
            flying.popleft().result()
        flying.append(span.device.request(span.offset, span.length))
        reached = span.number
    else:
        reached = None
    for future in flying:
        future.result()
    return reached
