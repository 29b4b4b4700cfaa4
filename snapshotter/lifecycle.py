"""The life of a snapshot, told by what containerd asks for.

*Prepare* makes an active snapshot to write to, *View* one to read from; both on a committed parent or on nothing.
*Mounts* says again how to see it. *Commit* turns an active one into a committed one, which never changes any more
and may be a parent. *Remove* ends the record, *Cleanup* what it had on disk and mounted.

Every call can be killed between any two of its steps. The order that makes this harmless: a directory is there
before its record is, and goes after it. What has a directory and no record is nobody's, and goes with the next Cleanup.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lazyfs.errors import BusyError, NodeError, NotFoundError, UsageError
from snapshotter.directories import Directories
from snapshotter.filters import parse_filters
from snapshotter.idmap import id_mapping
from snapshotter.labels import REMOTE, WantedLayer, chain_id_of, wanted_layer
from snapshotter.limits import Limiter, wanted_limit
from snapshotter.mounts import Mount, lower_snapshots, mounts_of
from snapshotter.records import Kind, Lazy, Records, Snapshot, Table, TakenError, Usage, shown
from snapshotter.usage import disk_usage

_REMOTE_VALUE = "remote snapshot"
MAX_LABEL = 4096
"""Bytes of a label, name and value together."""

Labels = Mapping[str, str]


def _unobserved(_: str) -> None:
    """What happens where nobody watches the steps."""


class ImageSource(Protocol):
    """What knows of images that are not there yet (`images.Images`)."""

    def find(self, wanted: WantedLayer) -> Lazy | None:
        """The image of the layers up to and with the wanted one; None where containerd must download it."""
        ...

    def show(self, number: int, lazy: Lazy, target: Path) -> None:
        """Have snapshot `number`, the image `lazy`, mounted at `target`."""
        ...

    def forget(self, numbers: set[int]) -> None:
        """These snapshots are gone, and were unmounted; others may be gone that were not mounted."""
        ...


class Snapshots:
    """All snapshots below one root. Thread safe."""

    def __init__(
        self,
        root: Path,
        images: ImageSource,
        reached: Callable[[str], None] = _unobserved,
        *,
        limit: int | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        """`reached` is told of each step that a call has taken, in the thread that takes it.

        `limit` is how many bytes a container may write that says nothing of it itself.
        """
        self._images = images
        self._limit = limit
        self._directories = Directories(root, limiter)
        self._records = Records(root / "records.db")
        self._reached = reached

    def close(self) -> None:
        self._records.close()

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        """TakenError as well when the layer that the labels speak of need not be downloaded: it is there now."""
        _check_name(key)
        _check_labels(labels)
        wanted = wanted_layer(labels)
        if wanted is not None and self._provide(wanted, parent, labels):
            raise TakenError(f"snapshot {shown(wanted.name)} is there: its content comes when it is read")
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        _check_name(key)
        _check_labels(labels)
        return self._create(Kind.VIEW, key, parent, labels)

    def mounts(self, key: str) -> list[Mount]:
        with self._records.reading() as table:
            snapshot = table.get(key)
            ancestors = table.ancestors(key)
        if snapshot.kind is Kind.COMMITTED:
            raise BusyError(f"snapshot {shown(key)} is committed: it has no mounts, its views have")
        self._show(ancestors)
        self._directories.show([snapshot.id])
        return mounts_of(self._directories, snapshot, ancestors)

    def commit(self, name: str, key: str, labels: Labels, parent: str = "") -> None:
        _check_name(name)
        _check_labels(labels)
        snapshot = self.stat(key)
        usage = self._scan(snapshot) if snapshot.kind is Kind.ACTIVE else Usage()
        with self._records.writing() as table:
            table.commit(key, name, labels, usage, parent)
            self._reached("committed")

    def remove(self, key: str) -> None:
        with self._records.writing() as table:
            table.remove(key)
            self._reached("removed")

    def stat(self, key: str) -> Snapshot:
        with self._records.reading() as table:
            return table.get(key)

    def update(self, key: str, labels: Labels, fields: Sequence[str]) -> Snapshot:
        """Replace all labels (no field, or `labels`) or those that are named (`labels.<name>`)."""
        _check_labels(labels)
        with self._records.writing() as table:
            updated = dict(table.get(key).labels)
            for name in fields or ("labels",):
                if name == "labels":
                    updated = dict(labels)
                elif name.startswith("labels."):
                    label = name.removeprefix("labels.")
                    updated[label] = labels.get(label, "")
                else:
                    raise UsageError(
                        f"snapshot {shown(key)}: {shown(name)} cannot be updated, only labels can"
                    )
            return table.set_labels(key, updated)

    def walk(self, filters: Sequence[str]) -> list[Snapshot]:
        matches = parse_filters(filters)
        with self._records.reading() as table:
            return [snapshot for snapshot in table.all() if matches(snapshot)]

    def usage(self, key: str) -> Usage:
        """Of a committed snapshot what was found when it was committed."""
        snapshot = self.stat(key)
        return self._scan(snapshot) if snapshot.kind is Kind.ACTIVE else snapshot.usage

    def cleanup(self) -> None:
        """Unmount and delete what belongs to no record."""
        # A directory may only be made while nobody looks which ones are nobody's.
        with self._records.writing() as table:
            unmounted = self._directories.forsake(table.ids())
            self._reached("forsaken")
        self._directories.delete()
        # Also where nothing was mounted: an image may have gone that nobody has looked into.
        self._images.forget(unmounted)

    def _provide(self, wanted: WantedLayer, parent: str, labels: Labels) -> bool:
        """Have the layer as a committed snapshot without downloading it, if that can be."""
        lazy = self._images.find(wanted)
        if lazy is None or chain_id_of(parent) != lazy.parent_chain_id:
            return False
        self._reached("found")
        labels = {**labels, REMOTE: _REMOTE_VALUE}
        with suppress(TakenError), self._records.writing() as table:
            self._insert(table, Kind.COMMITTED, wanted.name, parent, labels, lazy)
            self._reached("provided")
            return True
        # Of two images that claim the same chain ID for other TOCs one is wrong, or they were converted differently.
        with suppress(NotFoundError):
            there = self.stat(wanted.name).lazy
            return there is not None and there.tocs == lazy.tocs
        return False

    def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        if parent:
            with self._records.reading() as table:
                below = [table.get(parent), *table.ancestors(parent)]
            self._show(below)
        limit = wanted_limit(labels, self._limit) if kind is Kind.ACTIVE else None
        with self._records.writing() as table:
            snapshot = self._insert(table, kind, key, parent, labels, limit=limit)
            ancestors = table.ancestors(key)
        self._reached("recorded")
        self._directories.show([snapshot.id])
        return mounts_of(self._directories, snapshot, ancestors)

    def _insert(
        self,
        table: Table,
        kind: Kind,
        key: str,
        parent: str,
        labels: Labels,
        lazy: Lazy | None = None,
        limit: int | None = None,
    ) -> Snapshot:
        """A record and its directory."""
        directory = self._directories.make(writable=kind is Kind.ACTIVE)
        self._reached("made")
        try:
            snapshot = table.create(kind, key, parent, labels, lazy)
            if lazy is None:
                self._give(directory, snapshot)
            if limit is not None:
                self._directories.limit(directory, snapshot.id, limit)
            self._reached("inserted")
            self._directories.place(directory, snapshot.id)
            self._reached("placed")
        except BaseException:
            self._directories.delete([directory])
            raise
        return snapshot

    def _show(self, below: Sequence[Snapshot]) -> None:
        """Mount what is to be mounted of the lower ones; `below` has the nearest first. Only the last may be lazy."""
        lower = lower_snapshots(below)
        self._directories.show(snapshot.id for snapshot in lower)
        for snapshot in lower[-1:]:
            if snapshot.lazy is not None:
                self._images.show(snapshot.id, snapshot.lazy, self._directories.fs(snapshot.id))

    def _give(self, directory: Path, snapshot: Snapshot) -> None:
        """The root of an overlay is that of its upper directory: it must belong to who owns the one below."""
        mapping = id_mapping(snapshot.labels)
        try:
            if mapping is not None:
                os.chown(directory / "fs", mapping.root_uid, mapping.root_gid)
            elif snapshot.parent_id:
                owner = self._directories.fs(snapshot.parent_id).stat()
                os.chown(directory / "fs", owner.st_uid, owner.st_gid)
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}") from error

    def _scan(self, snapshot: Snapshot) -> Usage:
        self._directories.show([snapshot.id])
        try:
            return disk_usage(self._directories.fs(snapshot.id))
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}") from error


def _check_name(name: str) -> None:
    if not name:
        raise UsageError("a snapshot needs a name")


def _check_labels(labels: Labels) -> None:
    for name, value in labels.items():
        if len(name.encode()) + len(value.encode()) > MAX_LABEL:
            raise UsageError(f"label {shown(name[:100])} has more than {MAX_LABEL} bytes")
