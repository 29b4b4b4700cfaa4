"""How far the kernel reads ahead in files of a mount that are opened from now on.

While an image is launched with a pack, its EROFS mount reads ahead nothing: what the start touches is in the page
cache of the devices, page by page as it was recorded, and read-ahead would only ask for what lies beside it and is
not there. numpy: 200 reads of 8.4 MB that the start waited for, and none without.

The kernel numbers the settings of EROFS mounts (``/sys/class/bdi/erofs-<n>``) and tells nobody which is of which
mount. So it is found by what is new after the mount; another EROFS mount that is made at that very moment would be
slowed down for a while. Beside the mount point the name is kept, for whoever sets it back.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.errors import NodeError
from lazyfs.mount.mountinfo import mount_at

log = logging.getLogger(__name__)

DEFAULT_KIB = 128
_BDI = Path("/sys/class/bdi")
_EROFS = "erofs-"
_NOTE = ".bdi"


def set_read_ahead(target: Path, kib: int) -> None:
    """For the FUSE mount at `target`. Raises NodeError."""
    entry = mount_at(target)
    if entry is None:
        raise NodeError(f"nothing is mounted on {target}")
    try:
        (_BDI / entry.device / "read_ahead_kb").write_text(str(kib))
    except OSError as error:
        raise NodeError(f"read-ahead of {target}: {error.strerror}") from error


@contextmanager
def without_read_ahead(target: Path) -> Iterator[None]:
    """Switch it off for the EROFS mount that is made at `target` meanwhile."""
    before = _names()
    yield
    new = _names() - before
    name = new.pop() if len(new) == 1 else ""
    if name:
        _switch_off(target, name)


def switch_off_read_ahead(target: Path) -> None:
    """`without_read_ahead` for a mount of a block device, whose settings have its number."""
    entry = mount_at(target)
    if entry is not None:
        _switch_off(target, entry.device)


def without_any(directory: Path) -> list[str]:
    """The names of the mount points in `directory` that `without_read_ahead` has changed."""
    return [path.name.removeprefix(".").removesuffix(_NOTE) for path in directory.glob(f".*{_NOTE}")]


def restore_read_ahead(target: Path) -> None:
    """Undo `without_read_ahead`, or `switch_off_read_ahead`. Needs root."""
    try:
        name = _note(target).read_text()
        _note(target).unlink()
    except OSError:
        return
    if (_BDI / name).exists():
        _write(name, DEFAULT_KIB)


def _switch_off(target: Path, name: str) -> None:
    if not _write(name, 0):
        return
    try:
        _note(target).write_text(name)
    except OSError as error:
        log.warning("%s: %s", _note(target), error.strerror)


def _note(target: Path) -> Path:
    return target.with_name(f".{target.name}{_NOTE}")


def _names() -> set[str]:
    try:
        return {entry.name for entry in _BDI.iterdir() if entry.name.startswith(_EROFS)}
    except OSError:
        return set()


def _write(name: str, kib: int) -> bool:
    try:
        (_BDI / name / "read_ahead_kb").write_text(str(kib))
    except OSError as error:
        log.warning("read-ahead of %s: %s", name, error.strerror)
        return False
    return True
