"""What a daemon's successor must know, in SQLite below <root>/state.

    layers    number of a device <-> TOC, and where its blob is: the kernel knows devices by number alone
    images    what was opened: so that it can be opened again by its tag without a network

In write-ahead mode a commit is safe from `kill -9` at once and from a loss of power a moment later, and no
sync stands in anybody's way. Numbers are never given twice, not even after their layer was forgotten, nor
after the file was lost: then they go on from the clock.

Version 1 is the first. A file of a later version is refused: what a newer lazyfs wrote is not guessed at.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import NodeError, UnsupportedError
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.strict_json import Fields

log = logging.getLogger(__name__)

VERSION = 1
MAX_SOURCES = 4
_FILE = "node.db"
_SCHEMA = """
CREATE TABLE layers (
    inode INTEGER PRIMARY KEY AUTOINCREMENT, toc TEXT NOT NULL UNIQUE, layer TEXT NOT NULL,
    diff_id TEXT NOT NULL, sources TEXT NOT NULL, connection TEXT NOT NULL
);
CREATE TABLE images (
    name TEXT PRIMARY KEY, reference TEXT NOT NULL, answer TEXT NOT NULL, connection TEXT NOT NULL
);
CREATE INDEX by_reference ON images (reference);
"""


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """`layer` is its descriptor as the manifest has it; `sources` references to images that have it, best first."""

    inode: int
    toc: str
    layer: dict[str, Any]
    diff_id: str
    sources: tuple[str, ...]

    def descriptor(self) -> Descriptor:
        return Descriptor.from_fields(Fields(self.layer, f"device {self.inode}"))


class State:
    """Thread safe. `connection` names this mount of the devices; see `layers` and `images`."""

    def __init__(self, directory: Path, connection: str) -> None:
        self._path = directory / _FILE
        self._connection = connection
        self._lock = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._database = _open(self._path)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # of what SQLite says of its schema
                self._database = _replace(self._path, error)
        except (OSError, sqlite3.Error) as error:
            raise NodeError(
                f"{self._path}: {error}", hint="free some space, or choose another --root"
            ) from error

    def close(self) -> None:
        self._database.close()

    def layers(self) -> list[KnownLayer]:
        """Those that the kernel may know from this connection."""
        rows = self._read(
            "SELECT inode, toc, layer, diff_id, sources FROM layers WHERE connection = ? ORDER BY inode",
            self._connection,
        )
        found = []
        for inode, toc, layer, diff_id, sources in rows:
            with self._skipped_where_damaged(f"device {inode}"):
                found.append(KnownLayer(inode, toc, json.loads(layer), diff_id, tuple(json.loads(sources))))
        return found

    def images(self) -> dict[str, dict[str, Any]]:
        """What was answered for those that were opened through this connection, by name."""
        rows = self._read("SELECT name, answer FROM images WHERE connection = ?", self._connection)
        found = {}
        for name, answer in rows:
            with self._skipped_where_damaged(name):
                found[name] = json.loads(answer)
        return found

    def digest(self, reference: str) -> str | None:
        """Of the manifest that was opened last under this reference, through whichever connection."""
        rows = self._read(
            "SELECT answer FROM images WHERE reference = ? ORDER BY rowid DESC LIMIT 1", reference
        )
        for (answer,) in rows:
            with self._skipped_where_damaged(reference):
                return str(json.loads(answer)["digest"])
        return None

    def put_layer(self, toc: str, layer: dict[str, Any], diff_id: str, source: str) -> int:
        """The number of the layer's device: the one that it always had, or a new one."""
        with self._writing() as database:
            row = database.execute("SELECT inode, sources FROM layers WHERE toc = ?", (toc,)).fetchone()
            others: list[str] = []
            if row is not None:
                with self._skipped_where_damaged(toc):
                    others = [str(each) for each in json.loads(row[1])]
            sources = [source, *(other for other in others if other != source)][:MAX_SOURCES]
            values = (json.dumps(layer), diff_id, json.dumps(sources), self._connection)
            if row is None:
                cursor = database.execute(
                    "INSERT INTO layers (layer, diff_id, sources, connection, toc) VALUES (?, ?, ?, ?, ?)",
                    (*values, toc),
                )
                return int(cursor.lastrowid or 0)
            database.execute(
                "UPDATE layers SET layer = ?, diff_id = ?, sources = ?, connection = ? WHERE inode = ?",
                (*values, row[0]),
            )
            return int(row[0])

    def put_image(self, name: str, reference: str, answer: dict[str, Any]) -> None:
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)",
                (name, reference, json.dumps(answer), self._connection),
            )

    def let_go(self, inode: int) -> None:
        """The kernel does not know this layer any more; nor is an image with it to be shown to whoever comes next.

        The number stays the layer's, and what an image's name meant is still known.
        """
        with self._writing() as database:
            database.execute("UPDATE layers SET connection = '' WHERE inode = ?", (inode,))
            database.execute(
                "UPDATE images SET connection = '' WHERE connection = ? AND EXISTS "
                "(SELECT 1 FROM json_each(answer, '$.layers') WHERE value = ?)",
                (self._connection, inode),
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._database:
                    yield self._database
            except sqlite3.Error as error:
                raise NodeError(
                    f"{self._path}: {error}", hint="free some space, or choose another --root"
                ) from error

    def _read(self, query: str, value: str) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, (value,)).fetchall()
        except sqlite3.Error as error:
            raise NodeError(
                f"{self._path}: {error}", hint="look at the disk, or choose another --root"
            ) from error

    @contextmanager
    def _skipped_where_damaged(self, name: str) -> Iterator[None]:
        """One row that SQLite finds nothing wrong with, and that says nothing, costs only what it is about."""
        try:
            yield
        except (ValueError, TypeError, KeyError) as error:
            log.error("%s: what it says of %s is damaged: %s", self._path, name, error)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    # A flipped bit costs the row that it is in.
    database.text_factory = lambda text: text.decode(errors="replace")
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise UnsupportedError(
                f"{path} is of version {version}, and this lazyfs knows {VERSION}",
                hint="use the newer lazyfs, or remove the file while nothing is mounted",
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if version < VERSION:
            # Inode 1 is the directory.
            first = "INSERT INTO sqlite_sequence VALUES ('layers', 1);"
            database.executescript(f"BEGIN; {_SCHEMA} {first} PRAGMA user_version = {VERSION}; COMMIT;")
        # Not quick_check: the index of TOCs must bear the numbers of devices out, by which the kernel reads.
        elif database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("the database is damaged")
    except BaseException:
        database.close()
        raise
    return database


def _replace(path: Path, reason: Exception) -> sqlite3.Connection:
    """Begin anew where the file is damaged, with numbers that cannot have been given before."""
    if isinstance(reason, sqlite3.OperationalError):
        raise reason  # a full disk, a lock: nothing that a new file would mend
    kept = path.with_name(f"{path.name}.damaged")
    log.error(
        "%s: %s; it is put aside as %s. What is mounted now cannot be read until it is mounted again",
        path, reason, kept.name,
    )  # fmt: skip
    path.replace(kept)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    database = _open(path)
    with database:
        database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'layers'", (int(time.time()),))
    return database
