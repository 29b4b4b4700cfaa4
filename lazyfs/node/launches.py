"""Where a launch pack is found, and the devices of images that are being launched."""

import logging
import threading
import time
from collections.abc import Mapping, Set
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import BadInputError, LazyfsError, NodeError
from lazyfs.formats.oci import Manifest, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, PackLocation, parse_digest
from lazyfs.formats.oci_types import PACK_ANNOTATION, PACK_TYPE
from lazyfs.node.cache import LayerCache
from lazyfs.node.device import AskForLessError, RandomAccess
from lazyfs.node.launch import Launch
from lazyfs.node.pack_places import PAGE
from lazyfs.node.timeline import Timeline
from lazyfs.stores.base import Store

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 3.0
"""How long a store may take to say whether an image has a pack: a start does not wait longer for it."""
HEAD_SECONDS = 10.0
"""How long documents may take to come in a pack before each is asked for by itself."""
REMEMBER_SECONDS = 300.0
"""How long the answer holds, also that there is none."""
LOOK_UP_THREADS = 4
MAX_REFUSED = 4096
REFUSED_SECONDS = 60.0
"""After which nobody asks again because of an earlier refusal."""
STOP_SECONDS = 5.0


def find_pack(
    store: Store, descriptor: Descriptor, manifest: Manifest, executor: Executor
) -> PackLocation | None:
    """The launch pack of the image with this manifest: by its annotation, else by what refers to it."""
    try:
        for layer in manifest.layers:
            if PACK_ANNOTATION in layer.annotations:
                return PackLocation.parse(layer.annotations[PACK_ANNOTATION])
        return executor.submit(_look_up, store, descriptor.digest).result(LOOK_UP_SECONDS)
    except FutureTimeoutError:
        log.warning("%s does not say whether %s has a launch pack", store.url, descriptor.digest)
    except (
        LazyfsError,
        RuntimeError,
    ) as error:  # RuntimeError: no thread can be started, or the node is closing
        log.warning("looking for a launch pack of %s: %s", descriptor.digest, error)
    return None


def _look_up(store: Store, digest: str) -> PackLocation | None:
    found = store.referrers(digest, PACK_TYPE)
    if not found:
        return None
    latest = found[-1]
    if PACK_ANNOTATION in latest.annotations:
        return PackLocation.parse(latest.annotations[PACK_ANNOTATION])
    # Written by a tool that does not repeat annotations in the list.
    layers = parse_manifest(store.get_document(latest)).layers
    if len(layers) != 1:
        raise BadInputError(f"artifact {latest.digest} has {len(layers)} layers, a launch pack is one")
    return PackLocation(layers[0].digest, layers[0].size)


def documents_of(launch: Launch | None) -> Mapping[str, bytes]:
    """The documents that a pack brings, by sha256 (hex); none where it does not bring them soon."""
    if launch is None:
        return {}
    try:
        return launch.head.result(HEAD_SECONDS).documents
    except (LazyfsError, FutureTimeoutError):
        return {}


class Launches:
    """The launches of a node. Thread safe."""

    def __init__(self, directory: Path, timeline: Timeline) -> None:
        """`directory` keeps the indexes of packs."""
        self._directory = directory
        self._timeline = timeline
        self._executor = ThreadPoolExecutor(LOOK_UP_THREADS, thread_name_prefix="look-up")
        self._lock = threading.Lock()
        self._found: dict[str, tuple[PackLocation | None, float]] = {}
        self._launches: dict[str, Launch] = {}
        self._before: dict[str, Launch] = {}
        self.enabled = True

    def begin(self, store: Store, descriptor: Descriptor, manifest: Manifest) -> Launch | None:
        """Let the pack of the image with this manifest come, if it has one and it is not coming already."""
        if not self.enabled:
            return None
        with self._lock:
            running = self._launches.get(descriptor.digest)
            location, until = self._found.get(descriptor.digest, (None, 0.0))
        if running is not None and not running.finished.is_set():
            return None
        if time.monotonic() > until:
            location = find_pack(store, descriptor, manifest, self._executor)
            with self._lock:
                self._found[descriptor.digest] = location, time.monotonic() + REMEMBER_SECONDS
        if location is None:
            return None
        kept = self._directory / parse_digest(location.digest)
        with self._lock:
            running = self._launches.get(descriptor.digest)
            if running is not None and not running.finished.is_set():
                return None  # somebody else has begun it meanwhile
            try:
                launch = Launch(store, location, kept, self._timeline)
            except RuntimeError as error:  # no thread can be started
                log.warning("%s starts without its launch pack: %s", descriptor.digest, error)
                return None
            if running is not None:
                self._before[descriptor.digest] = running
            self._launches[descriptor.digest] = launch
        return launch

    def look_again(self, digest: str) -> None:
        """Ask the store the next time whether the image with this manifest has a pack, whatever it has said before."""
        with self._lock:
            self._found.pop(digest, None)

    def abandon(self, digest: str, launch: Launch, reason: str) -> None:
        """End a launch that is not needed; the one before it is the last one again."""
        launch.stop(reason)
        with self._lock:
            if self._launches.get(digest) is launch:
                del self._launches[digest]
                if digest in self._before:
                    self._launches[digest] = self._before.pop(digest)

    def of(self, digest: str) -> Launch | None:
        """The last launch of the image with this manifest."""
        with self._lock:
            return self._launches.get(digest)

    def any_coming(self) -> bool:
        """Is a pack on its way?"""
        with self._lock:
            return any(not launch.arrived.is_set() for launch in self._launches.values())

    def are_running(self) -> bool:
        with self._lock:
            return not all(each.finished.is_set() for each in self._launches.values())

    def forget(self, kept: Set[str]) -> None:
        """Forget the launches that have ended, but for those of the images with these manifests."""
        with self._lock:
            for digest, launch in list(self._launches.items()):
                if digest not in kept and launch.finished.is_set():
                    del self._launches[digest]
                    self._before.pop(digest, None)

    def status(self) -> list[dict[str, Any]]:
        """How far each launch has come, JSON-able."""
        with self._lock:
            launches = dict(self._launches)
        return [
            {
                "image": digest,
                "pack": each.location.digest,
                "bytes": each.location.size,
                **asdict(each.progress),
            }
            for digest, each in launches.items()
        ]

    def close(self) -> None:
        with self._lock:
            launches = list(self._launches.values())
        for launch in launches:
            launch.stop("the node is closing")
        self._executor.shutdown(wait=False, cancel_futures=True)
        ends = time.monotonic() + STOP_SECONDS
        for launch in launches:
            launch.finished.wait(max(0.0, ends - time.monotonic()))


class LaunchDevice:
    """A device some of whose missing bytes may be on their way in launch packs. Thread safe."""

    def __init__(self, device: RandomAccess, cache: LayerCache) -> None:
        self._device = device
        self._cache = cache
        self._launches: tuple[tuple[Launch, int], ...] = ()
        self._lock = threading.Lock()
        self._refused: list[tuple[int, int]] = []
        self._refused_at = 0.0

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def beneath(self) -> RandomAccess:
        """The device itself, for who is not the kernel: nothing that is asked of it is refused."""
        return self._device

    def expect(self, launch: Launch, layer: int) -> None:
        """The layer is number `layer` of the image that is launched."""
        active = [each for each in self._launches if not each[0].finished.is_set()]
        with self._lock:
            if not active and time.monotonic() > self._refused_at + REFUSED_SECONDS:
                self._refused.clear()
        self._launches = (*active, (launch, layer))

    def peek(self, offset: int, length: int) -> bytes | None:
        return self._device.peek(offset, length)

    @property
    def patient(self) -> RandomAccess:
        """This device for who cannot ask for less."""
        return _Patient(self)

    def request(self, offset: int, length: int, *, refusable: bool = True) -> "Future[bytes]":
        wanted = max(0, min(length, self.size - offset))
        if wanted and self._cache.has(offset, wanted):
            return self._device.request(offset, length)
        active = [each for each in self._launches if not each[0].finished.is_set()]
        for launch, layer in active if wanted else ():
            arrival = launch.arrival(layer, self._cache, offset, wanted)
            if arrival is not None:
                return self._when_arrived(arrival, offset, length, refusable)
        if refusable and active and wanted > PAGE and self._may_refuse(offset, offset + wanted):
            answer: Future[bytes] = Future()
            answer.set_exception(AskForLessError(f"{length} bytes at {offset}"))
            return answer
        return self._device.request(offset, length)

    def _may_refuse(self, start: int, end: int) -> bool:
        """Is this certainly the kernel's read-ahead, of which nothing was refused before?

        While a pack comes, what lies beside the hot pages is not there, and to fetch it would take the link from the
        pack. A read-ahead that fails leaves its pages alone; whoever wants one of them reads it by itself. The kernel
        reads more than a page at once for nobody else, except again after such a failure (large folios): so no
        byte is refused twice.
        """
        with self._lock:
            if any(low < end and start < high for low, high in self._refused):
                return False
            if len(self._refused) >= MAX_REFUSED:
                return False
            self._refused.append((start, end))
            self._refused_at = time.monotonic()
            return True

    def _when_arrived(
        self, arrival: "Future[None]", offset: int, length: int, refusable: bool
    ) -> "Future[bytes]":
        answer: Future[bytes] = Future()

        def pass_on(fetched: "Future[bytes]") -> None:
            error = fetched.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(fetched.result())

        def look(_: "Future[None]") -> None:
            try:
                here = self._device.peek(offset, length)
                if here is not None:
                    answer.set_result(here)
                else:  # in another frame, or it did not come after all
                    self.request(offset, length, refusable=refusable).add_done_callback(pass_on)
            except Exception as error:  # whoever waits must hear of it: a callback's exceptions are dropped
                log.exception("%d bytes at %d", length, offset)
                answer.set_exception(NodeError(f"{type(error).__name__}: {error}"))

        arrival.add_done_callback(look)
        return answer


@dataclass(frozen=True, slots=True)
class _Patient:
    """See `LaunchDevice.patient`."""

    device: LaunchDevice

    @property
    def size(self) -> int:
        return self.device.size

    def peek(self, offset: int, length: int) -> bytes | None:
        return self.device.peek(offset, length)

    def request(self, offset: int, length: int) -> "Future[bytes]":
        return self.device.request(offset, length, refusable=False)
