"""Which pages of a device the kernel has asked for: what fetching is held against."""

PAGE = 4096


class Touched:
    """One byte per page. Marked by one thread; counted by any."""

    def __init__(self, size: int) -> None:
        self._pages = bytearray(-(-size // PAGE))

    def mark(self, offset: int, end: int) -> None:
        first, stop = offset // PAGE, -(-end // PAGE)
        self._pages[first:stop] = b"\1" * (stop - first)

    def was(self, offset: int, end: int) -> bool:
        """Whether any page of [offset, end) was asked for."""
        return self._pages.find(1, offset // PAGE, -(-end // PAGE)) >= 0

    def bytes(self) -> int:
        return self._pages.count(1) * PAGE
