"""Passwords that engines used for a pull, kept so that bytes can be read later: a file as `skopeo login` writes it.

One entry per repository, since Kubernetes gives a password for a pull and not for a registry. The file is the node's
own, for the daemon alone, and is read anew for each token: a later pull renews what has expired.
"""

import base64
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lazyfs.beneath import read_beneath
from lazyfs.errors import NodeError
from lazyfs.stores.registry.credentials import Credentials
from lazyfs.stores.registry.names import RepositoryName

MAX_ENTRIES = 1000
_MAX_FILE = 4 << 20


Entry = dict[str, Any]


def keep_credentials(path: Path, repository: RepositoryName, credentials: Credentials) -> Entry | None:
    """Keep what may open ``repository``, instead of what did before, which is returned; for `take_back`.

    The oldest entries go when there are too many.
    """
    entry = _entry(credentials)
    with _held(path) as auths:
        before: Entry | None = auths.pop(str(repository), None)
        auths[str(repository)] = entry
        for oldest in list(auths)[:-MAX_ENTRIES]:
            del auths[oldest]
    return before


def take_back(path: Path, repository: RepositoryName, credentials: Credentials, before: Entry | None) -> None:
    """These did not open it: what did before is right, unless others came meanwhile."""
    with _held(path) as auths:
        if auths.get(str(repository)) == _entry(credentials):
            del auths[str(repository)]
            if before is not None:
                auths[str(repository)] = before


def _entry(credentials: Credentials) -> Entry:
    values = {"identitytoken": credentials.identity_token, "registrytoken": credentials.registry_token}
    if credentials.user:
        text = f"{credentials.user}:{credentials.password}"
        values["auth"] = base64.b64encode(text.encode()).decode()
    return {name: value for name, value in values.items() if value}


@contextmanager
def _held(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of the file, written back at the end of the block; by one process at a time."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _private(path.with_name(f".{path.name}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            auths = _read(path)
            yield auths
            temporary = path.with_name(f".{path.name}.new")
            temporary.unlink(missing_ok=True)
            with _private(temporary, os.O_EXCL) as file:
                file.write(json.dumps({"auths": auths}).encode())
            temporary.replace(path)
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}", hint="free some space, or run as root") from error


def _private(path: Path, flags: int = 0) -> Any:
    """Opened to read and write; it is for the owner of its directory alone, who may be another than we.

    We may be root, so nothing that the owner has put there is followed, nor is another's file given to him.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
    owner, status = path.parent.stat(), os.fstat(file.fileno())
    if status.st_uid != owner.st_uid:
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            file.close()
            raise OSError(errno.EPERM, "it is not of who owns the directory", str(path))
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    return file


def _read(path: Path) -> dict[str, Any]:
    """What is kept; nothing where the file is not as we write it."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        auths = json.loads(read_beneath(path.parent, path.name, _MAX_FILE)).get("auths")
        if isinstance(auths, dict):
            return auths
    return {}
