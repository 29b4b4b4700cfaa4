"""The daemon's life: take over, serve, stop.

The main thread runs the FUSE loop, and answers the keeper from it: a daemon whose loop hangs is found so. The
control API and the fetch engine have threads of their own.
"""

import logging
import os
import signal
import socket
from contextlib import ExitStack, closing, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any

import trio

from lazyfs.config import NodePaths
from lazyfs.daemon import process
from lazyfs.daemon.api import Answer, Call, ControlServer, Handover
from lazyfs.daemon.cache_calls import cache_calls
from lazyfs.daemon.housekeeping import Housekeeper
from lazyfs.daemon.image_server import ImageServer
from lazyfs.daemon.node import Node
from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.keeper import link
from lazyfs.keeper.link import Possessions
from lazyfs.mount import ladder
from lazyfs.mount.attach import serve
from lazyfs.mount.device_table import DeviceTable
from lazyfs.mount.fuse import store_pages
from lazyfs.mount.mountinfo import mount_at
from lazyfs.node.cache_settings import CacheSettings

log = logging.getLogger(__name__)

MAX_SETTLED = 256
_FOR_IMAGES = ("lazyfs.formats.toc_check", "lazyfs.stores.registry.store", "encodings.idna")


def serve_node(paths: NodePaths, keeper: socket.socket, possessions: Possessions) -> None:
    """Be the daemon of `paths` until told to stop. Raises LazyfsError where it cannot begin."""
    process.set_up()
    try:
        with ExitStack() as undo:
            table = DeviceTable()
            node = Node(paths, table, CacheSettings.read(paths), store_pages, _connection(paths))
            undo.callback(node.close)
            if node.stores.settings.served:
                _serve_images(node, undo)
            trio.run(_Service(node, table, possessions, keeper).run)
    except OSError as error:
        raise NodeError(
            f"{paths.root}: {error}", hint="free some space, or choose another directory with --root"
        ) from error
    log.info("ended")


def _prepare() -> None:
    """What the first image would have to wait for: the client of registries, and the certificates of this machine."""
    for name in _FOR_IMAGES:
        import_module(name)
    from lazyfs.stores.registry.hosts import Tls

    Tls().context()


def _serve_images(node: Node, undo: ExitStack) -> None:
    try:
        server = ImageServer(node.stores.settings.listen, node.stores.find)
    except NodeError as error:
        # Running containers need their bytes more than new ones this way to their manifests.
        log.error("images are not served: %s (%s)", error, error.hint)
    else:
        undo.callback(server.close)


def _connection(paths: NodePaths) -> str:
    """Tells this mount of the devices from another in the same run of the kernel."""
    entry = mount_at(paths.fuse)
    return entry.device if entry is not None else ""


class _Service:
    """What happens at once while the node serves."""

    def __init__(
        self, node: Node, table: DeviceTable, possessions: Possessions, keeper: socket.socket
    ) -> None:
        self._node = node
        self._table = table
        self._possessions = possessions
        self._keeper: socket.socket | None = keeper
        self._stop = trio.Event()

    async def run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with closing(Housekeeper(self._node.cache.look_at_clock, self._keep_house)) as self._house:
            self._node.cache.on_write = self._house.stir
            await self._serve()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(partial(serve, self._possessions.fuse, self._table, self._observe_read))
            server = ControlServer(self._possessions.listener, self._calls())
            await nursery.start(self._stop_on_signal)
            keeper = self._keeper
            if keeper is not None:
                with suppress(OSError):  # its end is found where it is listened to
                    link.send(keeper, {"say": "serving"})
                nursery.start_soon(self._obey, keeper)
            log.info("serving")
            nursery.start_soon(trio.to_thread.run_sync, _prepare)
            await self._stop.wait()
            await trio.to_thread.run_sync(server.close)
            nursery.cancel_scope.cancel()

    def _calls(self) -> dict[str, Call]:
        node = self._node
        calls: dict[str, Call] = {
            "POST /v1/images": lambda body: node.open_image(
                _argument(body, "reference", str),
                Path(_argument(body, "directory", str)),
                _argument(body, "lowest", int) if "lowest" in body else None,
                fill=body.get("fill") is not False,
                mode=_argument(body, "mode", str) if "mode" in body else ladder.FILE,
                command=_argument(body, "command", str) if "command" in body else None,
                direct=body.get("mode") == ladder.FILE,
                prove=body.get("prove") is True,
            ),
            "POST /v1/chain": lambda body: node.look_at(
                _argument(body, "reference", str), Path(_argument(body, "directory", str))
            ),
            "POST /v1/release": lambda _: node.release(),
            "GET /v1/status": lambda _: node.status(),
            "POST /v1/timeline": lambda body: node.recorded(_argument(body, "since", float | int)),
            "POST /v1/cache/warm": lambda body: node.warm(
                _argument(body, "reference", str),
                Path(_argument(body, "directory", str)),
                _argument(body, "after", int),
                _argument(body, "seconds", float | int),
            ),
            "POST /v1/cache/warm-pack": lambda body: node.warm_pack(
                _argument(body, "reference", str),
                Path(_argument(body, "directory", str)),
                _argument(body, "seconds", float | int),
            ),
            "POST /v1/record": lambda _: node.record(),
            "POST /v1/fetch/settings": lambda body: node.choose_memory(_argument(body, "memory", str)),
            "POST /v1/keeper": lambda _: self._hand_back(),
            **cache_calls(node.cache, node.care, node.stores.settings, node.verify),
        }
        return {name: self._stirring(call) for name, call in calls.items()}

    async def _obey(self, keeper: socket.socket) -> None:
        """Answer the keeper until it is gone."""
        keeper.setblocking(False)
        while True:
            try:
                await trio.lowlevel.wait_readable(keeper)
                said = link.hear(keeper)
                if said.get("do") == "ping":
                    link.send(keeper, {"say": "pong"})
                elif said.get("do") == "end":
                    self._stop.set()
            except BlockingIOError:
                continue
            except (EOFError, OSError):
                log.warning("the keeper is gone; serving on")
                trio.lowlevel.notify_closing(keeper)
                keeper.close()
                self._keeper = None
                return

    def _hand_back(self) -> Handover:
        """For a new keeper: what is served, and a link to whoever serves it."""
        return trio.from_thread.run_sync(self._new_keeper, trio_token=self._token)

    def _new_keeper(self) -> Handover:
        if self._keeper is not None:
            raise BusyError("the daemon has a keeper")
        ours, theirs = link.pair()
        self._keeper = ours
        self._nursery.start_soon(self._obey, ours)
        return Handover({"pid": os.getpid()}, (*self._possessions.descriptors(), theirs.fileno()), theirs)

    def _observe_read(self, inode: int, offset: int, size: int, waited: bool) -> None:
        self._house.stir()
        self._node.observe_read(inode, offset, size, waited)

    def _stirring(self, call: Call) -> Call:
        def stir(body: dict[str, Any]) -> Answer:
            self._house.stir()
            return call(body)

        return stir

    def _keep_house(self, quiet: bool) -> bool:
        more = self._node.flush(quiet)
        names, keeper = self._node.starts.settled(), self._keeper
        if names and keeper is not None:
            with suppress(OSError):  # its end is found where it is listened to
                link.send(keeper, {"say": "settled", "mounts": names[:MAX_SETTLED]})
        if quiet:
            process.give_back()
        return more or self._node.starts.are_under_way()

    async def _stop_on_signal(
        self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("%s: stopping", signal.Signals(number).name)
                self._stop.set()
                return


def _argument(body: dict[str, Any], name: str, kind: type | UnionType) -> Any:
    value = body.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"the control API needs {name!r}: {getattr(kind, '__name__', kind)}")
    return value
