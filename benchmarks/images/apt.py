"""The Debian mirror of this machine, as its own apt sources name it (sources.list(5)).

Images are built from the mirror that the machine is set up for, so that a machine with a local or
a frozen mirror builds from that one.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images.errors import BuildError

_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")

# Of the machine's apt settings, those that decide whether and how a mirror is reached.
_NETWORK_SETTINGS = re.compile(r"Acquire::(https?|Retries|ForceIP|Check-|Max-ValidTime|Min-ValidTime)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where one suite of packages comes from."""

    uri: str
    suite: str
    components: tuple[str, ...]


def find_mirror(suite: str, etc: Path = Path("/etc/apt")) -> str:
    """The URI of the first source that has the main component of `suite`."""
    for source in read_sources(etc):
        if source.suite == suite and "main" in source.components:
            return _resolve(source.uri)
    raise BuildError(f"no apt source in {etc} has Debian's {suite} main: add one, the image is made of it")


def read_sources(etc: Path) -> Iterator[Source]:
    """Every enabled source of binary packages, in the order in which apt reads the files."""
    parts = etc / "sources.list.d"
    for path in [etc / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)


def network_settings() -> str:
    """The machine's own apt settings for the network (proxy, certificates, dates), as apt.conf lines."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in dump.splitlines() if _NETWORK_SETTINGS.match(line))


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := _ONE_LINE.fullmatch(line.split("#")[0].strip()):
            yield Source(match["uri"], match["suite"], tuple(match["components"].split()))


def _deb822(text: str) -> Iterator[Source]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        # A line that begins with a blank continues the field before it.
        unfolded = re.sub(r"\n[ \t]+", " ", stanza)
        fields = {
            name.strip().lower(): value.split()
            for name, colon, value in (line.partition(":") for line in unfolded.splitlines())
            if colon
        }
        enabled = fields.get("enabled", ["yes"])[:1] not in (["no"], ["false"], ["0"])
        if enabled and "deb" in fields.get("types", []):
            components = tuple(fields.get("components", []))
            for uri in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    yield Source(uri, suite, components)


def _resolve(uri: str) -> str:
    """Follow apt's mirror lists (Debian's cloud images use one) to the first mirror that they name."""
    if not uri.startswith("mirror+file:"):
        return uri
    listing = Path(re.sub(r"^/+", "/", uri.removeprefix("mirror+file:")))
    for line in listing.read_text(encoding="utf-8").splitlines():
        if words := line.split("#")[0].split():
            return words[0]
    raise BuildError(f"the mirror list {listing} names no mirror")
