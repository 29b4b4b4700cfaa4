"""The report in a real browser: it draws, complains of nothing, asks nobody, and fits small and large screens."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.parts import PARTS
from benchmarks.report import Measured, Report, Row
from benchmarks.whole import write_whole
from lazyfs.bench.page import page
from lazyfs.bench.pictures import bytes_over_time, cumulative
from lazyfs.draw.svg import THEME

from .browser import PROGRAM, Page, browser
from .samples import made_up, trace

needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no chromium here: `make test-browser` installs it"
)
SIZES = [(360, 740), (768, 1024), (1600, 900)]
ODD_NAME = "<script>alert('x')</script> & \"quotes\" of " + "a-very-long-name-without-any-blank-" * 3
SHOWN_PICTURES = """
[...document.querySelectorAll("svg")].map(each => each.getBoundingClientRect()).filter(each => each.width > 0)
    .map(each => [each.left, each.right, each.height])
"""
TOO_SMALL = """
[...document.querySelectorAll("svg text")].filter(each => { const box = each.getBoundingClientRect();
    return box.width > 0 && box.height < 9; }).length
"""
OUTSIDE = """
[...document.querySelectorAll("svg text")].filter(each => { const box = each.getBoundingClientRect(),
    around = each.closest("svg").getBoundingClientRect();
    return box.width > 0 && (box.left < around.left - 1 || box.right > around.right + 1);
}).map(each => each.textContent)
"""
CONTRAST = """
(() => { const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(each => each / 255).map(
        each => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("p, li, td, svg text")].map(each => { const style = getComputedStyle(each),
    ink = light(each.closest("svg") ? style.fill : style.color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); }).reduce((a, b) => Math.min(a, b)); })()
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    directory = tmp_path_factory.mktemp("browser")
    with browser(directory / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of `make bench`: goals and figures before the starts."""
    directory = tmp_path_factory.mktemp("report")
    results = made_up(images=("app:1.0", ODD_NAME))
    results.failures.append("link 1gbit,2ms is off by 9%: the machine is too busy, or too slow for it")
    results.write(directory / "starts.json")
    rows = [
        Row("numpy, 1gbit,2ms: lazyfs-pack", 0.4, "s", 0.3),
        Row(ODD_NAME, 1e9, "MB/s", 2e9, at_least=True),
    ]
    parts = {
        "starts": Measured("2026-01-01 00:00", 600.0, 0.5, "", rows),
        "scale": Measured("2026-01-01 00:10", 1.0, 0.5, f"FailedError: {ODD_NAME}", []),
    }
    write_whole(Report(parts), PARTS, directory)
    return directory / "report.html"


@needs_browser
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True])
def test_reads_well(shown: Page, report: Path, size: tuple[int, int], dark: bool) -> None:
    shown.complaints.clear()
    shown.requests.clear()
    shown.show(report, *size, dark=dark)
    shown.evaluate('document.querySelectorAll("details").forEach(each => each.open = true)')
    assert shown.evaluate("document.documentElement.scrollWidth") <= size[0]
    pictures = shown.evaluate(SHOWN_PICTURES)
    # Of each image: by link, and for both links bars, bytes over time, requests of three ways and reads of two.
    assert len(pictures) == 2 * (1 + 2 * (1 + 1 + 3 + 2))
    assert all(left >= 0 and right <= size[0] and height > 80 for left, right, height in pictures)
    assert shown.evaluate(TOO_SMALL) == 0
    assert shown.evaluate(OUTSIDE) == []
    assert shown.evaluate(CONTRAST) >= 4.5
    assert shown.complaints == []
    assert shown.requests == [report.as_uri()]


@needs_browser
def test_night_is_dark(shown: Page, report: Path) -> None:
    paper = []
    for dark in (False, True):
        shown.show(report, 800, 600, dark=dark)
        paper.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert paper == ["rgb(255, 255, 255)", "rgb(20, 24, 31)"]


def test_a_page_stands_alone() -> None:
    text = page(made_up(images=(ODD_NAME,)))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg")
    assert not any(f'"{colour}"' in text for colour in THEME)


def test_what_is_ready_after_its_last_byte_is_within_the_picture() -> None:
    results = made_up(factor=20)
    drawn = bytes_over_time(results, "app:1.0", "1gbit,2ms", ["lazyfs", "overlayfs"], 960)
    places = [float(each) for each in re.findall(r'<line x1="([0-9.]+)"', drawn)]
    assert max(places) <= 960


def test_bytes_over_time_end_with_all_of_them() -> None:
    trips = trace("lazyfs").trips
    points = cumulative(trips)
    assert points[0][1] == 0
    assert points[-1][1] == sum(trip.size for trip in trips)
    assert [y for _, y in points] == sorted(y for _, y in points)


def test_a_request_that_took_no_time_is_drawn() -> None:
    first, *others = trace("lazyfs").trips
    trips = [replace(first, ended=first.began), *others]
    points = cumulative(trips)
    assert points[-1][1] == sum(trip.size for trip in trips)
    assert [y for _, y in points] == sorted(y for _, y in points)
