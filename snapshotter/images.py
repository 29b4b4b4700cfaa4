"""Images that are not there yet: what the node's daemon says of them, and where it shows them.

An image is asked about once, however many of its layers containerd prepares: for the first Prepare the daemon fetches
the manifest, the config and all TOCs, and each Prepare is answered as soon as the layers up to its own are known to
be in order. Nothing here is needed to start the service, so a registry or a daemon that does not answer costs lazy
images alone.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, NoDaemonError, daemon_in_use, ensure_daemon
from lazyfs.daemon.verdicts import Verdicts
from lazyfs.errors import BusyError, LazyfsError
from lazyfs.mount.images import is_shown, mount_view, release_unused
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import parse_reference
from snapshotter.labels import WantedLayer
from snapshotter.records import Lazy
from snapshotter.settings import EVERYBODY, Trust

log = logging.getLogger(__name__)
_T = TypeVar("_T")

PATIENCE = 4.5
"""Seconds for all that a Prepare may wait: then containerd downloads the layer itself."""
STOP_SECONDS = 3.0
_REMEMBERED = 256
_TAG_SECONDS = 60.0
_FAILED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Chain:
    """An image's layers, lowest first; the first of them, as many as there are `tocs`, are ones of ours."""

    reference: str
    blobs: tuple[str, ...]
    chain_ids: tuple[str, ...]
    tocs: tuple[str, ...]

    def find(self, wanted: WantedLayer) -> Lazy | None:
        """None where the layer is not of this image, or it or one below is not one of ours.

        It does not matter what the snapshots below show: the image of the layers up to the wanted one shows all of
        it, from this image's TOCs alone.
        """
        below = ""
        for number, (blob, chain_id) in enumerate(zip(self.blobs, self.chain_ids, strict=True)):
            if (blob, chain_id) == (wanted.blob, wanted.chain_id) and number < len(self.tocs):
                return Lazy(self.reference, number + 1, chain_id, below, self.tocs[: number + 1])
            below = chain_id
        return None


@dataclass(slots=True)
class _Look:
    """What becomes known of an image: its chain at first, then of one layer after the other that it can be mounted."""

    reference: str
    moves: bool  # named by a tag
    chain: "Future[Chain]" = field(default_factory=Future)
    end: "Future[None]" = field(default_factory=Future)
    opened: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    since: float = field(default_factory=time.monotonic)

    def find(self, wanted: WantedLayer) -> Lazy | None:
        """See `Chain.find`; None as well where the layer cannot be mounted after all.

        Waits no longer than `PATIENCE` after the image was asked for, however many layers wait one after another.
        Raises TimeoutError, or what the daemon says.
        """
        found = self.chain.result(self._left()).find(wanted)
        if found is None:
            return None
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.opened >= found.layers or self.end.done(), self._left()
            ):
                raise TimeoutError
        if self.opened < found.layers:
            self.end.result()
        return found

    def follow(self, answers: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Take in what the daemon says, to its end."""
        try:
            lines = answers()
            self.chain.set_result(_chain(self.reference, next(lines)))
            for _ in lines:
                with self.changed:
                    self.opened += 1
                    self.changed.notify_all()
            self.end.set_result(None)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if not self.chain.done():
                self.chain.set_exception(error)
            self.end.set_exception(error)
        finally:
            with self.changed:
                self.changed.notify_all()

    def is_old(self) -> bool:
        age = time.monotonic() - self.since
        failed = self.end.done() and self.end.exception() is not None
        return (failed and age > _FAILED_SECONDS) or (self.moves and age > _TAG_SECONDS)

    def _left(self) -> float:
        return max(0.0, self.since + PATIENCE - time.monotonic())


class Images:
    """A client of one node's daemon. Thread safe."""

    def __init__(self, paths: NodePaths, trust: Trust = EVERYBODY) -> None:
        self._paths = paths
        self._trust = trust
        self._verdicts = Verdicts(paths.proofs)
        self._lock = threading.Lock()
        self._looks: OrderedDict[str, _Look] = OrderedDict()
        self._showing: dict[int, threading.Lock] = {}
        self._starting: Future[None] | None = None

    def start_daemon(self) -> None:
        """Begin to start it, so that the first image need not wait for it; nobody waits here."""
        self._starting = _in_background(self._start_daemon)

    def stop_daemon(self) -> None:
        """End it, unless an image is still mounted: running containers keep what they have.

        It may wait for a registry that is silent: then it ends by itself, and is not waited for.
        """
        if self._starting is not None:
            wait([self._starting])  # else it would begin to serve when nobody is there to end it
        try:
            _in_background(DaemonClient(self._paths).shutdown).result(STOP_SECONDS)
        except NoDaemonError:
            pass
        except TimeoutError:
            log.info("the node's daemon is ending, which takes more than %.0f s", STOP_SECONDS)
        except BusyError as error:
            log.info("the node's daemon goes on: %s", error)
        except LazyfsError as error:
            log.warning("the node's daemon does not end: %s", error)

    def find(self, wanted: WantedLayer) -> Lazy | None:
        """The image of the layers up to the wanted one; None, within `PATIENCE`, where containerd must download it."""
        try:
            look, known = self._look(wanted.reference)
            found = look.find(wanted)
            if found is None and known:
                # A tag may have moved since.
                self._forget(wanted.reference, look)
                found = self._look(wanted.reference)[0].find(wanted)
            if found is not None:
                self._verdicts.refuse_wrong(found.tocs)
        except TimeoutError:
            log.warning("%s: no answer within %.1f s; containerd downloads it", wanted.reference, PATIENCE)
            return None
        except LazyfsError as error:
            log.warning("%s: %s; containerd downloads it", wanted.reference, error)
            return None
        if found is None:
            log.info("%s has no lazyfs layer %s", wanted.reference, wanted.blob)
        elif not self._believes(found):
            log.info("%s is not trusted, nor proved: containerd downloads it", wanted.reference)
            return None
        return found

    def show(self, number: int, lazy: Lazy, target: Path) -> None:
        """Have the image of snapshot `number` at `target`. Raises what the daemon or the kernel has against it."""
        self._verdicts.refuse_wrong(lazy.tocs)
        with self._lock:
            lock = self._showing.setdefault(number, threading.Lock())
        with lock:
            if is_shown(self._paths, target):
                return
            if unmount(target, detach=True):
                log.warning("%s was left by a daemon that was killed; mounting it again", target)
            with daemon_in_use(self._paths) as daemon:
                mount_view(self._paths, daemon.open_image(lazy.reference, lazy.layers, prove=True), target)

    def forget(self, numbers: set[int]) -> None:
        """These snapshots are gone, and where they were shown is unmounted; nor does the daemon need their layers."""
        with self._lock:
            for number in numbers:
                self._showing.pop(number, None)
        release_unused(self._paths)
        try:
            DaemonClient(self._paths).release()
        except LazyfsError as error:
            # Where none runs there is nothing to let go of.
            log.debug("the node's daemon lets go of nothing: %s", error)

    def _believes(self, lazy: Lazy) -> bool:
        return self._trust.covers(lazy.reference) or all(map(self._verdicts.is_right, lazy.tocs))

    def _look(self, reference: str) -> tuple[_Look, bool]:
        """The answer, or what will be one; was it asked for before?"""
        with self._lock:
            look = self._looks.get(reference)
            if look is not None and not look.is_old():
                self._looks.move_to_end(reference)
                return look, True
            look = _Look(reference, "@" not in reference)
            _in_background(lambda: look.follow(lambda: ensure_daemon(self._paths).look_at(reference)))
            self._looks[reference] = look
            if len(self._looks) > _REMEMBERED:
                self._looks.popitem(last=False)
            return look, False

    def _forget(self, reference: str, look: _Look) -> None:
        with self._lock:
            if self._looks.get(reference) is look:
                del self._looks[reference]

    def _start_daemon(self) -> None:
        try:
            ensure_daemon(self._paths)
        except LazyfsError as error:
            log.warning("the node's daemon does not start: %s", error)


def _chain(reference: str, said: Mapping[str, Any]) -> Chain:
    """From what the daemon says of an image."""
    chain_ids: list[str] = []
    for layer in said["chain"]:
        if not chain_ids:
            chain_ids.append(layer["diff_id"])
        else:
            text = f"{chain_ids[-1]} {layer['diff_id']}"
            chain_ids.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
    return Chain(
        str(replace(parse_reference(reference), tag=None, digest=said["digest"])),
        tuple(layer["blob"] for layer in said["chain"]),
        tuple(chain_ids),
        tuple(layer["toc"] for layer in said["chain"] if layer["toc"]),
    )


def _in_background(function: Callable[[], _T]) -> "Future[_T]":
    """In a thread that the end of the process does not wait for: a registry may be silent for minutes."""
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(function())
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            answer.set_exception(error)

    threading.Thread(target=run, name="look", daemon=True).start()
    return answer
