"""Mounting the FUSE front, and serving it.

Mounting needs root; serving needs nothing but the descriptor. So they are apart: one process can
hold the mount while others serve it, one after another.

Never touch the mounted files from a process that serves them: if it is killed meanwhile, it waits
for its own answer with the descriptor still open, and neither it nor a reader ever gets away.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pyfuse3
import trio

from lazyfs.errors import LazyfsError, NodeError, NotFoundError, UnsupportedError
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.fuse import DeviceFiles, ReadObserver
from lazyfs.mount.mountinfo import mount_at
from lazyfs.mount.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, detached_mount, mount

log = logging.getLogger(__name__)

FUSE_KIND = "fuse.lazyfs"

# KiB that the kernel reads ahead on device files. 2 cores, a 309 MB device below EROFS, every byte local:
#
#     KiB                                        128    256    512   1024   4096
#     sequential read of a device file, GB/s     1.0    1.5    2.3    2.0    2.5
#     cold tar of the tree, s                   0.42   0.30   0.25   0.25   0.45
#     cold import of numpy, MB read from here     29     34     35     39     51
#     ... fetched in 256 KiB chunks, MB           45     47     49     52
#
# On simulated links (100 Mbit/s 20 ms, 1 Gbit/s 2 ms) the import takes the same time with any of them.
READ_AHEAD_KIB = 512

# How many reads ahead may wait in the server. With the kernel's 12, twelve reads of missing data keep
# every reader of the node from what is on its disk.
MAX_BACKGROUND = 512

# Tasks that take requests: a waiting one costs some 10 KB. There must be more than MAX_BACKGROUND, since
# reads that are not ahead of anyone, opens and lookups come on top. How many stay idle makes no difference
# (16 readers of 64 KiB pieces with 1, 2, 4 and 32: 54 us of CPU per read, all of them).
IDLE_TASKS = 2
MAX_TASKS = 4 * MAX_BACKGROUND


def open_and_mount(target: Path) -> int:
    """Mount a FUSE front on the directory ``target``; returns the descriptor to `serve` it on.

    Readers wait until it is served. When the last copy of the descriptor is closed, they get errors
    (ENOTCONN) until it is unmounted.
    """
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnsupportedError("this kernel has no FUSE", hint="modprobe fuse") from error
    except OSError as error:
        raise NodeError(f"/dev/fuse: {error.strerror}", hint="mounting needs root") from error
    # allow_other: containers of any user read the devices, through EROFS. Only root can open them.
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        mount("lazyfs", target, FUSE_KIND, flags, options.encode(), what=f"devices on {target}")
    except LazyfsError:
        os.close(fd)
        raise
    return fd


def tune(target: Path) -> None:
    """Set read-ahead and limits of the front mounted on ``target``, once `serve` has started.

    Not before: the kernel lowers the read-ahead to what was asked for in its first request. Does
    not touch the mounted files. Without these settings reads are slower, not wrong, so a failure is
    logged only.
    """
    entry = mount_at(target)
    if entry is None or entry.kind != FUSE_KIND:
        raise NotFoundError(f"no FUSE front is mounted on {target}")
    try:
        Path("/sys/class/bdi", entry.device, "read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        _set_limits(connection=entry.device.partition(":")[2])
    except (OSError, LazyfsError) as error:
        log.warning("cannot tune the FUSE mount on %s: %s", target, error)


async def serve(
    fd: int,
    table: DeviceTable,
    observer: ReadObserver | None = None,
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``table`` on a descriptor from `open_and_mount` until cancelled or unmounted.

    Starts (``nursery.start``) when the kernel's first request is answered. The descriptor stays the
    caller's: requests that were not answered when this is cancelled wait for the next server as
    long as it is open. pyfuse3 has one session per process, so this runs once at a time.
    """
    own = os.dup(fd)
    # A request that is taken back between poll and read would block the loop, and with it every reader.
    os.set_blocking(own, False)
    files = DeviceFiles(table, observer)
    try:
        pyfuse3.init(files, f"/dev/fd/{own}", set())
    except RuntimeError as error:
        os.close(own)
        raise NodeError(f"libfuse does not take descriptor {fd}: {error}") from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer_requests, nursery.cancel_scope)
            await files.initialized.wait()
            task_status.started()
    finally:
        pyfuse3.close(unmount=False)


async def _answer_requests(scope: trio.CancelScope) -> None:
    await pyfuse3.main(IDLE_TASKS, MAX_TASKS)
    scope.cancel()


_session_loop: Callable[..., Awaitable[None]] = pyfuse3._session_loop  # type: ignore[attr-defined]


async def _patient_session_loop(*arguments: object) -> None:
    """pyfuse3's worker task, going on where there was nothing to read after all (see `serve`).

    pyfuse3 3.5 takes EAGAIN for a fatal error. Each time it leaks its buffer, of which a read
    request has touched a page.
    """
    while True:
        try:
            return await _session_loop(*arguments)
        except BlockingIOError:
            log.debug("a request was taken back before it was read")


pyfuse3._session_loop = _patient_session_loop  # type: ignore[attr-defined]


def _set_limits(connection: str) -> None:
    """By a mount of our own of the FUSE control file system: not every machine has one, and none sees this."""
    control = detached_mount("fusectl")
    try:
        for name, value in (
            ("max_background", MAX_BACKGROUND),
            ("congestion_threshold", MAX_BACKGROUND * 3 // 4),
        ):
            limit = os.open(f"{connection}/{name}", os.O_WRONLY, dir_fd=control)
            try:
                os.write(limit, b"%d" % value)
            finally:
                os.close(limit)
    finally:
        os.close(control)
