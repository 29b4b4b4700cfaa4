"""The daemon's life: lock, mount, serve, stop.

The main thread runs the FUSE loop; the control API and the fetch engine have threads of their own.
"""

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any

import trio

from lazyfs.config import NodePaths
from lazyfs.daemon.api import Call, ControlServer
from lazyfs.daemon.cache_calls import cache_calls
from lazyfs.daemon.client import DaemonClient, locked
from lazyfs.daemon.image_server import ImageServer
from lazyfs.daemon.node import Node
from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.mount.attach import open_and_mount, serve, tune
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.fuse import store_pages
from lazyfs.mount.images import release_unused
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.node.cache_settings import CacheSettings

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
USE_PATIENCE = 5.0
END_PATIENCE = 20.0


def run(paths: NodePaths, on_ready: Callable[[], None]) -> None:
    """Be the daemon of `paths` until told to stop. Raises LazyfsError where it cannot start."""
    try:
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        with ExitStack() as last, _only_one(paths), ExitStack() as undo:
            _clear(paths)
            paths.fuse.mkdir(mode=0o700, exist_ok=True)
            table = DeviceTable()
            node = Node(paths, table, CacheSettings.read(paths), store_pages)
            undo.callback(node.close)
            if node.settings.served:
                _serve_images(node, undo)
            descriptor = open_and_mount(paths.fuse)
            undo.callback(os.close, descriptor)
            undo.callback(unmount, paths.fuse, detach=True)
            trio.run(partial(_serve, paths, node, table, descriptor, last, on_ready))
    except OSError as error:
        raise NodeError(
            f"{paths.root}: {error}", hint="free some space, or choose another directory with --root"
        ) from error
    log.info("ended")


def _serve_images(node: Node, undo: ExitStack) -> None:
    try:
        server = ImageServer(node.settings.listen, node.find_store)
    except NodeError as error:
        # Running containers need their bytes more than new ones this way to their manifests.
        log.error("images are not served: %s (%s)", error, error.hint)
    else:
        undo.callback(server.close)


def _clear(paths: NodePaths) -> None:
    """Unmount what a daemon that was killed left and nobody uses."""
    if list_mounts(paths.fuse):
        log.warning("%s was left mounted by a daemon that was killed; unmounting it", paths.fuse)
        unmount(paths.fuse, detach=True)
    release_unused(paths)


async def _serve(
    paths: NodePaths,
    node: Node,
    table: DeviceTable,
    descriptor: int,
    last: ExitStack,
    on_ready: Callable[[], None],
) -> None:
    token = trio.lowlevel.current_trio_token()
    stop = trio.Event()
    requests = threading.Lock()
    requested = False

    def request_stop(_: dict[str, Any]) -> dict[str, Any]:
        nonlocal requested
        with requests:
            if not requested:
                last.enter_context(_nobody_mounts(paths))
                requested = True
        token.run_sync_soon(stop.set)
        return {"pid": os.getpid()}

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, descriptor, table, node.observe_read))
        tune(paths.fuse)
        server = ControlServer(paths, _calls(node, request_stop))
        nursery.start_soon(_flush_often, node)
        await nursery.start(_stop_on_signal, stop)
        log.info("serving %s", paths.root)
        on_ready()
        await stop.wait()
        await trio.to_thread.run_sync(server.close)
        nursery.cancel_scope.cancel()


def _calls(node: Node, request_stop: Call) -> dict[str, Call]:
    return {
        "POST /v1/images": lambda body: node.open_image(
            _argument(body, "reference", str),
            Path(_argument(body, "directory", str)),
            _argument(body, "lowest", int) if "lowest" in body else None,
        ),
        "POST /v1/chain": lambda body: node.look_at(
            _argument(body, "reference", str), Path(_argument(body, "directory", str))
        ),
        "GET /v1/status": lambda _: node.status(),
        "POST /v1/timeline": lambda body: node.recorded(_argument(body, "since", float | int)),
        "POST /v1/cache/warm": lambda body: node.warm(
            _argument(body, "reference", str),
            Path(_argument(body, "directory", str)),
            _argument(body, "after", int),
            _argument(body, "seconds", float | int),
        ),
        "POST /v1/record": lambda _: node.record(),
        "POST /v1/shutdown": request_stop,
        **cache_calls(node.cache, node.care, node.settings),
    }


def _argument(body: dict[str, Any], name: str, kind: type | UnionType) -> Any:
    value = body.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"the control API needs {name!r}: {getattr(kind, '__name__', kind)}")
    return value


async def _flush_often(node: Node) -> None:
    while True:
        await trio.sleep(FLUSH_SECONDS)
        await trio.to_thread.run_sync(node.flush)
        await trio.to_thread.run_sync(node.settle)


async def _stop_on_signal(
    stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            stop.set()
            return


@contextmanager
def _nobody_mounts(paths: NodePaths) -> Iterator[None]:
    """BusyError while an image of the node is mounted; inside, no command opens one to mount it."""
    with locked(paths.use_lock, fcntl.LOCK_EX, USE_PATIENCE):
        release_unused(paths)
        mounted = list_mounts(paths.images)
        if mounted:
            raise BusyError(
                f"{len(mounted)} images of {paths.root} are mounted",
                hint="end their containers, or lazyfs umount DIR; `lazyfs status` lists them",
            )
        yield


@contextmanager
def _only_one(paths: NodePaths) -> Iterator[None]:
    """Only one daemon for a root; the lock goes with the process, whatever ends it."""
    # One that does not answer any more is about to end.
    patience = 0 if DaemonClient(paths).is_running() else END_PATIENCE
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(locked(paths.lock, fcntl.LOCK_EX, patience))
        except BusyError as error:
            raise BusyError(f"another daemon serves {paths.root}", hint="lazyfs status names it") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
