"""Recording what a start touches: one run on a node of its own, with the kernel's read-ahead switched off.

Which pages, and in which order, is what the kernel asks of the devices, page by page; the exact pages of each file
are those that are in memory when the container is ready, since nothing else brings any there. numpy: 15.3 MB in
3,739 pages and 173 files. With 16 KiB of read-ahead 18.4 MB would count as touched, with the usual 128 KiB 25.4 MB.
Of what the kernel has dropped meanwhile (a start may read more than there is memory, anybody may empty the page
cache) the reads alone are left, whose first and last pages may hold ends of other files as well.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.launch import OpenedImage, open_tocs
from lazyfs.cli.run import run as run_command
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import LazyfsError, NodeError, UsageError
from lazyfs.formats.image_tree import merge
from lazyfs.formats.profile import Touch, from_reads
from lazyfs.mount.images import mount_view, unmount_image
from lazyfs.mount.read_ahead import set_read_ahead
from lazyfs.mount.residency import resident_pages
from lazyfs.run.ready import Probe, Started
from lazyfs.stores import Image, Store

_AFTER_READY = 0.05


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a start touched until it was ready, `seconds` after its begin."""

    profile: list[Touch]
    seconds: float
    reads: int


def record(
    store: Store,
    image: Image,
    reference: str,
    words: Sequence[str],
    probe: Probe,
    paths: NodePaths,
    patience: float,
) -> Recorded:
    """Run the image once with `words` (options and arguments of `lazyfs run`) until `probe` says that it is ready."""
    opened = open_tocs(store, image)
    with _scratch_node(paths) as (scratch, client):
        client.record()
        answer = client.open_image(reference, fill=False, mode=_mount_mode(words)) | {"launch": True}
        view = scratch.root / "view"
        view.mkdir()
        set_read_ahead(scratch.fuse, 0)
        mount_view(scratch, answer, view)
        try:
            return _run(client, scratch, opened, [*words], probe, patience, view)
        finally:
            unmount_image(scratch, view)


def _mount_mode(words: Sequence[str]) -> str:
    """How `lazyfs run` is told to show the image: what it has in memory is seen in a mount of the same kind alone."""
    context = run_command.make_context("run", [*words], resilient_parsing=True)
    return context.params["mount_mode"] or ""


def _run(
    client: DaemonClient,
    scratch: NodePaths,
    opened: OpenedImage,
    words: list[str],
    probe: Probe,
    patience: float,
    view: Path,
) -> Recorded:
    command = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(scratch.root), "run", *words]
    with Started(command, probe) as started:
        seconds = started.wait_ready(patience)
        profile, reads = profile_of(
            opened, client.timeline(0.0), started.began + seconds + _AFTER_READY, resident_below(view)
        )
    if not profile:
        raise NodeError(
            f"the start read nothing of the image until it was ready ({probe})",
            hint="see what the container said above, and choose a later moment by --ready",
        )
    return Recorded(profile, seconds, reads)


def profile_of(
    opened: OpenedImage, timeline: dict[str, Any], until: float, resident: "Resident | None" = None
) -> tuple[list[Touch], int]:
    """The profile of the reads of a timeline, and how many there were of this image."""
    number = {layer.digest: index for index, (layer, _) in enumerate(opened.image.layers)}
    reads = [
        (number[read["layer"]], int(read["offset"]), int(read["size"]))
        for read in timeline["reads"]
        if read["layer"] in number and read["at"] <= until
    ]
    return from_reads(reads, merge([each.tree for each in opened.tocs]), resident), len(reads)


class Resident:
    """Which pages of files below a directory are in memory."""

    def __init__(self, view: Path) -> None:
        self._view = view

    def __call__(self, path: bytes) -> list[int]:
        return resident_pages(self._view / os.fsdecode(path))


def resident_below(view: Path) -> Resident:
    return Resident(view)


@contextmanager
def _scratch_node(paths: NodePaths) -> Iterator[tuple[NodePaths, DaemonClient]]:
    """A node that has nothing, below the node's own directory and with its settings; nothing of it remains."""
    try:
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="profile-", dir=paths.root))
        with suppress(FileNotFoundError):
            shutil.copy(paths.settings, root)
    except OSError as error:
        raise NodeError(f"{paths.root}: {error.strerror}", hint="recording a start needs root") from error
    scratch = NodePaths(root)
    try:
        client = ensure_daemon(scratch)
        try:
            yield scratch, client
        finally:
            with suppress(LazyfsError):
                client.shutdown()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def learn(store: Store, image: Image, client: DaemonClient, seconds: float) -> Recorded:
    """The profile of what the daemon has served of an image, from the first read on for so many seconds.

    It has the kernel's read-ahead in it. UsageError where the daemon served nothing of it.
    """
    opened = open_tocs(store, image)
    timeline = client.timeline(0.0)
    blobs = {layer.digest for layer, _ in image.layers}
    moments = [float(read["at"]) for read in timeline["reads"] if read["layer"] in blobs]
    if not moments:
        raise UsageError(
            f"the node has not read {image.descriptor.digest} since its daemon started, or no more remembers it",
            hint="start a container of it first, or record one: lazyfs profile REF",
        )
    profile, reads = profile_of(opened, timeline, min(moments) + seconds)
    return Recorded(profile, min(seconds, time.monotonic() - min(moments)), reads)
