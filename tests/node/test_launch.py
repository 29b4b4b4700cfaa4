"""A launch pack on its way into a node: what it brings is right, in time, and a pack that lies costs bytes alone."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lazyfs.errors import NodeError, StoreError
from lazyfs.formats import pack
from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.formats.oci import Manifest
from lazyfs.formats.oci_descriptor import Descriptor, PackLocation
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.node import launches
from lazyfs.node.device import AskForLessError
from lazyfs.node.launch import Launch
from lazyfs.node.launches import Launches, find_pack
from lazyfs.node.pack_places import PAGE
from lazyfs.node.pack_stream import PackStream
from lazyfs.stores import Store

from .launch_rig import KIB, LENGTHS, PACK, PackStore, Rig
from .samples import PATIENCE, Layer, failing, no_thread

ALL_OF_FIRST = 4 + 16 + 1 + 1 + 10
HOT = [(0, unit) for unit in (3, 5, 6, 4, 20, 21, 22)] + [(1, 0), (1, 2), (0, 0)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(hot: list[pack.Place] = HOT) -> Rig:
        made.append(Rig(tmp_path, hot))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FRAME_SIZE", 64 * KIB)


def test_what_a_pack_brings_is_here_and_in_the_kernel(rig: Callable[..., Rig]) -> None:
    one = rig()
    launch = one.begin()
    head = launch.head.result(PATIENCE)
    assert sorted(head.documents.values()) == [b"TOC 0", b"TOC 1", b"{}"]
    one.bind(launch)
    assert launch.finished.wait(PATIENCE)
    assert launch.progress.state == "done", launch.progress
    assert one.store.requests == [0]
    # Units 20, 21 and 22 end and begin in the middle of pages: whole pages reach over the ends.
    start, end = int(one.layers[0].chunks.start[2]), int(one.layers[0].chunks.start[5])
    assert one.devices[0].peek(start, 37 * KIB) == one.layers[0].device[start : start + 37 * KIB]
    inside = range(-(-start // PAGE) * PAGE, start + 37 * KIB - PAGE, PAGE)
    assert all((0, offset) in one.kernel.pages for offset in inside)
    assert end == len(one.layers[0].device)
    assert not any(blob.reads for blob in one.blobs)
    one.all_is_right()


def test_pages_that_no_unit_has_whole_are_not_given(rig: Callable[..., Rig]) -> None:
    one = rig([(0, 4)])  # chunk 1, which begins 512 bytes into a page
    one.run()
    first = min(offset for _, offset in one.kernel.pages)
    assert first == -(-int(one.layers[0].chunks.start[1]) // PAGE) * PAGE
    one.all_is_right()


def test_pages_wait_until_the_kernel_knows_the_device(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.kernel.is_open.clear()
    launch = one.begin()
    one.bind(launch)
    assert one.read(1, 0, 100) == one.layers[1].device[:100]
    one.kernel.is_open.set()
    assert launch.finished.wait(PATIENCE)
    assert one.kernel.pages
    one.all_is_right()


def test_a_second_start_asks_for_nothing_and_gives_all_pages_again(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.run()
    pages = one.kernel.pages.copy()
    one.kernel.pages.clear()
    launch = one.run()
    assert one.store.requests == [0]
    assert launch.progress.present_units == launch.progress.units == len(HOT)
    assert one.kernel.pages == pages


def test_only_what_is_missing_is_asked_for(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.node.launch.MAX_SKIP", 1000)
    every = [(0, unit) for unit in range(ALL_OF_FIRST)]
    one = rig(every)
    stopped = one.begin()
    stopped.stop()
    assert stopped.finished.wait(PATIENCE)  # nothing was kept of that
    one.run()
    one.caches[0].drop([4])
    one.store.requests.clear()
    one.run()
    assert 1 <= len(one.store.requests) <= 2
    assert min(one.store.requests) > 0
    one.all_is_right()
    assert sum(end - start for start, end in one.blobs[0].reads) == 0


def test_the_first_file_can_be_read_before_the_last_byte_has_come(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stream that stood still for a moment would be overtaken.
    monkeypatch.setattr(PackStream, "is_soon", lambda *_: True)
    one = rig([(0, unit) for unit in range(ALL_OF_FIRST)])
    one.store.allow(len(one.store.data) // 2)
    launch = one.begin()
    one.bind(launch)
    assert one.read(0, 0, 50 * KIB) == one.layers[0].device[: 50 * KIB]
    assert not launch.finished.is_set()
    assert one.blobs[0].reads == []
    assert launch.progress.waited <= 1
    one.store.allow(1 << 60)
    assert launch.finished.wait(PATIENCE)
    one.all_is_right()


def test_a_read_far_ahead_of_the_stream_does_not_wait_for_it(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig([(0, unit) for unit in range(ALL_OF_FIRST)])
    one.store.allow(len(one.store.data) // 2)
    launch = one.begin()
    one.bind(launch)
    assert one.read(0, 0, 10) == one.layers[0].device[:10]
    # Time goes by, and the stream does not: what is far behind is asked for.
    device = one.layers[0].device
    monkeypatch.setattr(launch._stream, "is_soon", lambda end, wanted: False)
    assert one.read(0, len(device) - 100, 100) == device[-100:]
    assert one.blobs[0].reads
    one.store.allow(1 << 60)
    assert launch.finished.wait(PATIENCE)


def test_what_is_not_in_the_pack_is_fetched_at_once(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.store.allow(0)
    launch = one.begin()
    assert not launch.head.done()
    one.store.allow(len(one.store.data) - 8 * KIB)
    one.bind(launch)
    start = int(one.layers[0].chunks.start[4]) + 2 * UNIT_SIZE
    assert one.read(0, start, 10) == one.layers[0].device[start : start + 10]
    assert one.blobs[0].reads
    assert not launch.finished.is_set()


@pytest.mark.parametrize("at", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_a_damaged_pack_is_refused_and_reads_go_on(rig: Callable[..., Rig], at: float) -> None:
    one = rig()
    broken = bytearray(one.store.data)
    broken[int(len(broken) * at)] ^= 4
    one.store.data = bytes(broken)
    launch = one.begin()
    one.bind(launch)
    assert launch.finished.wait(PATIENCE)
    assert launch.progress.state == "refused"
    assert "launch pack" in launch.progress.reason
    assert one.timeline.counters()["recent_failures"]
    one.all_is_right()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_a_pack_that_breaks_off(rig: Callable[..., Rig], share: float) -> None:
    one = rig()
    location = PackLocation(PACK, len(one.store.data))
    one.store.data = one.store.data[: int(len(one.store.data) * share)]
    one.store.error = StoreError("the registry is gone")
    launch = Launch(cast(Store, one.store), location, one.kept, one.timeline)
    one.bind(launch)
    waiting = one.devices[0].request(0, 10)
    assert launch.finished.wait(PATIENCE)
    assert waiting.result(PATIENCE) == one.layers[0].device[:10]
    assert launch.progress.state == "refused"
    one.all_is_right()


def test_a_pack_of_another_image_is_refused(rig: Callable[..., Rig]) -> None:
    one = rig()
    other = Layer(LENGTHS, seed=7)
    one.layers[0], right = other, one.layers[0]
    one.store.data = one.make()
    one.layers[0] = right
    launch = one.run()
    assert launch.progress.state == "refused"
    assert not one.kernel.pages
    one.all_is_right()


def test_a_kept_index_that_is_torn_is_made_anew(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.run()
    whole = one.kept.read_bytes()
    one.kept.write_bytes(whole[:-3])
    assert one.run().progress.state == "done"
    assert one.kept.read_bytes() == whole
    assert one.store.requests == [0, 0]


def test_a_launch_that_is_stopped_ends(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.store.allow(len(one.store.data) // 2)
    one.kernel.is_open.clear()
    launch = one.begin()
    one.bind(launch)
    waiting = one.devices[0].request(0, 10)
    launch.stop()
    one.store.allow(1 << 60)
    assert launch.finished.wait(PATIENCE)
    assert waiting.result(PATIENCE) == one.layers[0].device[:10]


def test_a_launch_that_is_stopped_just_before_it_is_bound(rig: Callable[..., Rig]) -> None:
    """By the end of the node, or since another start of the image has begun: whoever opens it hears nothing of that."""
    one = rig()
    one.store.allow(0)
    launch = one.begin()
    launch.stop()
    one.store.allow(1 << 60)
    one.bind(launch)
    assert launch.finished.wait(PATIENCE)
    assert launch.progress.state == "refused"
    one.all_is_right()


def test_what_was_refused_is_forgotten_with_the_launch(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig([(0, 0), (0, 1)])
    far = int(one.layers[0].chunks.start[4])

    def is_refused() -> bool:
        one.kept.unlink(missing_ok=True)
        one.caches[0].drop([0])  # else there were nothing that is still to come
        one.store.allow(0)
        launch = one.begin()
        one.store.allow(len(one.store.data) - 8 * KIB)
        one.bind(launch)
        error = one.devices[0].request(far, 64 * KIB).exception(PATIENCE)
        one.store.allow(1 << 60)
        assert launch.finished.wait(PATIENCE)
        return isinstance(error, AskForLessError)

    assert is_refused()
    monkeypatch.setattr(launches, "REFUSED_SECONDS", -1.0)
    assert is_refused(), "a later start is as the first"


def test_a_defect_when_it_arrives_is_an_error_of_who_waits(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackStream, "is_soon", lambda *_: True)
    one = rig()
    one.store.allow(0)
    launch = one.begin()
    one.store.allow(len(one.store.data) - 8 * KIB)
    one.bind(launch)
    waiting = one.devices[0].request(0, 10)
    monkeypatch.setattr(one.caches[0], "read", lambda *_: failing(MemoryError())(0, 0))
    one.store.allow(1 << 60)
    with pytest.raises(NodeError, match="MemoryError"):
        waiting.result(PATIENCE)
    assert launch.finished.wait(PATIENCE)


def test_read_ahead_is_refused_once_while_a_pack_comes(rig: Callable[..., Rig]) -> None:
    one = rig([(0, 0), (0, 1)])
    one.store.allow(0)
    launch = one.begin()
    one.store.allow(len(one.store.data) - 8 * KIB)
    one.bind(launch)
    far = int(one.layers[0].chunks.start[4])
    device, plain = one.devices[0], one.layers[0].device
    with pytest.raises(AskForLessError):
        device.request(far, 64 * KIB).result(PATIENCE)
    assert one.blobs[0].reads == []
    assert device.request(far + PAGE, PAGE).result(PATIENCE) == plain[far + PAGE : far + 2 * PAGE]
    # What overlaps is not refused again, whatever asks for it; nor is anything that is not the kernel's.
    assert (
        device.request(far + 60 * KIB, 64 * KIB).result(PATIENCE) == plain[far + 60 * KIB : far + 124 * KIB]
    )
    start = int(one.layers[0].chunks.start[1])
    assert device.beneath.request(start, 512 * KIB).result(PATIENCE) == plain[start : start + 512 * KIB]
    one.store.allow(1 << 60)
    assert launch.finished.wait(PATIENCE)
    one.all_is_right()


def test_how_soon_a_stream_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 MB/s and 20 ms: what comes within the time that a request beside the stream takes is waited for."""
    now = 100.0
    monkeypatch.setattr("lazyfs.node.launch.time.monotonic", lambda: now)
    store = PackStore(bytes(10_000_000))
    stream = PackStream(cast(Store, store), PackLocation(PACK, 10_000_000))
    assert stream.is_soon(5_000_000, 1), "nothing is known of the link yet"
    stream.take(4 * KIB)
    stream._asked, stream._answered, now = 100.0, 100.02, 101.02
    stream.received = 1_000_000
    position = stream.position
    assert stream.is_soon(position + 80_000, 32_000)
    assert not stream.is_soon(position + 90_000, 32_000)
    assert stream.is_soon(position + 1_000_000, 500_000)


@pytest.mark.parametrize("moment", ["closed", "being closed"])
def test_a_stream_that_is_stopped_just_when_more_of_it_is_taken(moment: str) -> None:
    closing, go_on = threading.Event(), threading.Event()

    class Pack:
        def stream(self, *_: object) -> Generator[bytes]:
            try:
                while True:
                    yield bytes(4 * KIB)
            finally:
                closing.set()
                go_on.wait(PATIENCE)

    class JustThen(PackStream):
        kept: Iterator[bytes] | None = None
        closer: threading.Thread | None = None

        @property
        def _pieces(self) -> Iterator[bytes] | None:
            kept = self.kept
            if self.closer is not None and self.closer.ident is None:
                self.closer.start()
                assert closing.wait(PATIENCE)
                if moment == "closed":
                    go_on.set()
                    self.closer.join()
            return kept

        @_pieces.setter
        def _pieces(self, pieces: Iterator[bytes] | None) -> None:
            self.kept = pieces

    stream = JustThen(cast(Store, Pack()), PackLocation(PACK, 100 * KIB))
    stream.take(4 * KIB)
    stream.closer = threading.Thread(target=stream.close)
    with pytest.raises(StoreError, match="stopped"):
        stream.take(4 * KIB)
    go_on.set()
    stream.closer.join()


def test_two_who_begin_at_once_begin_one_launch(
    rig: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, barrier = rig(), threading.Barrier(2)
    begun = Launches(tmp_path, one.timeline)

    def found_pack(*_: object) -> PackLocation:
        barrier.wait(PATIENCE)
        return PackLocation(PACK, len(one.store.data))

    def begin(_: int) -> Launch | None:
        return begun.begin(cast(Store, one.store), Descriptor(OCI_MANIFEST, PACK, 1), cast(Manifest, None))

    monkeypatch.setattr(launches, "find_pack", found_pack)
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(begin, range(2)))
    assert found.count(None) == 1
    assert begun.of(PACK) in found
    begun.close()
    assert not begun.any_coming()


def test_without_threads_a_start_goes_without_its_pack(
    rig: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = rig()
    begun = Launches(tmp_path, one.timeline)
    monkeypatch.setattr(launches, "find_pack", lambda *_: PackLocation(PACK, len(one.store.data)))
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    image = Descriptor(OCI_MANIFEST, PACK, 1)
    with ThreadPoolExecutor(1) as executor:
        manifest = cast(Manifest, SimpleNamespace(layers=()))
        assert find_pack(cast(Store, one.store), image, manifest, executor) is None
    assert begun.begin(cast(Store, one.store), image, cast(Manifest, None)) is None
    assert begun.of(PACK) is None
    begun.close()
