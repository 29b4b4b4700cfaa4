"""Results as Markdown: to read on a terminal, or to keep in a README."""

import statistics
from collections.abc import Iterator

from lazyfs.bench.figures import paired, phases, spread
from lazyfs.bench.results import Results
from lazyfs.bench.starts import PHASES, Start


def markdown(results: Results) -> str:
    return "\n".join(_lines(results)) + "\n"


def conditions(results: Results) -> str:
    """One line: where, with what, and how much else the machine did."""
    machine = results.machine
    load = statistics.median(start.load for start in results.starts)
    return (
        f"{machine['when']}, {machine['processor']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, "
        f"Linux {machine['kernel']}, containerd {machine['containerd']}, lazyfs {machine['lazyfs']}; "
        f"{results.runs} {'round' if results.runs == 1 else 'rounds'} in random order (seed {results.seed}), "
        "page cache and node cache cold for each start; "
        f"load average before the starts {load:.1f} (median)"
    )


def _lines(results: Results) -> Iterator[str]:
    for image in results.image_names:
        for link in results.link_names:
            if any(results.of(image, link, way) for way in results.way_names):
                yield f"### {image}, {link}"
                yield ""
                yield from _table(results, image, link)
                yield ""
                yield from ratios(results, image, link)
                yield ""
    yield conditions(results)
    for each in results.links:
        yield f"- link {each.link}: {each.rate:.1%} of its rate, {each.round_trip:.1%} of its round trip"
    for failure in results.failures:
        yield f"- failed: {failure}"


def _table(results: Results, image: str, link: str) -> Iterator[str]:
    most = max(len(results.of(image, link, way)) for way in results.way_names)
    yield f"| | to ready, s | of {most} | {' | '.join(PHASES)} | MB | requests | CPU, s | memory, MB |"
    yield "|---|" + "---|" * (6 + len(PHASES))
    for way in results.way_names:
        starts = results.of(image, link, way)
        if starts:
            yield _row(way, starts)


def _row(way: str, starts: list[Start]) -> str:
    seconds = spread([start.seconds for start in starts])
    parts = " | ".join(f"{value:.2f}" for value in phases(starts).values())
    median = statistics.median
    return (
        f"| {way} | **{seconds.median:.2f}** | {seconds.low:.2f} to {seconds.high:.2f} | {parts} "
        f"| {median(start.down for start in starts) / 1e6:.1f} | {median(start.requests for start in starts):.0f} "
        f"| {median(start.cpu for start in starts):.2f} | {median(start.memory for start in starts) / 1e6:.0f} |"
    )


def ratios(results: Results, image: str, link: str) -> Iterator[str]:
    """Of ours to each other way; a sentence that has no ratio where there is none to tell."""
    for ours in results.way_names:
        for theirs in results.way_names:
            if ours.startswith("lazyfs") and not theirs.startswith("lazyfs"):
                found = paired(results, image, link, ours, theirs)
                if found is not None:
                    yield f"- time to ready, {ours} of {theirs}'s: {found}"
