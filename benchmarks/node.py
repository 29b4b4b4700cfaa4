"""A node of one's own, and an image for it: what measurements of the daemon begin with."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.images import RECIPES, ensure
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.stores import open_store, parse_reference

TAG = "app"


def convert_recipe(recipe: str, cache: Path, layout: Path) -> Path:
    """An image of `benchmarks.images`, converted, as `TAG` of a new layout; returns the layout."""
    return convert(ensure(RECIPES[recipe], cache).reference, layout)


def convert(reference: str, layout: Path) -> Path:
    source, target = parse_reference(reference), parse_reference(f"oci:{layout}:{TAG}")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings())
    return layout


def lazyfs(root: Path) -> list[str]:
    """The command, for the node at `root`."""
    return [str(Path(sys.executable).with_name("lazyfs")), "--root", str(root)]


@contextmanager
def running_node(root: Path) -> Iterator[DaemonClient]:
    """An empty node whose daemon runs; nothing is left of it."""
    client = ensure_daemon(NodePaths.choose(root))
    try:
        yield client
    finally:
        client.shutdown()
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def mounted(root: Path, reference: str, target: Path) -> Iterator[Path]:
    """The image at `target`; nothing is fetched that nobody reads."""
    target.mkdir(exist_ok=True)
    subprocess.run([*lazyfs(root), "mount", "--no-fill", reference, str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run([*lazyfs(root), "umount", str(target)], check=True)
