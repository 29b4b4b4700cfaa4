"""The FUSE front: one read-only directory of device files, for the kernel's EROFS to read, and of image trees.

A tree is for a kernel without an EROFS that could be used: there every call that is not answered from what the
kernel remembers comes here.

This is the adapter between pyfuse3 and `DeviceTable`, and the only trio code of a node together
with `attach`. A read is answered from the local cache inline (`peek`: a pread, no waiting); what is
missing is asked for (`request`), and the reader's task sleeps until the future of the fetch is
done: no thread waits, and other readers are served meanwhile.

What must hold here:

- A reply is complete or an error. The kernel fills the rest of a page with zeros after a short
  read and keeps the page, so bytes that a device owes and does not give are EIO.
- No exception but FUSEError leaves a handler: it would end the loop that serves every device.
- Devices never change, so the kernel may keep names, attributes and pages for ever. What a
  removal changes is told to the kernel.
- The file handle is the inode number, so that files that were opened through a predecessor of
  this process can be read through this one.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.mount import tree_files
from lazyfs.mount.device_table import ROOT_INODE, Device, DeviceTable
from lazyfs.mount.tree_files import FOR_EVER
from lazyfs.node.device import AskForLessError

log = logging.getLogger(__name__)

# (inode, offset, size, waited): called in the loop after each answered read, so it must be quick.
ReadObserver = Callable[[int, int, int, bool], None]

OPEN_SECONDS = 0.5
"""How long an open waits for pages that are given to the kernel, so that they need not be read."""
GIVERS = 8
"""Threads that give them."""

P = ParamSpec("P")
T = TypeVar("T")


def _answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make an error of whatever goes wrong: it would end the loop, and the next daemon be asked the same."""

    @wraps(handler)
    async def answering(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except pyfuse3.FUSEError:
            raise
        except LazyfsError as error:
            log.error("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except Exception as error:
            log.exception("%s", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answering


class DeviceFiles(pyfuse3.Operations):
    """The devices of a table as files: mode 0400 in a directory of mode 0500, all root's."""

    # The kernel keeps to the access control lists of image trees.
    enable_acl = True

    def __init__(self, table: DeviceTable, observer: ReadObserver | None = None) -> None:
        super().__init__()
        self._table = table
        self._observer = observer
        self._failing: dict[int, str] = {}
        self._givers = trio.CapacityLimiter(GIVERS)
        self.initialized = trio.Event()
        table.watch_removals(_forget_name)

    def init(self) -> None:
        """Called while the kernel's first request is handled; the reply is out before any task runs on."""
        self.initialized.set()

    @_answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        tree = self._table.tree(parent_inode)
        if tree is not None:
            return tree_files.lookup(tree, parent_inode, name)
        if name in (b".", b".."):
            return _directory_attributes()
        device = self._table.named(name)
        if device is None:
            tree = self._table.tree_named(name)
            if tree is not None:
                return tree_files.entry(tree.attributes(tree.root))
            # ENOENT, not an entry with inode 0: the kernel would keep that, and a device added
            # later would not be seen.
            raise pyfuse3.FUSEError(errno.ENOENT)
        return _device_attributes(device)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept for what the kernel has looked up: a number means the same device always."""

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if inode == ROOT_INODE:
            return _directory_attributes()
        tree = self._table.tree(inode)
        if tree is not None:
            with tree_files.stale_numbers():
                return tree_files.entry(tree.attributes(inode))
        device = self._table.numbered(inode)
        if device is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return _device_attributes(device)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def releasedir(self, fh: int) -> None:
        pass

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        tree = self._table.tree(fh)
        if tree is not None:
            tree_files.list_directory(tree, fh, start_id, token)
            return
        for device in self._table.listing():
            if device.inode > start_id and not pyfuse3.readdir_reply(
                token, device.name, _device_attributes(device), device.inode
            ):
                break

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        tree = self._table.tree(inode)
        with tree_files.stale_numbers():
            if tree is None:
                raise KeyError(inode)
            return tree.target(inode)

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        tree = self._table.tree(inode)
        if tree is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return tree_files.xattr(tree, inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        tree = self._table.tree(inode)
        with tree_files.stale_numbers():
            return [name for name, _ in tree.xattrs(inode)] if tree is not None else []

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        if self._table.opened(inode) is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        first = self._table.before_open(inode)
        if first is not None:
            # For pages of the file, of which one may be locked by a read that waits for a store.
            with trio.move_on_after(OPEN_SECONDS):
                await trio.to_thread.run_sync(first, abandon_on_cancel=True, limiter=self._givers)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_answered
    async def release(self, fh: int) -> None:
        self._table.released(fh)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        device = self._table.numbered(fh)
        if device is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        try:
            return await self._read(device, off, min(size, device.content.size - off))
        except AskForLessError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except LazyfsError as error:
            self._log_once(device, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except Exception as error:
            log.exception("device %s: reading %d bytes at %d", os.fsdecode(device.name), size, off)
            raise pyfuse3.FUSEError(errno.EIO) from error

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        devices = self._table.listing()
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = 4096
        reply.f_blocks = sum(-(-device.content.size // 4096) for device in devices)
        reply.f_files = len(devices)
        reply.f_namemax = 255
        return reply

    async def _read(self, device: Device, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        data = device.content.peek(offset, size)
        waited = data is None
        if data is None:
            data = await _result(device.content.request(offset, size))
            self._failing.pop(device.inode, None)
        if len(data) != size:
            raise NodeError(f"{len(data)} bytes instead of {size} at {offset}")
        if self._observer is not None:
            self._observer(device.inode, offset, size, waited)
        return data

    def _log_once(self, device: Device, error: LazyfsError) -> None:
        """One line per cause: an unreachable store fails thousands of reads the same way."""
        if self._failing.get(device.inode) != error.message:
            self._failing[device.inode] = error.message
            log.error("device %s: %s", os.fsdecode(device.name), error)


async def _result(future: "Future[bytes]") -> bytes:
    """The result of a future of another thread; the waiting task can be cancelled at any time."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: "Future[bytes]") -> None:
        # The loop may have ended: then nobody waits any more, and the fetch was for the cache alone.
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    await done.wait()
    return future.result()


def store_pages(inode: int, offset: int, data: bytes) -> bool:
    """Put bytes of a device where the kernel reads them, as if it had asked; whole pages (the end may be short).

    False where the kernel does not know the device, since nobody has looked it up. Only for worker threads:
    a page that somebody waits for is locked until the loop has answered, and this waits for it.
    """
    try:
        pyfuse3.notify_store(inode, offset, data)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("device %d: storing %d bytes at %d: %s", inode, len(data), offset, error)
        return False
    return True


def _directory_attributes() -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = ROOT_INODE
    attributes.st_mode = stat.S_IFDIR | 0o500
    attributes.st_nlink = 2
    attributes.entry_timeout = attributes.attr_timeout = FOR_EVER
    return attributes


def _device_attributes(device: Device) -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = device.inode
    attributes.st_mode = stat.S_IFREG | 0o400
    attributes.st_size = device.content.size
    attributes.st_blocks = -(-device.content.size // 512)
    attributes.entry_timeout = attributes.attr_timeout = FOR_EVER
    return attributes


def _forget_name(device: Device) -> None:
    """Make the kernel drop the name, which it would keep for ever; a thread of pyfuse3's does it."""
    pyfuse3.invalidate_entry_async(ROOT_INODE, device.name, device.inode, ignore_enoent=True)
