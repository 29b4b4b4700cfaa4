"""Serving a FUSE connection that somebody else has mounted, first or as the successor of a server that died.

libfuse begins with the kernel's first request, which the kernel sends once and which is answered long since
(`connection`). So the server is started on one end of a socket pair, is given a first request made by hand,
and then finds the real descriptor under the number of the socket. The kernel is asked to repeat what an
earlier server had taken and not answered, so no reader notices that there was one. Before Linux 6.9, which cannot
repeat, those readers get errors (`put_own_queue`).

Never touch the mounted files from a process that serves them: if it is killed meanwhile, it waits
for its own answer with the descriptor still open, and neither it nor a reader ever gets away.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from lazyfs.errors import NodeError
from lazyfs.mount.connection import (
    MAX_BACKGROUND,
    ask_again,
    check_answer,
    first_request,
    put_own_queue,
)
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.fuse import DeviceFiles, ReadObserver

log = logging.getLogger(__name__)

# Tasks that take requests: a waiting one costs some 10 KB. There must be more than MAX_BACKGROUND, since
# reads that are not ahead of anyone, opens and lookups come on top. How many stay idle makes no difference
# (16 readers of 64 KiB pieces with 1, 2, 4 and 32: 54 us of CPU per read, all of them).
IDLE_TASKS = 2
MAX_TASKS = 4 * MAX_BACKGROUND

_ANSWER = 4096


async def serve(
    fd: int,
    table: DeviceTable,
    observer: ReadObserver | None = None,
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``table`` on a descriptor from `open_and_mount` until cancelled or unmounted.

    Starts (``nursery.start``) when requests are answered. The descriptor stays the caller's: requests that
    were not answered when this is cancelled wait for the next server as long as it is open. pyfuse3 has one
    session per process, so this runs once at a time.
    """
    files = DeviceFiles(table, observer)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own = theirs.detach()
    try:
        with ours:
            ours.send(first_request())
            await _begin(files, own)
            check_answer(ours.recv(_ANSWER))
    except BaseException:
        os.close(own)
        raise
    try:
        os.dup2(fd, own, inheritable=False)
        if not ask_again(own):
            _take_own_queue(fd, own)
        # A request that is taken back between poll and read would block the loop, and with it every reader.
        os.set_blocking(own, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer_requests, nursery.cancel_scope)
            task_status.started()
    finally:
        pyfuse3.close(unmount=False)


def _take_own_queue(fd: int, own: int) -> None:
    try:
        put_own_queue(fd, own)
        log.info("this kernel repeats no requests: what a server had taken fails when it is killed")
    except OSError as error:
        log.warning(
            "this kernel repeats no requests, and readers of a killed server will wait for ever: %s", error
        )


async def _begin(files: DeviceFiles, own: int) -> None:
    """Let libfuse answer the first request that waits in the socket ``own``."""
    try:
        pyfuse3.init(files, f"/dev/fd/{own}", set())
    except RuntimeError as error:
        raise NodeError(f"libfuse does not take descriptor {own}: {error}") from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await files.initialized.wait()
        nursery.cancel_scope.cancel()


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
        except ConnectionAbortedError:
            # What a queue of our own may end with when the mount goes, instead of ENODEV.
            log.debug("the connection was aborted")
            return None


pyfuse3._session_loop = _patient_session_loop  # type: ignore[attr-defined]
