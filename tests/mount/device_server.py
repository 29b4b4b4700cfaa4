"""A FUSE front with synthetic devices, in a process of its own: `python -m tests.mount.device_server TARGET [FD]`:
with a descriptor from `open_and_mount` it serves what is mounted already; with `old` behind it as on a kernel that
repeats no requests. `LAZYFS_TEST_DEVICES` holds the devices that it has from its first request on, as `Commands.add`
takes them, in JSON.

Takes commands as lines of JSON on stdin (`{"do": name, ...}`, see `Commands`) and answers each with
one on stdout. Ends, and unmounts, at the end of stdin or when unmounted.
"""

import errno
import json
import logging
import os
import select
import struct
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from lazyfs.errors import NotFoundError, StoreError
from lazyfs.mount import attach
from lazyfs.mount.attach import serve
from lazyfs.mount.connection import open_and_mount
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.fuse import store_pages
from lazyfs.mount.image_files import ImageFiles
from lazyfs.mount.syscalls import unmount
from tests.mount.pattern import pattern

# What a part of a device can be: at hand, to be fetched, never answered until released, failing, or faulty.
PRESENT, MISSING, STUCK, FAILING, ABSENT, SHORT, CRASHING, LONG = (
    "present", "missing", "stuck", "failing", "absent", "short", "crashing", "long",
)  # fmt: skip

PATIENCE = 60.0
_FETCHERS = ThreadPoolExecutor(8)


@dataclass
class SyntheticDevice:
    """Bytes of a pattern or of a file; ``parts`` are (start, end, state), the first that fits counts."""

    size: int
    seed: int = 0
    path: str = ""
    parts: list[tuple[int, int, str]] = field(default_factory=list)
    requests: int = 0
    waiting: list["tuple[Future[bytes], int, int]"] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def state(self, offset: int, length: int) -> str:
        found = (state for start, end, state in self.parts if start < offset + length and offset < end)
        return next(found, PRESENT)

    def content(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if not self.path:
            return pattern(self.seed, offset, length)
        with Path(self.path).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def peek(self, offset: int, length: int) -> bytes | None:
        return self.content(offset, length) if self.state(offset, length) == PRESENT else None

    def request(self, offset: int, length: int) -> "Future[bytes]":
        with self.changed:
            self.requests += 1
            if self.state(offset, length) == STUCK:
                future: Future[bytes] = Future()
                self.waiting.append((future, offset, length))
                self.changed.notify_all()
                return future
        return _FETCHERS.submit(self.fetch, offset, length)

    def fetch(self, offset: int, length: int) -> bytes:
        match self.state(offset, length):
            case "failing":
                raise StoreError("the store does not answer")
            case "absent":
                raise NotFoundError("the blob is gone")
            case "crashing":
                raise ZeroDivisionError("a mistake in the program")
            case "short":
                return self.content(offset, length)[:-1]
            case "long":
                return self.content(offset, length) + b"!"
        return self.content(offset, length)

    def release(self) -> int:
        with self.changed:
            waiting, self.waiting = self.waiting, []
        for future, offset, length in waiting:
            future.set_result(self.content(offset, length))
        return len(waiting)


class Thief(trio.abc.Instrument):
    """Takes a request away between the poll that announced it and the read, as a killed reader does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.armed = False
        self.stolen = threading.Event()

    def after_io_wait(self, timeout: float) -> None:
        if self.armed and select.select([self._descriptor], [], [], 0)[0]:
            self.armed = False
            request = os.read(self._descriptor, 1 << 21)
            (unique,) = struct.unpack_from("<Q", request, 8)
            os.write(self._descriptor, struct.pack("<IiQ", 16, -errno.ENOENT, unique))
            self.stolen.set()


class Commands:
    """What the tests may ask of the server; called in a thread, with the trio loop in another."""

    def __init__(self, table: DeviceTable, thief: Thief, stop: Any) -> None:
        self.devices: dict[str, SyntheticDevice] = {}
        self.reads: list[tuple[int, int, int, bool]] = []
        self._table = table
        self._thief = thief
        self._stop = stop

    def add(self, inode: int, name: str, **device: Any) -> None:
        self.devices[name] = SyntheticDevice(**device)
        self._table.add(inode, name, self.devices[name])

    def add_broken_tree(self, base: int, name: str) -> None:
        """An image whose files cannot be shown, since there is a mistake in the program."""

        def files() -> ImageFiles:
            raise ZeroDivisionError("a mistake in the program")

        self._table.add_tree(base, name, files)

    def hold_opens(self) -> None:
        """From now on there is something to be done before an open is answered, and it comes to no end."""
        self._table.watch_opens(0, lambda _: threading.Event().wait)

    def remove(self, name: str) -> None:
        self._table.remove(name)

    def known(self, inode: int) -> bool:
        return self._table.numbered(inode) is not None

    def set_parts(self, name: str, parts: list[tuple[int, int, str]]) -> None:
        self.devices[name].parts = parts

    def wait_for_readers(self, name: str, count: int) -> int:
        device = self.devices[name]
        with device.changed:
            device.changed.wait_for(lambda: len(device.waiting) >= count, timeout=PATIENCE)
            return len(device.waiting)

    def release(self, name: str) -> int:
        return self.devices[name].release()

    def requests(self, name: str) -> int:
        return self.devices[name].requests

    def store(self, inode: int, offset: int, size: int) -> None:
        """Give pages to the kernel from a thread, which waits for a page that somebody reads."""
        data = pattern(0, offset, size)
        threading.Thread(target=store_pages, args=(inode, offset, data), name="store", daemon=True).start()

    def take_reads(self) -> list[tuple[int, int, int, bool]]:
        reads, self.reads[:] = list(self.reads), []
        return reads

    def arm_thief(self) -> None:
        self._thief.stolen.clear()
        self._thief.armed = True

    def stolen(self) -> bool:
        return self._thief.stolen.wait(PATIENCE)

    def stop(self) -> None:
        """End serving as a daemon that is told to: the mount stays, readers are left waiting."""
        self._stop()


async def main(target: Path, descriptor: int | None) -> None:
    table = DeviceTable()
    if descriptor is None:
        descriptor = open_and_mount(target)
    thief = Thief(descriptor)
    async with trio.open_nursery() as nursery:
        token = trio.lowlevel.current_trio_token()
        commands = Commands(table, thief, lambda: token.run_sync_soon(nursery.cancel_scope.cancel))

        def observe(inode: int, offset: int, size: int, waited: bool) -> None:
            commands.reads.append((inode, offset, size, waited))

        for device in json.loads(os.environ.get("LAZYFS_TEST_DEVICES", "[]")):
            commands.add(**device)
        trio.lowlevel.add_instrument(thief)
        await nursery.start(partial(serve, descriptor, table, observe))
        threading.Thread(target=obey, args=(commands, target), daemon=True).start()
    os.close(descriptor)


def obey(commands: Commands, target: Path) -> None:
    answer(None)
    for line in sys.stdin:
        arguments = json.loads(line)
        answer(getattr(commands, arguments.pop("do"))(**arguments))
    unmount(target, detach=True)


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if sys.argv[3:] == ["old"]:
        setattr(attach, "ask_again", lambda _: False)  # noqa: B010 - it is not its own to export
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
