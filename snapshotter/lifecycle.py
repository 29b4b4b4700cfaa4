"""The life of a snapshot, told by what containerd asks for.

*Prepare* makes an active snapshot to write to, *View* one to read from; both on a committed parent or on nothing.
*Mounts* says again how to see it. *Commit* turns an active one into a committed one, which never changes any more
and may be a parent. *Remove* ends the record, *Cleanup* what it had on disk and mounted.

Every call can be killed between any two of its steps. The order that makes this harmless: a directory is there
before its record is, and goes after it. What has a directory and no record is nobody's, and goes with the next Cleanup.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lazyfs.errors import BusyError, NodeError, UsageError
from snapshotter.directories import Directories
from snapshotter.filters import parse_filters
from snapshotter.mounts import Mount, mounts_of
from snapshotter.records import Kind, Records, Snapshot, Table, Usage
from snapshotter.usage import disk_usage

MAX_LABEL = 4096
"""Bytes of a label, name and value together."""

Labels = Mapping[str, str]


def _unobserved(_: str) -> None:
    """What happens where nobody watches the steps."""


class Snapshots:
    """All snapshots below one root. Thread safe."""

    def __init__(self, root: Path, reached: Callable[[str], None] = _unobserved) -> None:
        """`reached` is told of each step that a call has taken, in the thread that takes it."""
        self._directories = Directories(root)
        self._records = Records(root / "records.db")
        self._reached = reached

    def close(self) -> None:
        self._records.close()

    def prepare(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Labels) -> list[Mount]:
        return self._create(Kind.VIEW, key, parent, labels)

    def mounts(self, key: str) -> list[Mount]:
        with self._records.reading() as table:
            snapshot = table.get(key)
            ancestors = table.ancestors(key)
        if snapshot.kind is Kind.COMMITTED:
            raise BusyError(f"snapshot {key} is committed: it has no mounts, its views have")
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
                    raise UsageError(f"snapshot {key}: {name} cannot be updated, only labels can")
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
            self._directories.forsake(table.ids())
            self._reached("forsaken")
        self._directories.delete()

    def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        _check_name(key)
        _check_labels(labels)
        with self._records.writing() as table:
            snapshot = self._insert(table, kind, key, parent, labels)
            ancestors = table.ancestors(key)
        self._reached("recorded")
        return mounts_of(self._directories, snapshot, ancestors)

    def _insert(self, table: Table, kind: Kind, key: str, parent: str, labels: Labels) -> Snapshot:
        """A record and its directory."""
        directory = self._directories.make(writable=kind is Kind.ACTIVE)
        self._reached("made")
        try:
            snapshot = table.create(kind, key, parent, labels)
            if parent:
                self._inherit_owner(directory, table.get(parent))
            self._reached("inserted")
            self._directories.place(directory, snapshot.id)
            self._reached("placed")
        except BaseException:
            self._directories.delete([directory])
            raise
        return snapshot

    def _inherit_owner(self, directory: Path, parent: Snapshot) -> None:
        """The root of an overlay is that of its upper directory: it must belong to who owns the one below."""
        try:
            owner = self._directories.fs(parent.id).stat()
            os.chown(directory / "fs", owner.st_uid, owner.st_gid)
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}") from error

    def _scan(self, snapshot: Snapshot) -> Usage:
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
            raise UsageError(f"label {name[:100]} has more than {MAX_LABEL} bytes")
