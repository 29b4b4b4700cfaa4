"""A measurement, from the names of images to its results: images are gathered here, and started in an enclosure."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.bench.enclosure import run_enclosed, scratch
from lazyfs.bench.engine import engine_version, find
from lazyfs.bench.plan import Plan, Subject
from lazyfs.bench.registry import find_nginx
from lazyfs.bench.results import Results, read_results
from lazyfs.bench.subjects import DEFAULTS, gather
from lazyfs.bench.ways import Way
from lazyfs.errors import NodeError
from lazyfs.stores.options import StoreOptions

_MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image to measure; `words` take the place of its Entrypoint and Cmd."""

    reference: str
    ready: str
    name: str = ""
    words: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    patience: float = 600.0


def measure(
    wanted: Sequence[Wanted],
    ways: Sequence[Way],
    links: Sequence[str],
    runs: int,
    seed: int,
    parent: Path,
    output: Path | None = None,
    options: StoreOptions = DEFAULTS,
) -> Results:
    """`parent` is where a directory for all files is made, `output` the file that results are kept in.

    NodeError where nothing could be measured; what failed of several images is in the results.
    """
    _check_machine(ways)
    with scratch(parent) as directory:
        subjects = []
        for number, each in enumerate(wanted):
            name = each.name or _short(each.reference)
            sys.stderr.write(f"{name}: copying and converting\n")
            layout = directory / f"i{number}"
            gather(each.reference, ways, layout, options)
            subjects.append(Subject(name, layout, each.ready, each.words, each.env, each.patience))
        kept = output.absolute() if output is not None else directory / "results.json"
        kept.unlink(missing_ok=True)  # of an earlier measurement
        plan = Plan(tuple(subjects), tuple(ways), tuple(links), runs, seed, directory, kept)
        plan.write(directory / "plan.json")
        code = run_enclosed("lazyfs.bench.inside", [directory / "plan.json"])
        results = read_results(kept) if kept.exists() else None
    if results is None or not results.starts:
        raise NodeError(
            f"nothing was measured (code {code})",
            hint="; ".join(results.failures) if results else "see above",
        )
    return results


def _check_machine(ways: Sequence[Way]) -> None:
    """NodeError, before anything is done, where something that is needed is not here."""
    if os.geteuid() != 0:
        raise NodeError("measuring starts needs root", hint="it empties caches, mounts, and runs containers")
    find_nginx()
    version = engine_version()
    pullers = (
        ["ctr-remote"] if version[0] == 1 and any(way.snapshotter != "overlayfs" for way in ways) else []
    )
    for program in ("ctr", "runc", "containerd-shim-runc-v2", "unshare", "setpriv", *pullers):
        find(program)


def _short(reference: str) -> str:
    """The image's own name of a reference: app:1.0."""
    return reference.rpartition("/")[2][:_MAX_NAME]
