"""Who the container's process is: User of the image config, or ``--user``, by the image's own files.

The rules are docker's: ``user[:group]``, either as name or number. A number needs no entry. Without
a group it is the one of the passwd entry (0 where there is none), and the groups of /etc/group that
list the user come on top; with a group there are no others.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import BadInputError, LimitError, NodeError, NotFoundError, UsageError
from lazyfs.run.kernel import open_in_root

_MAX_ID = (1 << 31) - 1  # what runtimes take
_MAX_FILE = 8 << 20
_MAX_GROUPS = 65536  # NGROUPS_MAX


@dataclass(frozen=True, slots=True)
class Identity:
    """``groups`` are the supplementary ones; ``home`` is "/" for a user without an entry."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve_user(root: int, user: str) -> Identity:
    """The identity that ``user`` names in the root file system with directory descriptor ``root``."""
    name, colon, group = user.partition(":")
    if colon and not group:
        raise UsageError(f"user {user!r} names no group after the colon", hint="write USER or USER:GROUP")
    entry = _find_user(_records(root, "/etc/passwd", 7), name or "0")
    if entry is None:
        uid = _number(name or "0", "user", "/etc/passwd")
        login, gid, home = "", 0, ""
    else:
        login, uid, gid, home = entry
    groups: tuple[int, ...] = ()
    if group:
        gid = _find_group(root, group)
    elif login:
        groups = _memberships(root, login)
    return Identity(uid, gid, groups, home or "/")


def _find_user(records: list[list[str]], wanted: str) -> tuple[str, int, int, str] | None:
    """The entry of that name, else the first of that number: (name, uid, gid, home)."""
    entries = [
        (record[0], int(record[2]), int(record[3]), record[5])
        for record in records
        if _is_id(record[2]) and _is_id(record[3])
    ]
    by_name = [entry for entry in entries if entry[0] == wanted]
    by_number = [entry for entry in entries if _is_id(wanted) and entry[1] == int(wanted)]
    return next(iter(by_name + by_number), None)


def _find_group(root: int, wanted: str) -> int:
    for record in _records(root, "/etc/group", 4):
        if record[0] == wanted and _is_id(record[2]):
            return int(record[2])
    return _number(wanted, "group", "/etc/group")


def _memberships(root: int, login: str) -> tuple[int, ...]:
    found = {
        int(record[2]): None
        for record in _records(root, "/etc/group", 4)
        if _is_id(record[2]) and login in record[3].split(",")
    }
    if len(found) > _MAX_GROUPS:
        raise LimitError(f"user {login} is in {len(found)} groups, the kernel takes {_MAX_GROUPS}")
    return tuple(found)


def _number(text: str, kind: str, file: str) -> int:
    if not _is_id(text):
        raise NotFoundError(
            f"{kind} {text!r} is not in the image's {file}",
            hint=f"give a number: --user UID or --user UID:GID, or a {kind} of the image",
        )
    return int(text)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID


def _records(root: int, path: str, fields: int) -> list[list[str]]:
    """The lines of a colon-separated file that have all ``fields``; none where there is no file."""
    try:
        text = _content(root, path).decode(errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise NodeError(f"cannot read the image's {path}: {error.strerror}") from error
    split = (line.strip().split(":") for line in text.split("\n"))
    return [record for record in split if len(record) >= fields]


def _content(root: int, path: str) -> bytes:
    # O_PATH first: to open a device or a fifo that an image has there could do anything, or wait.
    found = open_in_root(root, path, os.O_PATH)
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(f"the image's {path} is not a regular file")
        if status.st_size > _MAX_FILE:
            raise LimitError(f"the image's {path} is larger than {_MAX_FILE} bytes")
        with Path(f"/proc/self/fd/{found}").open("rb") as file:
            return file.read(_MAX_FILE)
    finally:
        os.close(found)
