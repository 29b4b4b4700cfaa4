"""Which snapshots there are: one SQLite database (WAL, every transaction synced) with one writer.

A snapshot is named by its key; committing gives it another one, and its id stays. Ids rise and name directories. A
*lazy* snapshot is a committed one whose content is not in its directory: it is the lowest layers of an image.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from lazyfs.errors import BusyError, NodeError, NotFoundError, UnsupportedError, UsageError
from lazyfs.formats.strict_json import short

# Each entry brings a database from the version that is its index to the next; what was released is never changed.
_MIGRATIONS = (
    """
    CREATE TABLE snapshot (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        kind INTEGER NOT NULL,
        parent INTEGER REFERENCES snapshot (id),
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        labels TEXT NOT NULL,
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX child ON snapshot (parent);
    CREATE TABLE lazy (
        id INTEGER PRIMARY KEY REFERENCES snapshot (id) ON DELETE CASCADE,
        reference TEXT NOT NULL,
        layers INTEGER NOT NULL,
        chain_id TEXT NOT NULL,
        parent_chain_id TEXT NOT NULL
    ) STRICT;
    """,
    "ALTER TABLE lazy ADD COLUMN tocs TEXT NOT NULL DEFAULT ''",
)
_COLUMNS = """
    s.id, s.key, s.kind, coalesce(p.key, ''), coalesce(p.id, 0), s.created, s.updated, s.labels, s.size, s.inodes,
    l.reference, l.layers, l.chain_id, l.parent_chain_id, l.tocs
"""
_FROM = "FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent LEFT JOIN lazy l ON l.id = s.id"
_ANCESTORS = """
    WITH RECURSIVE ancestor (id, next, depth) AS (
        SELECT id, parent, 0 FROM snapshot WHERE key = ?
        UNION ALL SELECT s.id, s.parent, depth + 1 FROM snapshot s JOIN ancestor ON s.id = ancestor.next
    )
"""
_BUSY_SECONDS = 5.0


class TakenError(BusyError):
    """A snapshot of that name is there already."""

    grpc_code = "ALREADY_EXISTS"


class Kind(IntEnum):
    """Numbered as on the wire."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Lazy:
    """The lowest `layers` layers of an image, whose manifest's digest `reference` names.

    Two chain IDs name their content: of all of them, and of all but the topmost ("" where that is none). What is shown
    is what the layers' TOCs say, by their sha256: that they say it of these chain IDs is the image's claim.
    """

    reference: str
    layers: int
    chain_id: str
    parent_chain_id: str
    tocs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on disk: bytes and inodes."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One record. Times are nanoseconds since 1970; `parent` is a name or empty, `parent_id` a number or 0."""

    id: int
    key: str
    kind: Kind
    parent: str
    parent_id: int
    created: int
    updated: int
    labels: Mapping[str, str] = field(default_factory=dict)
    usage: Usage = Usage()
    lazy: Lazy | None = None


class Records:
    """The database. Thread safe; readers do not wait for a writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        with _explained(path):
            self._writer = _connect(path)
            try:
                # What containerd was told must survive a loss of power: it believes in it.
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("PRAGMA synchronous = FULL")
                self._migrate()
                self._reader = _connect(path)
            except BaseException:
                self._writer.close()
                raise

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def writing(self) -> Iterator["Table"]:
        """One transaction: kept when the block ends, taken back when it raises."""
        with self._write_lock, _explained(self._path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Table(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator["Table"]:
        """What was committed last, and the same throughout the block."""
        with self._read_lock, _explained(self._path):
            self._reader.execute("BEGIN")
            try:
                yield Table(self._reader)
            finally:
                self._reader.execute("ROLLBACK")

    def _migrate(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise UnsupportedError(
                f"{self._path} was written by a later version (format {version})",
                hint="run that version of lazyfs-snapshotter again",
            )
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            self._writer.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")


class Table:
    """The records within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> Snapshot:
        """NotFoundError when there is none of that name."""
        row = self._connection.execute(f"SELECT {_COLUMNS} {_FROM} WHERE s.key = ?", (key,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no snapshot {shown(key)}")
        return _snapshot(row)

    def ancestors(self, key: str) -> list[Snapshot]:
        """The snapshots below `key`, its parent first."""
        rows = self._connection.execute(
            f"{_ANCESTORS} SELECT {_COLUMNS} {_FROM} JOIN ancestor a ON a.id = s.id WHERE depth > 0 ORDER BY depth",
            (key,),
        )
        return [_snapshot(row) for row in rows]

    def all(self) -> list[Snapshot]:
        """Every record, by name."""
        return [
            _snapshot(row) for row in self._connection.execute(f"SELECT {_COLUMNS} {_FROM} ORDER BY s.key")
        ]

    def ids(self) -> set[int]:
        return {row[0] for row in self._connection.execute("SELECT id FROM snapshot")}

    def create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str], lazy: Lazy | None = None
    ) -> Snapshot:
        """A new record. TakenError, NotFoundError (no parent) or UsageError (a parent that is not committed)."""
        parent_id = self._committed(parent) if parent else None
        now = time.time_ns()
        try:
            row = self._connection.execute(
                "INSERT INTO snapshot (key, kind, parent, created, updated, labels) VALUES (?, ?, ?, ?, ?, ?) "
                "RETURNING id",
                (key, kind, parent_id, now, now, _packed(labels)),
            ).fetchone()
        except sqlite3.IntegrityError as error:
            raise TakenError(f"there is a snapshot {shown(key)} already") from error
        if lazy is not None:
            self._connection.execute(
                "INSERT INTO lazy VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(row[0], lazy.reference, lazy.layers, lazy.chain_id, lazy.parent_chain_id),
                    " ".join(lazy.tocs),
                ),
            )
        return self.get(key)

    def commit(
        self, key: str, name: str, labels: Mapping[str, str], usage: Usage, parent: str = ""
    ) -> Snapshot:
        """Turn the active snapshot `key` into the committed one `name`, whose labels are these alone.

        A snapshot without a parent may be given one. BusyError unless `key` is active.
        """
        snapshot = self.get(key)
        if snapshot.kind is not Kind.ACTIVE:
            raise BusyError(f"snapshot {shown(key)} is not active")
        if parent and snapshot.parent not in ("", parent):
            raise UsageError(
                f"snapshot {shown(key)} has the parent {shown(snapshot.parent)}, it cannot have {shown(parent)}"
            )
        parent_id = self._committed(parent or snapshot.parent) if parent or snapshot.parent else None
        now = time.time_ns()
        try:
            self._connection.execute(
                "UPDATE snapshot SET key = ?, kind = ?, parent = ?, created = ?, updated = ?, labels = ?, "
                "size = ?, inodes = ? WHERE id = ?",
                (
                    *(name, Kind.COMMITTED, parent_id, now, now, _packed(labels), usage.size, usage.inodes),
                    snapshot.id,
                ),
            )
        except sqlite3.IntegrityError as error:
            raise TakenError(f"there is a snapshot {shown(name)} already") from error
        return self.get(name)

    def set_labels(self, key: str, labels: Mapping[str, str]) -> Snapshot:
        self.get(key)
        self._connection.execute(
            "UPDATE snapshot SET labels = ?, updated = ? WHERE key = ?",
            (_packed(labels), time.time_ns(), key),
        )
        return self.get(key)

    def remove(self, key: str) -> None:
        """BusyError while the snapshot has children."""
        snapshot = self.get(key)
        child = self._connection.execute(
            "SELECT key FROM snapshot WHERE parent = ? LIMIT 1", (snapshot.id,)
        ).fetchone()
        if child is not None:
            raise BusyError(f"cannot remove snapshot {shown(key)}: it is the parent of {shown(child[0])}")
        self._connection.execute("DELETE FROM snapshot WHERE id = ?", (snapshot.id,))

    def _committed(self, name: str) -> int:
        snapshot = self.get(name)
        if snapshot.kind is not Kind.COMMITTED:
            raise UsageError(f"snapshot {shown(name)} is not committed, so it cannot be a parent")
        return snapshot.id


def shown(name: str) -> str:
    """A caller's name in a message: as it is, unless it would not stay on its line."""
    return name if name.isprintable() else short(name, 200)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    try:
        return _read(*row)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"the record of snapshot {row[0]} is damaged ({error})") from error


def _read(
    number: int,
    key: str,
    kind: int,
    parent: str,
    parent_id: int,
    created: int,
    updated: int,
    labels: str,
    size: int,
    inodes: int,
    *lazy: Any,
) -> Snapshot:
    reference, layers, chain_id, below, tocs = lazy
    return Snapshot(
        id=number,
        key=key,
        kind=Kind(kind),
        parent=parent,
        parent_id=parent_id,
        created=created,
        updated=updated,
        labels=json.loads(labels),
        usage=Usage(size, inodes),
        lazy=None if reference is None else Lazy(reference, layers, chain_id, below, tuple(tocs.split())),
    )


def _packed(labels: Mapping[str, str]) -> str:
    # As containerd has it: to set a label to nothing is to remove it.
    return json.dumps({name: value for name, value in labels.items() if value})


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise NodeError(f"{path}: {error}", hint="free some space; is another process using it?") from error
