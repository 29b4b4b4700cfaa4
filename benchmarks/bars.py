"""The bars of the project, in one table: what was asked for, what the best rival takes, what lazyfs takes.

Figures are those of a report of `make bench`. Of what it does not measure the table has the figure of another
measurement, which `docs/design.md` tells of, and says so. What rivals took, where they are not measured here, was
measured on the same kind of machine before lazyfs was written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report import Report, Row

MINUTES = 25.0
HEAD = ("what", "goal", "best rival", "lazyfs", "")


@dataclass(frozen=True, slots=True)
class Bar:
    """`row` names the measured row. `rivals` name the rows of rivals, of which the least counts; else `rival` is told.

    `elsewhere` is what another measurement found, with its verdict; `goal` is told where the row has none.
    """

    what: str
    row: str = ""
    rivals: tuple[str, ...] = ()
    rival: str = ""
    goal: str = ""
    elsewhere: str = ""


def _starts(case: str, what: str, rival: str, *rivals: str) -> Iterator[Bar]:
    """Of a workload over a link: with a launch pack and without."""
    measured = tuple(f"{case}: {each}" for each in rivals)
    yield Bar(f"{what}, launch pack", f"{case}: lazyfs-pack", measured, rival)
    yield Bar(what, f"{case}: lazyfs", (f"{case}: overlayfs", *measured), rival)


_NUMPY, _STACK = "python3 with numpy ready", "scientific stack ready"
_WHEELS = "the layer of wheels"
_LINKS = ("1gbit,2ms", "100mbit,20ms", "50mbit,100ms")
_MISSES = "random reads that miss, 32 in flight, 1gbit"
_LAZY = "of 12 lazy layers"

BARS: dict[str, tuple[Bar, ...]] = {
    "Starting": (
        *_starts("numpy, 1gbit,2ms", f"{_NUMPY}, 1 Gbit/s 2 ms", "stargz 1.18 s", "stargz"),
        *_starts("numpy, 100mbit,20ms", f"{_NUMPY}, 100 Mbit/s 20 ms", "stargz 2.55 s", "stargz"),
        *_starts("stack, 1gbit,2ms", f"{_STACK}, 1 Gbit/s 2 ms", "nydus 5.9 s", "stargz"),
        Bar(f"{_STACK}, 100 Mbit/s 20 ms, launch pack", "stack, 100mbit,20ms: lazyfs-pack", rival="stargz 14.0 s",
            goal="≤ 3.5 s", elsewhere="3.5 s, met"),
        Bar(f"{_STACK}, 100 Mbit/s 20 ms", "stack, 100mbit,20ms: lazyfs", rival="stargz 14.0 s",
            goal="≤ 23.3 s", elsewhere="19.1 s, met"),
        Bar("launch pack of numpy, of the touched 16 KiB pieces", "pack of numpy, of its touched 16 KiB pieces"),
        Bar(
            "launch pack of the stack, of the touched 16 KiB pieces",
            "pack of stack, of its touched 16 KiB pieces",
            goal="≤ 1.2",
            elsewhere="0.99, met",
        ),
        *(
            Bar(f"the simulated link {link} is off its rate by", f"link {link}: a download is off its rate by")
            for link in _LINKS
        ),
    ),
    "Reading": (
        *(
            Bar(
                f"a whole image read cold, {link}, of a download and tar",
                f"whole image, {link}: of download and tar",
            )
            for link in _LINKS[:2]
        ),
        Bar("512 MB in order, cold from loopback", "512 MB in order, cold"),
        Bar("512 MB in order, from the node's cache through FUSE", "512 MB in order, cached"),
        Bar("the same, what the disk takes left out", "512 MB in order, cached, data warm"),
        Bar("find, warm, of ext4's", "find warm, of the file system's", rival="nydus 4.7"),
        Bar("tar, warm, of ext4's", "tar warm, of the file system's", rival="nydus 2.2"),
        Bar("find, cold, of ext4's", "find cold, of the file system's", rival="nydus 4.2"),
        *(
            Bar(f"a read that misses, 32 in flight across {trip}: the daemon adds, {share}",
                f"{_MISSES},{trip}: the daemon adds, {share}")
            for trip in ("100ms", "20ms")
            for share in ("p50", "p99")
        ),
        Bar("100 containers at once, of the time with everything local",
            "100 containers at once: from the network, of local"),
        Bar("100 containers at once: bytes fetched, of those the node has then",
            "100 containers at once: bytes fetched, of those the node has then"),
        Bar("memory of the daemon with 100 layers", "100 layers of 500 files mounted: memory of the daemon",
            rival="nydus 39 MB, with one image"),
        Bar("processor time in 10 idle seconds", "CPU of both in 10 idle seconds"),
        Bar("mount of 10 GB, of the time for 10 MB", "mount of 10,737,418,240 bytes beside 10,485,760, times as long"),
    ),
    "The command": (
        Bar("`lazyfs --help`", "lazyfs --help, warm"),
        Bar("a warm `lazyfs run`, beyond its runtime", "lazyfs run, beyond it, warm"),
        Bar("metadata for 10,000 inodes", "bootstrap of 10,003 inodes in 1 layer"),
        Bar("metadata for 100,000 inodes", "bootstrap of 100,003 inodes in 1 layer"),
    ),
    "Converting": (
        Bar("a layer of 375 MB", f"{_WHEELS}: wall",
            (f"{_WHEELS}, by skopeo zstd: wall", f"{_WHEELS}, by eStargz: wall"), "nydusify 7.2 s"),
        Bar("its blob, of the gzip layer", f"{_WHEELS}: blob, of the gzip layer",
            (f"{_WHEELS}, by eStargz: blob",), "nydusify 1.00"),
        Bar("memory for it", f"{_WHEELS}: memory"),
        Bar("memory for 8 GiB", "8 GiB: memory", goal="≤ 300 MB", elsewhere="69 MB, met"),
        Bar("memory for 100,000 files", "100,000 small files: memory"),
        Bar("memory for a million files", "1,000,000 small files: memory", goal="≤ 300 MB", elsewhere="262 MB, met"),
        Bar("bytes shared after an upgrade of one package, of what whole files share",
            "one package upgraded: bytes shared, of what whole files share"),
        Bar("bytes shared by one package on two bases, of what whole files share",
            "one package on two bases: bytes shared, of what whole files share"),
    ),
    "In an engine": (
        Bar("`docker pull`", "docker pull, lazyfs", ("docker pull, overlayfs",)),
        *(
            Bar(f"{call} of an ordinary snapshot, more than overlayfs", f"{call}, more than overlayfs")
            for call in ("Prepare", "Mounts", "Commit", "Remove")
        ),
        Bar("Prepare of the first of 12 lazy layers, beyond the network",
            f"Prepare of the first {_LAZY}, beyond the network"),
        Bar("Prepare of each other, 100 ms away", f"Prepare of each other {_LAZY}, 100 ms away"),
        Bar("round trips for 12 lazy layers, more than for one", "round trips for 12 lazy layers, more than for one"),
    ),
    "When the daemon is killed": (
        Bar("errors of 16 readers", "the daemon is killed: errors", rival="all die with it"),
        Bar("reads of wrong bytes", "the daemon is killed: reads of wrong bytes"),
        Bar("longest read across one kill", "the daemon is killed: longest read across one kill"),
        Bar("errors and wrong bytes in a thousand kills", goal="0", elsewhere="0 in 2,027,890 reads, met"),
        Bar("a million inputs to each parser without a finding", goal="0",
            elsewhere="0 findings; not all have had a million, **missed**"),
    ),
}  # fmt: skip


def tables(report: Report) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of cells of each table, by topic."""
    for topic, bars in BARS.items():
        yield topic, [_cells(bar, report) for bar in bars]
    minutes = Row("", sum(part.seconds for part in report.parts.values()) / 60, "minutes", MINUTES)
    yield (
        "Measuring",
        [("`make bench`, images built before", minutes.goal, "", minutes.figure, minutes.verdict)],
    )


def markdown(report: Report) -> str:
    lines = []
    for topic, rows in tables(report):
        lines += [f"**{topic}**", "", _line(HEAD), "|---" * len(HEAD) + "|", *map(_line, rows), ""]
    return "\n".join(lines[:-1])


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(bar: Bar, report: Report) -> tuple[str, ...]:
    row = report.row(bar.row) if bar.row else None
    if row is not None:
        return bar.what, row.goal or bar.goal, _rival(bar, report), row.figure, row.verdict
    if bar.elsewhere:
        figure, _, verdict = bar.elsewhere.rpartition(", ")
        return bar.what, bar.goal, _rival(bar, report), f"{figure} (docs/design.md)", verdict
    return bar.what, bar.goal, _rival(bar, report), "not measured", ""


def _rival(bar: Bar, report: Report) -> str:
    """The best that was measured here, by its name; else what is known of one."""
    found = [(row.value, name, row) for name in bar.rivals if (row := report.row(name)) is not None]
    if not found:
        return f"{bar.rival} (earlier)" if bar.rival else ""
    _, name, row = min(found, key=lambda each: each[0])
    return f"{_who(name)} {_plain(row)}"


def _who(row: str) -> str:
    """Whose a row is: `numpy, 1gbit,2ms: stargz`, `the layer of wheels, by eStargz: wall`, `docker pull, overlayfs`."""
    if ", by " in row:
        return row.partition(", by ")[2].partition(":")[0]
    return row.rpartition(": ")[2].rpartition(", ")[2]


def _plain(row: Row) -> str:
    return row.figure
