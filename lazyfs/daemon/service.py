"""The daemon's life: lock, mount, serve, stop.

The main thread runs the FUSE loop; the control API and the fetch engine have threads of their own.
"""

import errno
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from lazyfs.config import NodePaths
from lazyfs.daemon.api import Call, ControlServer
from lazyfs.daemon.node import Node
from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.mount.attach import open_and_mount, serve
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0


def run(paths: NodePaths, on_ready: Callable[[], None]) -> None:
    """Be the daemon of `paths` until told to stop. Raises LazyfsError where it cannot start."""
    try:
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        paths.fuse.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # what a killed daemon leaves; unmounted below
            raise NodeError(
                f"{paths.root}: {error.strerror}", hint="choose another directory with --root"
            ) from error
    with _lock(paths):
        if list_mounts(paths.fuse):
            log.warning("%s was left mounted by a daemon that was killed; unmounting it", paths.fuse)
            unmount(paths.fuse, detach=True)
        table = DeviceTable()
        node = Node(paths, table)
        descriptor = open_and_mount(paths.fuse)
        try:
            trio.run(partial(_serve, paths, node, table, descriptor, on_ready))
        finally:
            unmount(paths.fuse, detach=True)
            os.close(descriptor)
            node.close()
    log.info("ended")


async def _serve(
    paths: NodePaths, node: Node, table: DeviceTable, descriptor: int, on_ready: Callable[[], None]
) -> None:
    token = trio.lowlevel.current_trio_token()
    stop = trio.Event()

    def request_stop(_: dict[str, Any]) -> dict[str, Any]:
        mounted = [str(entry.target) for entry in list_mounts(paths.images)]
        if mounted:
            raise BusyError(
                f"{len(mounted)} images of {paths.root} are mounted",
                hint="end their containers, or lazyfs umount DIR",
            )
        token.run_sync_soon(stop.set)
        return {"pid": os.getpid()}

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, descriptor, table, node.observe_read))
        server = ControlServer(paths, _calls(node, request_stop))
        nursery.start_soon(_flush_often, node)
        nursery.start_soon(_stop_on_signal, stop)
        log.info("serving %s", paths.root)
        on_ready()
        await stop.wait()
        await trio.to_thread.run_sync(server.close)
        nursery.cancel_scope.cancel()


def _calls(node: Node, request_stop: Call) -> dict[str, Call]:
    return {
        "POST /v1/images": lambda body: node.open_image(
            _argument(body, "reference", str), Path(_argument(body, "directory", str))
        ),
        "GET /v1/status": lambda _: node.status(),
        "POST /v1/timeline": lambda body: node.recorded(_argument(body, "since", float)),
        "POST /v1/shutdown": request_stop,
    }


def _argument(body: dict[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if not isinstance(value, kind):
        raise UsageError(f"the control API needs {name!r}: {kind.__name__}")
    return value


async def _flush_often(node: Node) -> None:
    while True:
        await trio.sleep(FLUSH_SECONDS)
        await trio.to_thread.run_sync(node.flush)


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            stop.set()
            return


@contextmanager
def _lock(paths: NodePaths) -> Iterator[None]:
    """Only one daemon for a root; the lock goes with the process, whatever ends it."""
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"another daemon serves {paths.root}", hint="lazyfs status names it") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
