"""Which layers the kernel has mounted from their data files, so that nothing of them may be dropped."""

from contextlib import suppress
from pathlib import Path


class Hold:
    """Counted. A mount outlives the daemon that made it, so a file with the boot id speaks for it until the next boot.

    Whoever calls holds the lock of the `LayerCache`.
    """

    def __init__(self, directory: Path, boot: bytes) -> None:
        self._mark = directory / "held"
        self._boot = boot
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def load(self) -> None:
        """Take over what a daemon before this one held."""
        with suppress(FileNotFoundError):
            self._count = int(self._mark.read_bytes() == self._boot)

    def take(self) -> None:
        """Raises OSError when the mark cannot be made; nothing is held then."""
        if not self._count:
            self._mark.write_bytes(self._boot)
        self._count += 1

    def give_back(self) -> None:
        self._count -= 1
        if not self._count:
            with suppress(OSError):
                self._mark.unlink()
