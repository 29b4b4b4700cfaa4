"""Servers that keep a reader waiting: an error in time that names blob and host, and the next read tries anew."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.formats.frames import ZSTD
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.node.cache import LayerCache
from lazyfs.node.device import LayerDevice
from lazyfs.node.engine import Engine
from lazyfs.node.fetch import Fetcher
from lazyfs.node.sources import BlobSource
from lazyfs.node.timeline import Timeline
from lazyfs.stores import StoreOptions, open_store, parse_reference
from lazyfs.stores.registry.store import RegistryStore
from tests.faults import HANG, FaultServer, Reply, Seen, ranged

from .samples import BOOT, KIB, PATIENCE, TOC_NAME, Layer

TIMEOUT = 0.6


def stalled(request: Seen, data: bytes) -> Reply:
    """The right head and half of the body; then nothing."""
    whole = ranged(request, data)
    assert isinstance(whole.body, bytes)
    half = len(whole.body) // 2
    return Reply(whole.status, whole.headers, whole.body[:half], length=len(whole.body), after="hang")


def dripping(request: Seen, data: bytes) -> Reply:
    whole = ranged(request, data)
    return Reply(whole.status, whole.headers, whole.body, drip=True)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda request, data: HANG, id="silent"),
        pytest.param(stalled, id="stalls in the body"),
        pytest.param(dripping, id="byte by byte"),
        pytest.param(lambda request, data: Reply(503, {"Retry-After": "1"}), id="always busy"),
    ],
)
def test_a_read_ends_in_time_and_the_next_one_tries_anew(
    tmp_path: Path, answer: Callable[[Seen, bytes], Reply]
) -> None:
    layer, timeline = Layer([40 * KIB] * 4), Timeline()
    digest = sha256_digest(layer.blob)
    cache = LayerCache(tmp_path / TOC_NAME, layer.chunks, BOOT)
    engine = Engine(timeline, timeout=TIMEOUT)
    with FaultServer(lambda request: answer(request, layer.blob)) as server:
        reference = parse_reference(f"docker://{server.host}/app")
        options = StoreOptions(insecure=True, timeout=TIMEOUT)
        with open_store(reference, options=options) as store:
            fetcher = Fetcher(digest, BlobSource(store, digest, ZSTD), cache, engine)
            device = LayerDevice(cache, fetcher)
            began = time.monotonic()
            with pytest.raises(LazyfsError) as caught:
                device.request(0, layer.chunks.device_size).result(PATIENCE)
            assert time.monotonic() - began < PATIENCE / 2
            assert digest in caught.value.message
            (reason, *_) = timeline.counters()["recent_failures"]
            assert digest in reason
            assert server.host in reason
            server.script = lambda request: ranged(request, layer.blob)
            # However busy this machine is: what was too short for a fault is long enough for an answer.
            assert isinstance(store, RegistryStore)
            store._client._timeout = engine.timeout = PATIENCE
            assert device.request(0, layer.chunks.device_size).result(PATIENCE) == layer.device
            engine.close()
    cache.close()
