"""What `lazyfs run` adds to the OCI runtime, warm; and how quick the command itself is.

    python -m benchmarks.run_speed [--runs 15]

Everything is cached and the daemon runs. The runtime alone gets a bundle with the same root file system and the
same command. The order changes from run to run; figures are medians, with the quickest run beside them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.images import RECIPES, ensure
from benchmarks.report import Row
from converter import Settings, convert_image
from lazyfs.stores import open_store, parse_reference

GOALS = {"lazyfs --help": 0.15, "lazyfs run, beyond it": 0.25}
COMMAND = ["/bin/true"]
RUNTIME = "runc"
"""Which, called alone, runs under every layout of cgroups; crun does not under a hybrid one."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_speed", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        figures = measure(Path(directory), arguments.cache, arguments.runs)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


def measure(directory: Path, cache: Path, runs: int) -> dict[str, list[float]]:
    """Seconds of every run."""
    source = parse_reference(ensure(RECIPES["demo"], cache).reference)
    target = parse_reference(f"oci:{directory / 'store'}:image")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings())
    lazyfs = [str(Path(sys.executable).with_name("lazyfs")), "--root", str(directory / "node")]
    rootfs = directory / "bundle" / "rootfs"
    rootfs.mkdir(parents=True)
    subprocess.run([*lazyfs, "mount", "--rw", str(target), str(rootfs)], check=True)
    try:
        _write_bundle(rootfs.parent)
        ways = {
            "runtime alone": [RUNTIME, "run", "--bundle", str(rootfs.parent), f"bench-{directory.name}"],
            "lazyfs run": [*lazyfs, "run", "--runtime", RUNTIME, "--entrypoint", "", str(target), *COMMAND],
            "lazyfs --help": [*lazyfs, "--help"],
        }
        figures: dict[str, list[float]] = {name: [] for name in ways}
        for run in range(runs + 1):
            for name, command in list(ways.items())[:: 1 if run % 2 else -1]:
                began = time.monotonic()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
                if run:  # the first is to warm up
                    figures[name].append(time.monotonic() - began)
    finally:
        subprocess.run([*lazyfs, "umount", str(rootfs)], check=True)
        subprocess.run([*lazyfs, "shutdown"], check=True)
    ours, alone = figures["lazyfs run"], figures["runtime alone"]
    figures["lazyfs run, beyond it"] = [a - b for a, b in zip(ours, alone, strict=True)]
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    return [
        Row(f"{name}, warm", statistics.median(seconds), "s", GOALS.get(name))
        for name, seconds in figures.items()
    ]


def _write_bundle(bundle: Path) -> None:
    subprocess.run([RUNTIME, "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_bytes())
    config["process"] |= {"terminal": False, "args": COMMAND}
    path.write_text(json.dumps(config))


def show(figures: dict[str, list[float]]) -> None:
    print(f"{'':26}{'median':>10}{'quickest':>10}{'goal':>8}")
    for name, seconds in figures.items():
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        print(f"{name:26}{statistics.median(seconds):>9.3f}s{min(seconds):>9.3f}s{goal:>8}")


if __name__ == "__main__":
    sys.exit(main())
