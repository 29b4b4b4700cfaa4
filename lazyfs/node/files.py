"""Small files of a node, written whole or not at all."""

import threading
from contextlib import suppress
from pathlib import Path

from lazyfs.errors import NodeError

TORN = ".new-"
"""What the name of a file begins with that is not written to its end."""


def write_new(path: Path, data: bytes | bytearray) -> None:
    """Make or replace a file. NodeError when the disk does not take it; what was there before is there still.

    What such files hold is checked, or rebuilt after a reboot, so nothing is synced.
    """
    temporary = path.with_name(f"{TORN}{path.name}.{threading.get_ident()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise NodeError(
            f"{path}: {error.strerror}", hint="free some space, or choose another --root"
        ) from error


def remove_torn(directory: Path) -> None:
    """What a process that was killed had not written to its end."""
    for file in directory.glob(f"{TORN}*"):
        file.unlink(missing_ok=True)
