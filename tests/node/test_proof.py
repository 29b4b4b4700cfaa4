"""A layer is what its DiffID says, or it is found out; a store that lies brings no layer into disrepute."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from lazyfs.errors import IntegrityError, StoreError, UnsupportedError
from lazyfs.formats.frames import compressor, open_frame
from lazyfs.formats.toc_types import Toc
from lazyfs.node.cache import LayerCache
from lazyfs.node.layers import load_toc
from lazyfs.node.proof import FalseLayerError, prove_layer
from lazyfs.node.sources import BlobSource
from lazyfs.stores import LayoutStore, load_image, parse_reference, write_blob
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar

from .samples import BOOT, TOC_NAME


class CountingStore(LayoutStore):
    fetched = 0

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        for piece in super().read_pieces(digest, offset, lengths):
            self.fetched += len(piece)
            yield piece


class Case:
    """One converted layer; `rewrite` makes its blob another one."""

    def __init__(self, directory: Path, stream: bytes) -> None:
        self.directory = directory
        reference = convert(put_image(directory / "images", [stream]), f"oci:{directory}/images:lazy")
        self.store = CountingStore(directory / "images")
        ((self.layer, diff_id),) = load_image(self.store, parse_reference(reference)).layers
        self.toc: Toc = load_toc(self.store, self.layer, diff_id)
        self.cache = LayerCache(directory / TOC_NAME, self.toc.chunks, BOOT)

    def close(self) -> None:
        self.cache.close()
        self.store.close()

    def prove(self, claimed: Toc | None = None, go_on: Callable[[], bool] = lambda: True) -> bool:
        source = BlobSource(self.store, self.layer.digest, self.toc.codec)
        return prove_layer(claimed or self.toc, self.cache, [source], go_on)

    def plain(self) -> list[bytes]:
        """Of each chunk what its frame holds."""
        chunks = self.toc.chunks
        places = zip(chunks.blob_offset.tolist(), chunks.blob_length.tolist(), strict=True)
        frames = [self.store.read(self.layer.digest, *place) for place in places]
        return [
            open_frame(self.toc.codec, frame, chunks.length(index), "a chunk")
            for index, frame in enumerate(frames)
        ]

    def fill(self) -> None:
        for index, plain in enumerate(self.plain()):
            self.cache.put(index, self.toc.chunks.shown(index, plain))
        self.store.fetched = 0

    def rewrite(self, change: Callable[[bytes], bytes], *, keep_digest: bool = False) -> None:
        """The blob with another stream in it: under its own digest, or under the old one in a store that lies."""
        chunks = self.toc.chunks
        stream = change(b"".join(self.plain()))
        compress = compressor(self.toc.codec, 1)
        frames = [compress(stream[start:end]) for start, end in pairwise(chunks.start.tolist())]
        lengths = np.array([len(frame) for frame in frames])
        moved = replace(chunks, blob_offset=np.cumsum(lengths) - lengths, blob_length=lengths)
        self.toc = replace(self.toc, chunks=moved)
        blob = b"".join(frames)
        if keep_digest:
            (self.directory / "images/blobs" / self.layer.digest.replace(":", "/")).write_bytes(blob)
        else:
            self.layer = replace(self.layer, digest=write_blob(self.store, blob)[0])
        self.store.close()
        self.store = CountingStore(self.directory / "images")


STREAM = layer_tar(
    [
        Entry(b"large", content=Random(1).randbytes(1_500_000)),
        *(Entry(b"small%d" % number, content=b"%d" % number) for number in range(100)),
    ]
)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path, STREAM)
    yield case
    case.close()


def test_right(case: Case) -> None:
    assert case.prove()
    everything = case.store.fetched
    case.fill()
    assert case.prove()
    # Of what is here, only what holds tar headers comes again.
    assert 0 < case.store.fetched < everything / 2


def test_given_up(case: Case) -> None:
    assert not case.prove(go_on=lambda: False)


def test_another_diff_id(case: Case) -> None:
    with pytest.raises(FalseLayerError, match="DiffID sha256:0000"):
        case.prove(replace(case.toc, diff_id=bytes(32)))


def test_another_tree(case: Case) -> None:
    """The stream is the one of the DiffID, and the TOC shows other files in it."""
    inodes = case.toc.tree.inodes
    wider = replace(inodes, mode=inodes.mode | np.uint16(0o4000))
    with pytest.raises(FalseLayerError, match="other files than its TOC"):
        case.prove(replace(case.toc, tree=replace(case.toc.tree, inodes=wider)))


def test_no_tar_at_all(tmp_path: Path) -> None:
    case = Case(tmp_path, STREAM)
    try:
        # Not a header that any tar has; nor does any device show it, so no chunk's digest knows.
        case.rewrite(lambda stream: b"\xff" * 512 + stream[512:])
        with pytest.raises(FalseLayerError, match="its stream is sha256:"):
            case.prove()
    finally:
        case.close()


def test_a_store_that_gives_wrong_headers(case: Case) -> None:
    """The blob is not the one that its digest names: nothing is said of the layer."""
    case.rewrite(lambda stream: stream[:100] + b"7" + stream[101:], keep_digest=True)
    with pytest.raises(StoreError, match="other bytes than its digest promises"):
        case.prove()


def test_a_store_that_gives_wrong_data(case: Case) -> None:
    case.rewrite(lambda stream: stream[:2000] + b"wrong" + stream[2005:], keep_digest=True)
    with pytest.raises(IntegrityError, match="chunk 1 of blob") as caught:
        case.prove()
    assert not isinstance(caught.value, FalseLayerError)


def test_sparse_files(tmp_path: Path) -> None:
    case = Case(tmp_path, layer_tar([Entry(b"sparse", content=b"x" * 1536, sparse=((1024, 512),))]))
    with pytest.raises(UnsupportedError, match="sparse files"):
        case.prove()
    case.close()
