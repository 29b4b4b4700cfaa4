"""What was measured, as JSON: a document that says where, with what and in which order, and every start."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lazyfs import __version__
from lazyfs.bench.cold import Cold
from lazyfs.bench.link import Trip
from lazyfs.bench.starts import Start, Trace
from lazyfs.bench.usage import Use
from lazyfs.errors import BadInputError, NodeError, NotFoundError

FORMAT = 1
_MAX_SIZE = 256 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """A link as it proved itself: of its rate and its round trip, 1 where they are as named."""

    link: str
    rate: float
    round_trip: float


@dataclass(slots=True)
class Results:
    """`traces` has one start of each image, link and way: the one of median time."""

    machine: dict[str, Any]
    seed: int
    runs: int
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: list[Measured] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    traces: dict[str, Trace] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def of(self, image: str, link: str, way: str) -> list[Start]:
        """In the order of rounds."""
        found = [each for each in self.starts if (each.image, each.link, each.way) == (image, link, way)]
        return sorted(found, key=lambda start: start.round)

    def trace(self, image: str, link: str, way: str) -> Trace | None:
        return self.traces.get(trace_key(image, link, way))

    @property
    def image_names(self) -> list[str]:
        return list(dict.fromkeys(start.image for start in self.starts))

    @property
    def link_names(self) -> list[str]:
        return list(dict.fromkeys(start.link for start in self.starts))

    @property
    def way_names(self) -> list[str]:
        """Ours first."""
        names = dict.fromkeys(start.way for start in self.starts)
        return sorted(names, key=lambda name: (not name.startswith("lazyfs"), list(names).index(name)))

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def write(self, file: Path) -> None:
        document = json.dumps(self.as_dict())
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f".{file.name}.new")
            unfinished.write_text(document + "\n")
            unfinished.replace(file)
        except OSError as error:
            raise NodeError(f"cannot write the results to {file}: {error.strerror}") from error


def merge(parts: Sequence[Results]) -> Results:
    """One document of several measurements on one machine, of different images or links; the first says when."""
    first = parts[0]
    merged = Results(first.machine, first.seed, max(each.runs for each in parts))
    for each in parts:
        merged.images |= each.images
        known = {proof.link for proof in merged.links}
        merged.links += [proof for proof in each.links if proof.link not in known]
        merged.starts += each.starts
        merged.traces |= each.traces
        merged.failures += each.failures
    return merged


def trace_key(image: str, link: str, way: str) -> str:
    return f"{image} | {link} | {way}"


def read_results(file: Path) -> Results:
    """NotFoundError where there is no file, BadInputError where it is none of ours."""
    try:
        if file.stat().st_size > _MAX_SIZE:
            raise BadInputError(
                f"{file} is larger than any results", hint="`lazyfs bench start --json` writes them"
            )
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"{file} is not there") from None
    except OSError as error:
        raise NotFoundError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            f"{file} is not JSON", hint="`lazyfs bench start -o FILE` writes what can be compared"
        ) from error
    try:
        return _read(values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadInputError(
            f"{file} holds no results of `lazyfs bench` (format {FORMAT})", hint=str(error)
        ) from error


def _read(values: Mapping[str, Any]) -> Results:
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']!r}")
    starts = [
        Start(**each | {"uses": [Use(**use) for use in each["uses"]], "cold": Cold(**each["cold"])})
        for each in values["starts"]
    ]
    traces = {
        key: Trace(**each | {"trips": [Trip(**trip) for trip in each["trips"]]})
        for key, each in values["traces"].items()
    }
    return Results(
        dict(values["machine"]),
        int(values["seed"]),
        int(values["runs"]),
        dict(values["images"]),
        [Measured(**each) for each in values["links"]],
        starts,
        traces,
        [str(each) for each in values["failures"]],
    )


def this_machine(engine: Sequence[int]) -> dict[str, Any]:
    """What figures depend on."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "lazyfs": __version__,
        "containerd": ".".join(map(str, engine)),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
