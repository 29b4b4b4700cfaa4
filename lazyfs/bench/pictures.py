"""What the pictures of a report show: results in, drawings out."""

from collections.abc import Sequence

from lazyfs.bench.figures import phases, spread
from lazyfs.bench.link import Trip
from lazyfs.bench.results import Results
from lazyfs.bench.starts import PHASES, Trace
from lazyfs.draw import lines, stacks, timeline, waterfall
from lazyfs.draw.svg import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, byte_words

_PHASES = tuple(zip((SKY, BLUE, ORANGE, PURPLE, GREEN), PHASES, strict=True))
_KNOWN = {
    "lazyfs": BLUE,
    "lazyfs-pack": GREEN,
    "overlayfs": VERMILION,
    "overlayfs-lazy": ORANGE,
    "local": GREY,
}
_OTHERS = (PURPLE, SKY)
_KINDS = ((GREY, "documents"), (BLUE, "layers"))


def bars(results: Results, image: str, link: str, ways: Sequence[str], width: int) -> str:
    """A bar of its phases for each way."""
    found = []
    for way in ways:
        starts = results.of(image, link, way)
        seconds = spread([start.seconds for start in starts])
        parts = phases(starts)
        # Medians of phases need not add up to the median of the whole, which is what the bar shows.
        scale = seconds.median / (sum(parts.values()) or 1.0)
        words = f"{seconds.median:.2f} s ({seconds.low:.2f} to {seconds.high:.2f})"
        found.append(
            stacks.Bar(way, [each * scale for each in parts.values()], seconds.low, seconds.high, words)
        )
    return stacks.draw(f"{image}, {link}: time to ready", _PHASES, found, width=width, themed=True)


def links_beside(results: Results, image: str, width: int) -> str:
    """A line for each way, from link to link; the quickest link first."""
    starts = [each for each in results.starts if each.image == image]
    names = list(dict.fromkeys(each.link for each in starts))
    slowest = {link: max(each.seconds for each in starts if each.link == link) for link in names}
    names.sort(key=lambda link: slowest[link])
    drawn = []
    for way in results.way_names:
        points, spreads = [], []
        for place, link in enumerate(names):
            mine = results.of(image, link, way)
            if mine:
                seconds = spread([start.seconds for start in mine])
                points.append((float(place), seconds.median))
                spreads.append((float(place), seconds.low, seconds.high))
        if points:
            drawn.append(lines.Line(way, colour_of(results, way), points, spreads))
    places = [(float(place), link) for place, link in enumerate(names)]
    title = f"{image}: time to ready by link"
    return lines.draw(title, drawn, lambda value: f"{value:g} s", x_ticks=places, width=width, themed=True)


def bytes_over_time(results: Results, image: str, link: str, ways: Sequence[str], width: int) -> str:
    drawn = []
    for way in ways:
        trace = results.trace(image, link, way)
        if trace is not None and trace.trips:
            ready = _ready(results, image, link, way)
            name = f"{way}, ready after {ready:.2f} s"
            points = cumulative(trace.trips)
            points.append((max(ready, points[-1][0]), points[-1][1]))
            drawn.append(lines.Line(name, colour_of(results, way), points, end=ready))
    title = f"{image}, {link}: bytes from the registry"
    return lines.draw(title, drawn, byte_words, x_ticks=None, width=width, themed=True)


def requests_of(results: Results, image: str, link: str, way: str, width: int) -> str:
    trace = results.trace(image, link, way)
    trips = trace.trips if trace is not None else []
    drawn = [
        waterfall.Request(trip.began, trip.ended, trip.size, _KINDS["/blobs/" in trip.path][0])
        for trip in trips
    ]
    ready = _ready(results, image, link, way)
    title = f"{image}, {link}, {way}: requests"
    return waterfall.draw(title, drawn, _KINDS, ready, width=width, themed=True)


def what_was_read(results: Results, image: str, link: str, way: str, width: int) -> str:
    """As `lazyfs run --timeline` draws it."""
    trace = results.trace(image, link, way) or Trace([], [], [], {})
    recorded = {"fetched": trace.fetched, "reads": trace.reads}
    touched = {each["layer"] for each in (*trace.fetched, *trace.reads)}
    sizes = {layer: size for layer, size in trace.sizes.items() if layer in touched}
    ready = _ready(results, image, link, way)
    return timeline.draw(recorded, sizes, 0.0, ready, "fetched and read, by layer", width=width, themed=True)


def cumulative(trips: Sequence[Trip]) -> list[tuple[float, float]]:
    """Bytes that had come at the end of each request, and at its begin; within one they come evenly."""
    moments = sorted({0.0, *(trip.began for trip in trips), *(trip.ended for trip in trips)})
    return [(moment, sum(_share(trip, moment) * trip.size for trip in trips)) for moment in moments]


def _share(trip: Trip, moment: float) -> float:
    if moment <= trip.began:
        return 0.0
    return min(1.0, (moment - trip.began) / (trip.ended - trip.began)) if trip.ended > trip.began else 1.0


def colour_of(results: Results, way: str) -> str:
    if way in _KNOWN:
        return _KNOWN[way]
    others = [name for name in results.way_names if name not in _KNOWN]
    return _OTHERS[others.index(way) % len(_OTHERS)]


def _ready(results: Results, image: str, link: str, way: str) -> float:
    """Of the start that was traced: the one of median time."""
    seconds = sorted(start.seconds for start in results.of(image, link, way))
    return seconds[(len(seconds) - 1) // 2]
