"""One layer through the whole pipeline: equal bytes whatever the machine does, and every fault by its name."""

import gzip
import hashlib
import subprocess
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.cuts import CutRules
from converter.layer import ConvertedLayer, Settings, convert_layer
from converter.unpack import plain_pieces
from lazyfs.errors import BadInputError, IntegrityError, LazyfsError, LimitError, StoreError
from lazyfs.formats import toc, toc_check
from lazyfs.formats.chunks import chunk_digest, shown
from lazyfs.formats.frames import CODECS
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_LAYER
from lazyfs.node.layers import load_toc
from lazyfs.stores import LayoutStore
from tests.layers import convert_stream, device_bytes, inode_paths, put_layer
from tests.referees import empty_directory
from tests.trees import Entry, layer_tar, random_layers
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("time_limit")
SMALL = CutRules(chunk_size=8192, large_file=4096, min_pack=2048, name_mask=3)


def with_codec(codec: str, jobs: int = 2) -> Settings:
    return Settings(codec=codec, rules=SMALL, jobs=jobs)


def diff_id_of(stream: bytes) -> str:
    return f"sha256:{hashlib.sha256(stream).hexdigest()}"


def random_stream(seed: int, members: int = 60) -> bytes:
    """With sparse files of which some need an appendix."""
    entries = random_layers(Random(seed), 1, members)[0]
    content = bytes(1000) + Random(seed).randbytes(1500) + bytes(7000)
    entries.append(Entry(b"odd sparse", content=content, sparse=((1000, 1500), (9500, 0))))
    return layer_tar(entries)


class Pieces(LayoutStore):
    """A store whose blobs arrive in pieces of other sizes."""

    def __init__(self, directory: Path, sizes: Callable[[], int]) -> None:
        super().__init__(directory)
        self._sizes = sizes

    def stream(self, digest: str, offset: int = 0, piece: int = 0) -> Generator[bytes]:
        data = b"".join(super().stream(digest, offset))
        at = 0
        while at < len(data):
            size = self._sizes()
            yield data[at : at + size]
            at += size


def blob_of(converted: ConvertedLayer, layout: Path) -> bytes:
    return (layout / "blobs/sha256" / converted.descriptor.digest.removeprefix("sha256:")).read_bytes()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    codec=st.sampled_from(CODECS),
    compression=st.sampled_from(["none", "gzip", "zstd"]),
)
def test_equal_input_gives_equal_bytes(tmp_path: Path, seed: int, codec: str, compression: str) -> None:
    """Whatever compressed the source, in whatever pieces it comes, on however many threads."""
    stream = random_stream(seed)
    digests = set()
    for jobs in (1, 2, 4):
        layout = empty_directory(tmp_path / "layout")
        digests.add(convert_stream(stream, layout, "none", with_codec(codec, jobs)).descriptor.digest)
    packed = empty_directory(tmp_path / "packed")
    converted = convert_stream(stream, packed, compression, with_codec(codec))
    rng = Random(seed)
    with LayoutStore(packed) as target, Pieces(packed, lambda: rng.choice((1, 10, 512, 5000))) as source:
        layer = put_layer(target, gzip.compress(stream))
        again = convert_layer(source, layer, diff_id_of(stream), target, with_codec(codec))
    assert {*digests, converted.descriptor.digest, again.descriptor.digest} == digests
    assert len(digests) == 1


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), codec=st.sampled_from(CODECS))
def test_the_blob_is_the_stream_and_the_device(tmp_path: Path, seed: int, codec: str) -> None:
    """As any runtime reads it, as a node reads it, and as the TOC in it says."""
    stream = random_stream(seed)
    layout = empty_directory(tmp_path / "layout")
    converted = convert_stream(stream, layout, "gzip", with_codec(codec))
    assert b"".join(plain_pieces([blob_of(converted, layout)], "layer")) == stream
    chunks = converted.toc.chunks
    assert chunks.start[0] == 0
    assert chunks.device_size % 512 == 0
    assert converted.toc.stream_size == len(stream)
    assert sum(chunks.length(index) for index in range(len(chunks))) == chunks.device_size
    device = device_bytes(converted, layout)
    for index in range(len(chunks)):
        piece = device[int(chunks.start[index]) : int(chunks.start[index + 1])]
        assert chunk_digest(chunks.shown(index, piece)) == chunks.digest(index)
    with LayoutStore(layout) as store:
        loaded = load_toc(store, converted.descriptor, diff_id_of(stream))
    assert toc.encode(loaded) == toc.encode(converted.toc)
    assert loaded.chunks.data_start.tolist() == chunks.data_start.tolist()


def test_the_device_has_the_data_of_every_file(tmp_path: Path) -> None:
    entries = [Entry(b"f%d" % n, content=Random(n).randbytes(n * 700)) for n in range(40)]
    entries += [Entry(b"f3", content=b"replaced"), Entry(b"f4", "d")]
    converted = convert_stream(layer_tar(entries), tmp_path)
    device, tree = device_bytes(converted, tmp_path), converted.toc.tree
    paths = inode_paths(tree)
    for entry in [*entries[:3], *entries[5:41]]:
        at, size = int(tree.inodes.data[paths[entry.path]]), int(tree.inodes.size[paths[entry.path]])
        assert device[at : at + size] == entry.content
    assert len(converted.toc.strays.offset) == 2
    whole = shown(device, zip(converted.toc.chunks.data_start, converted.toc.chunks.data_end, strict=True))
    assert whole == device


@pytest.mark.parametrize("stream", [b"", bytes(512), bytes(1024), bytes(10_240), bytes(1000)])
@pytest.mark.parametrize("codec", CODECS)
def test_empty_layers(tmp_path: Path, stream: bytes, codec: str) -> None:
    converted = convert_stream(stream, tmp_path, settings=with_codec(codec))
    assert len(converted.toc.tree.inodes) == 1
    assert converted.toc.chunks.device_size == -(-len(stream) // 512) * 512
    assert b"".join(plain_pieces([blob_of(converted, tmp_path)], "layer")) == stream


def test_annotations_of_the_source_are_kept(tmp_path: Path) -> None:
    stream = random_stream(1)
    with LayoutStore(tmp_path, create=True) as store:
        layer = replace(put_layer(store, stream), annotations={"org.example": "kept"})
        converted = convert_layer(store, layer, diff_id_of(stream), store, Settings())
    assert converted.descriptor.annotations["org.example"] == "kept"
    assert converted.descriptor.toc_location() is not None


STREAM = random_stream(2)
PACKED = gzip.compress(STREAM)


def truncated_member() -> bytes:
    return layer_tar([Entry(b"a", content=bytes(100_000))])[:60_000]


FAULTS: dict[str, tuple[bytes, bytes, type[LazyfsError], str]] = {
    # what the store has, what its digest promises, error, what it says
    "cut short gzip": (PACKED[:-1000], PACKED[:-1000], BadInputError, "ends too early|inside its"),
    "rubbish behind": (PACKED + b"rubbish" * 9, PACKED + b"rubbish" * 9, BadInputError, "stream is damaged"),
    "flipped bit": (
        PACKED[:5000] + bytes([PACKED[5000] ^ 1]) + PACKED[5001:],
        PACKED,
        LazyfsError,
        "damaged|promise|checksum|byte",
    ),
    "another stream": (
        gzip.compress(bytes(1024)),
        gzip.compress(bytes(1024)),
        IntegrityError,
        "the config says",
    ),
    "another blob": (gzip.compress(STREAM, 1), PACKED, IntegrityError, "other bytes than its digest"),
    "a shorter blob": (STREAM[:-512], STREAM, IntegrityError, "other bytes than its digest"),
    "a longer blob": (STREAM + bytes(512), STREAM, IntegrityError, "other bytes than its digest"),
    "a member cut short": (truncated_member(), truncated_member(), BadInputError, "member 'a' at byte 0"),
    "no tar": (b"no tar at all" * 1000, b"no tar at all" * 1000, BadInputError, "tar"),
    "a zstd frame cut short": (
        zstandard.compress(STREAM)[:-5],
        zstandard.compress(STREAM)[:-5],
        LazyfsError,
        "inside|the config says",
    ),
    "what no tree can be": (
        layer_tar([Entry(b"f"), Entry(b"f/g")]),
        layer_tar([Entry(b"f"), Entry(b"f/g")]),
        BadInputError,
        "'f' is not a directory",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_and_leave_nothing(name: str, tmp_path: Path) -> None:
    stored, promised, error, what = FAULTS[name]
    before = set(threading.enumerate())
    layer = Descriptor(OCI_LAYER, diff_id_of(promised), len(promised))
    with (
        LayoutStore(tmp_path / "target", create=True) as target,
        FaultySource(tmp_path / "source", stored) as source,
    ):
        empty = sorted((tmp_path / "target").rglob("*"))
        with pytest.raises(error, match=what) as caught:
            convert_layer(source, layer, diff_id_of(STREAM), target, with_codec("zstd"))
        assert layer.digest in caught.value.message or "tar" in caught.value.message
        assert sorted((tmp_path / "target").rglob("*")) == empty
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


class FaultySource(LayoutStore):
    """Gives these bytes whatever is asked for, and then an error where there is one."""

    def __init__(self, directory: Path, data: bytes, error: Exception | None = None) -> None:
        super().__init__(directory, create=True)
        self._data = data
        self._error = error

    def stream(self, digest: str, offset: int = 0, piece: int = 0) -> Generator[bytes]:
        for at in range(0, len(self._data), 50_000):
            yield self._data[at : at + 50_000]
        if self._error is not None:
            raise self._error


def test_a_store_that_fails_in_the_middle(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    layer = Descriptor(OCI_LAYER, diff_id_of(STREAM), len(STREAM))
    failure = StoreError("the connection was reset")
    with (
        LayoutStore(tmp_path / "target", create=True) as target,
        FaultySource(tmp_path / "source", STREAM[:100_000], failure) as source,
        pytest.raises(StoreError, match="connection was reset"),
    ):
        convert_layer(source, layer, diff_id_of(STREAM), target, Settings())
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")
    assert not list((tmp_path / "target/blobs").rglob("*.*"))


def test_a_fault_while_much_is_still_to_be_read(tmp_path: Path) -> None:
    """The reader thread stands before a full queue then."""
    before = set(threading.enumerate())
    stream = layer_tar([Entry(b"f"), Entry(b"f/g"), Entry(b"large", content=bytes(64 << 20))])
    with LayoutStore(tmp_path, create=True) as store, pytest.raises(BadInputError, match="not a directory"):
        convert_layer(store, put_layer(store, stream), diff_id_of(stream), store, Settings())
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


def test_what_a_node_would_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc_check, "MAX_SPARSE_FILES", 1)
    entries = [Entry(b"f%d" % n, content=bytes(4096), sparse=((4096, 0),)) for n in range(2)]
    with pytest.raises(LimitError, match=r"layer sha256:.*2 sparse files"):
        convert_stream(layer_tar(entries), tmp_path)


@pytest.mark.parametrize(("codec", "tool"), [("zstd", "zstd"), ("none", "zstd"), ("gzip", "gzip")])
def test_the_tool_of_the_format_reads_the_blob(codec: str, tool: str, tmp_path: Path) -> None:
    converted = convert_stream(STREAM, tmp_path, settings=with_codec(codec))
    blob = blob_of(converted, tmp_path)
    assert subprocess.run([tool, "-dc"], input=blob, capture_output=True, check=True).stdout == STREAM
    subprocess.run([tool, "-t"], input=blob, capture_output=True, check=True)


def test_an_interrupt_while_the_reading_thread_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen as what it is: nobody closes the layer's stream under the thread that reads it."""
    reading, released = threading.Event(), threading.Event()

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            assert reading.wait(20)
            threading.Timer(0.2, released.set).start()
            raise KeyboardInterrupt

    class Slow(LayoutStore):
        def stream(self, digest: str, offset: int = 0, piece: int = 0) -> Generator[bytes]:
            reading.set()
            assert released.wait(20)
            yield from super().stream(digest, offset)

    store = Slow(tmp_path, create=True)
    stream = layer_tar([Entry(b"file")])
    layer = put_layer(store, gzip.compress(stream))
    monkeypatch.setattr("converter.layer.threading.Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_layer(store, layer, diff_id_of(stream), store, with_codec("zstd"))
    assert released.is_set()
