"""Results as one page to look at: no scripts, nothing loaded from anywhere, by day and by night, small and large."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lazyfs.bench.figures import phases, spread
from lazyfs.bench.pictures import bars, bytes_over_time, links_beside, requests_of, what_was_read
from lazyfs.bench.results import Results
from lazyfs.bench.starts import Start
from lazyfs.bench.text import conditions, ratios
from lazyfs.draw.svg import byte_words, escape
from lazyfs.errors import NodeError

WIDE, NARROW = 960, 330
"""Pixels that pictures are drawn for; each is there twice, and the style shows the one that fits."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --muted: #5b6472; --pale: #dfe3e8; --paper: #ffffff;
  --failed: #b23a00;
  --blue: #0072b2; --orange: #e69f00; --green: #009e73; --vermilion: #d55e00; --sky: #56b4e9; --purple: #cc79a7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --muted: #a3acb9; --pale: #3b4452; --paper: #14181f;
  --failed: #ff9b66;
  --blue: #4aa3df; --orange: #f0b429; --green: #2fc79a; --vermilion: #ff8a4c; --sky: #8fd0f5; --purple: #e29cc3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 16px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.4em 0; }
h2 { font-size: 1.3rem; margin: 2em 0 0.4em; border-top: 1px solid var(--pale);
  padding-top: 0.8em; } h3 { font-size: 1.05rem; margin: 1.6em 0 0.3em; }
.about { color: var(--muted); font-size: 0.9rem; } .failed { color: var(--failed); }
svg { display: block; width: 100%; height: auto; } .narrow { display: none; }
@media (max-width: 640px) { .wide { display: none; } .narrow { display: block; } }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 3px 10px 3px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--pale); }
th:first-child, td:first-child { text-align: left; } details { margin: 0.6em 0; } summary { cursor: pointer; }
"""

Draw = Callable[[int], str]


def write_page(results: Results, file: Path, first: str = "") -> None:
    """`first` is HTML that stands before the starts."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(results, first))
    except OSError as error:
        raise NodeError(f"cannot write the report to {file}: {error.strerror}") from error


def page(results: Results, first: str = "") -> str:
    body = first + "\n".join(_body(results))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Starts of containers</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(results: Results) -> Iterator[str]:
    yield "<h1>Starts of containers, from a name to ready</h1>"
    yield f'<p class="about">{escape(conditions(results))}</p>'
    for proof in results.links:
        words = f"{proof.link}: {proof.rate:.1%} of its rate, {proof.round_trip:.1%} of its round trip"
        yield f'<p class="about">link {escape(words)}</p>'
    for failure in results.failures:
        yield f'<p class="failed">failed: {escape(failure)}</p>'
    for image in results.image_names:
        yield f"<h2>{escape(image)}</h2>"
        yield _sizes(results.images.get(image, {}))
        links = [
            link for link in results.link_names if any(each.link == link for each in _of(results, image))
        ]
        if len(links) > 1:
            yield "<h3>Time to ready, by link</h3>"
            yield _picture(lambda width, image=image: links_beside(results, image, width))  # type: ignore[misc]
        for link in links:
            yield from _link(results, image, link)


def _of(results: Results, image: str) -> list[Start]:
    return [each for each in results.starts if each.image == image]


def _sizes(about: Mapping[str, object]) -> str:
    sizes = about.get("bytes")
    words = [f"{about.get('layers')} layers"]
    if isinstance(sizes, dict):
        words += [f"{name} {byte_words(size)}" for name, size in sizes.items()]
    return f'<p class="about">{escape(", ".join(words))}</p>'


def _link(results: Results, image: str, link: str) -> Iterator[str]:
    ways = [way for way in results.way_names if results.of(image, link, way)]
    yield f"<h3>{escape(link)}</h3>"
    yield _picture(lambda width: bars(results, image, link, ways, width))
    told = "".join(f"<li>{escape(each.removeprefix('- '))}</li>" for each in ratios(results, image, link))
    if told:
        yield f"<ul>{told}</ul>"
    yield _table([(way, results.of(image, link, way)) for way in ways])
    traced = [way for way in ways if (found := results.trace(image, link, way)) and found.trips]
    if traced:
        yield "<h3>Bytes from the registry, over time</h3>"
        yield _picture(lambda width: bytes_over_time(results, image, link, traced, width))
    for way in traced:
        yield f"<details><summary>{escape(way)}: what was fetched when</summary>"
        yield _picture(lambda width, way=way: requests_of(results, image, link, way, width))  # type: ignore[misc]
        if way.startswith("lazyfs"):
            yield _picture(lambda width, way=way: what_was_read(results, image, link, way, width))  # type: ignore[misc]
        yield "</details>"
    yield "<details><summary>processor time and memory of each process</summary>"
    for way in ways:
        starts = sorted(results.of(image, link, way), key=lambda start: start.seconds)
        yield _uses(way, starts[(len(starts) - 1) // 2])
    yield "</details>"


def _picture(draw: Draw) -> str:
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def _table(ways: Sequence[tuple[str, list[Start]]]) -> str:
    rows = []
    for way, starts in ways:
        seconds = spread([start.seconds for start in starts])
        parts = [f"{value:.2f}" for value in phases(starts).values()]
        rows.append(
            [
                way,
                f"{seconds.median:.2f}",
                f"{seconds.low:.2f} to {seconds.high:.2f}",
                *parts,
                f"{_median(starts, lambda start: start.down) / 1e6:.1f}",
                f"{_median(starts, lambda start: start.requests):.0f}",
                f"{_median(starts, lambda start: start.device_reads):.0f}",
                f"{_median(starts, lambda start: start.cpu):.2f}",
                f"{_median(starts, lambda start: start.memory) / 1e6:.0f}",
            ]
        )
    head = ["", "to ready, s", "least to most", *phases(ways[0][1])]
    return table([*head, "MB", "requests", "reads by the kernel", "CPU, s", "memory, MB"], rows)


def _uses(way: str, start: Start) -> str:
    rows = [[use.name, str(use.processes), f"{use.cpu:.2f}", f"{use.memory / 1e6:.1f}"] for use in start.uses]
    return table([way, "processes", "CPU, s", "memory, MB"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f'<div class="table" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _median(starts: Sequence[Start], of: Callable[[Start], float]) -> float:
    return statistics.median(map(of, starts))
