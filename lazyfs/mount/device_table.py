"""Which device files the FUSE front shows: inode number, name and content of each.

The table knows nothing of FUSE. Any thread may add and remove devices while readers use them; the
loop that answers the kernel asks it for every request, so nothing in here waits for anything.

Inode numbers come from the caller, who keeps them on disk: a daemon that takes over from a dead one
finds the kernel still holding inodes and open files by these numbers, and caching pages under them.
So a number belongs to one immutable content for ever and is never given to another, not even after
the device was removed; `DeviceTable.add` refuses what it can see of that.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazyfs.errors import BusyError, NotFoundError, UsageError
from lazyfs.mount.image_files import ImageFiles, view_of

if TYPE_CHECKING:
    from lazyfs.node.device import RandomAccess

Work = Callable[[], object]

ROOT_INODE = 1
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Device:
    """One device file: ``name`` in the directory, ``content`` behind it."""

    inode: int
    name: bytes
    content: "RandomAccess"


class DeviceTable:
    """The thread-safe registry of device files.

    A removed device disappears from the directory at once; who had it open reads on until the
    last release. Opens are counted since this table was made, so a device that was opened through
    a predecessor must not be removed while a mount still uses it: the caller knows its mounts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[bytes, Device] = {}
        self._by_inode: dict[int, Device] = {}
        self._opens: dict[int, int] = {}
        self._is_open: dict[int, threading.Event] = {}
        self._bound: dict[int, tuple[bytes, int]] = {}
        self._trees: dict[int, tuple[bytes, Callable[[], ImageFiles]]] = {}
        self._at_open: dict[int, Callable[[int], Work | None]] = {}
        self._watchers: list[Callable[[Device], None]] = []

    def add(self, inode: int, name: str, content: "RandomAccess") -> None:
        """Show ``content`` as file ``name`` with number ``inode``.

        Raises `BusyError` if the name is shown already, `UsageError` if the name is not a file
        name or the number is, or was, another device's.
        """
        raw = name.encode()
        if not raw or len(raw) > MAX_NAME or raw in (b".", b"..") or b"/" in raw or b"\0" in raw:
            raise UsageError(f"{name!r} cannot be the name of a device file")
        if inode <= ROOT_INODE:
            raise UsageError(f"device {name}: inode number {inode} is reserved")
        with self._lock:
            if raw in self._by_name:
                raise BusyError(f"device {name} is there already")
            if self._bound.setdefault(inode, (raw, content.size)) != (raw, content.size):
                raise UsageError(f"device {name}: inode number {inode} belonged to another device")
            device = Device(inode, raw, content)
            self._by_name[raw] = device
            self._by_inode[inode] = device

    def add_tree(self, base: int, name: str, files: Callable[[], ImageFiles]) -> None:
        """Show an image's files below directory ``name``; ``files`` is called for each request, maybe for the
        first one only by who takes over. The numbers are ``base`` (see `view_base`) and what follows it.

        Raises `UsageError` if these are another image's.
        """
        raw = name.encode()
        with self._lock:
            if self._trees.setdefault(base, (raw, files))[0] != raw:
                raise UsageError(f"image {name}: its inode numbers are those of another one")

    def remove_tree(self, base: int) -> None:
        """Show the image no more. Its numbers stay its own: they come of what it holds."""
        with self._lock:
            self._trees.pop(base, None)
            self._at_open.pop(base, None)

    def watch_opens(self, base: int, watcher: Callable[[int], Work | None]) -> None:
        """When a file of the tree ``base`` is opened, ask ``watcher`` what a thread is to do before the answer."""
        with self._lock:
            self._at_open[base] = watcher

    def before_open(self, inode: int) -> Work | None:
        """What is to be done before an open is answered, by a thread that may wait."""
        watcher = self._at_open.get(view_of(inode))
        return watcher(inode) if watcher is not None else None

    def remove(self, name: str) -> None:
        """Take ``name`` out of the directory. Raises `NotFoundError` if it is not there."""
        with self._lock:
            device = self._by_name.pop(name.encode(), None)
            if device is None:
                raise NotFoundError(f"there is no device {name}")
            if not self._opens.get(device.inode):
                del self._by_inode[device.inode]
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher(device)

    def watch_removals(self, watcher: Callable[[Device], None]) -> None:
        """Call ``watcher`` after each removal, in the thread that removes."""
        with self._lock:
            self._watchers.append(watcher)

    def named(self, name: bytes) -> Device | None:
        return self._by_name.get(name)

    def numbered(self, inode: int) -> Device | None:
        """The device of this number: shown in the directory, or removed and still open; or a file of a tree."""
        device = self._by_inode.get(inode)
        tree = self.tree(inode) if device is None else None
        if tree is None:
            return device
        try:
            return Device(inode, b"file %d of an image" % (inode - tree.root), tree.content(inode))
        except KeyError:
            return None

    def tree(self, inode: int) -> ImageFiles | None:
        """The image that has a file or directory of this number."""
        found = self._trees.get(view_of(inode))
        return found[1]() if found is not None and inode not in self._by_inode else None

    def tree_named(self, name: bytes) -> ImageFiles | None:
        return next((files() for known, files in list(self._trees.values()) if known == name), None)

    def listing(self) -> list[Device]:
        """All devices in the directory, by inode number."""
        with self._lock:
            return sorted(self._by_name.values(), key=lambda device: device.inode)

    def opened(self, inode: int) -> Device | None:
        """Count one more open of the device; None if it is not in the directory."""
        if self.tree(inode) is not None:  # its files stay; nobody has to know who has them open
            return self.numbered(inode)
        with self._lock:
            device = self._by_inode.get(inode)
            if device is None or self._by_name.get(device.name) is not device:
                return None
            self._opens[inode] = self._opens.get(inode, 0) + 1
            self._is_open.setdefault(inode, threading.Event()).set()
            return device

    def wait_opened(self, inode: int, seconds: float) -> bool:
        """Wait until the kernel has the device open through this table; has it?"""
        with self._lock:
            event = self._is_open.setdefault(inode, threading.Event())
        return event.wait(seconds)

    def released(self, inode: int) -> None:
        """Count one open less; a removed device goes with its last one."""
        if view_of(inode) in self._trees and inode not in self._by_inode:
            return
        with self._lock:
            opens = self._opens.get(inode, 0) - 1
            if opens > 0:
                self._opens[inode] = opens
                return
            self._opens.pop(inode, None)
            self._is_open.setdefault(inode, threading.Event()).clear()
            device = self._by_inode.get(inode)
            if device is not None and self._by_name.get(device.name) is not device:
                del self._by_inode[inode]
