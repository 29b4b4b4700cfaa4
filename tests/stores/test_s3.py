"""Images in buckets, with a real server: the conformance of every store, and what only a bucket can get wrong."""

import hashlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from lazyfs.errors import BadInputError, IntegrityError, LimitError, StoreError, UsageError
from lazyfs.formats.oci import parse_index
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.stores import Store, StoreOptions, load_image, open_store, parse_reference, write_blob
from lazyfs.stores import s3 as s3_module
from lazyfs.stores import s3_upload as upload_module
from tests.faults import FaultServer, Reply, Seen
from tests.s3server import BUCKET, S3Place, forward

from .conformance import StoreConformance
from .samples import make_sample, put_sample


@pytest.fixture
def store(s3: S3Place) -> Iterator[Store]:
    with opened(s3.location, create=True) as store:
        yield store


def opened(location: str, *, create: bool = False, options: StoreOptions | None = None) -> Store:
    return open_store(parse_reference(f"s3://{location}"), create=create, options=options or StoreOptions())


def blob_key(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


class TestConformance(StoreConformance):
    def test_many_threads_read_and_write_at_once(self, store: Store) -> None:
        """As for other stores, with as many requests as the slower of the servers answers in a moment."""
        blobs = [bytes([number]) * 5000 for number in range(16)]

        def use(data: bytes) -> None:
            digest, _ = write_blob(store, data)
            for start in range(0, 5000, 500):
                assert store.read(digest, start, 500) == data[start : start + 500]

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(use, [*blobs, *blobs]))


# Keys


def test_an_image_is_a_layout_of_keys(store: Store, s3: S3Place, tmp_path: Path) -> None:
    sample = make_sample("a")
    put_sample(store, sample, "v1")
    put_sample(store, sample, "lib/app:v2")
    digests = sorted(map(sha256_digest, (*sample.layers, sample.config, sample.manifest)))
    blobs = [blob_key(digest) for digest in digests]
    assert list(s3.objects()) == ["app/_tags/lib%2Fapp%3Av2", "app/_tags/v1", *blobs, "oci-layout"]
    # What the module promises: a tag's object is the index.json of a layout that other tools read.
    for key in ["oci-layout", *blobs]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(s3.get(key))
    (tmp_path / "index.json").write_bytes(s3.get("app/_tags/v1"))
    with open_store(parse_reference(f"oci:{tmp_path}")) as layout:
        assert load_image(layout, parse_reference(f"oci:{tmp_path}:v1")).manifest_bytes == sample.manifest


def test_repositories_share_blobs_and_no_tags(store: Store, s3: S3Place) -> None:
    sample = make_sample("a")
    put_sample(store, sample, "v1")
    before = len(s3.objects())
    with opened(s3.location.replace("/app", "/other"), create=True) as other:
        assert other.tags() == []
        assert other.has(sample.descriptor.digest) == sample.descriptor.size
        put_sample(other, sample, "v2")
    assert len(s3.objects()) == before + 1
    assert store.tags() == ["v1"]
    nested = f"{s3.location}/app"
    with opened(nested, create=True) as below:
        put_sample(below, make_sample("b"), "v3")
    assert store.tags() == ["v1"]


def test_a_repository_may_be_all_of_the_path(s3: S3Place) -> None:
    with opened(f"{BUCKET}/{s3.prefix}", create=True) as store:
        put_sample(store, make_sample("a"), "v1")
        assert store.tags() == ["v1"]
    assert list(s3.objects()) == ["_tags/v1"]


def test_writers_of_tags_at_once_lose_none(s3: S3Place) -> None:
    sample = make_sample("a")
    with opened(s3.location, create=True) as first, opened(s3.location, create=True) as second:
        put_sample(first, sample)

        def put(number: int) -> None:
            (first if number % 2 else second).put_tag(f"v{number}", sample.descriptor)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(20)))
        assert len(first.tags()) == 20


def test_a_tag_that_was_tampered_with(store: Store, s3: S3Place) -> None:
    put_sample(store, make_sample("a"), "v1")
    document = s3.get("app/_tags/v1")
    assert [item.digest for item in parse_index(document).manifests] == [make_sample("a").descriptor.digest]
    for body in (b"", b"{}", b"not json", document.replace(b'"v1"', b'"v2"')):
        s3.put("app/_tags/v1", body)
        with pytest.raises(BadInputError, match="_tags/v1"):
            store.resolve("v1")
    with pytest.raises(UsageError, match="too long"):
        store.put_tag("v" * 1000, make_sample("a").descriptor)


# Blobs


def test_a_large_blob_goes_in_parts_and_comes_in_ranges(
    store: Store, s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_STREAM_RANGE", 3 << 20)
    data = b"".join(hashlib.sha256(bytes([number])).digest() * (1 << 15) for number in range(21))
    with store.writer() as writer:
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        digest, size = writer.commit()
    assert store.has(digest) == size == len(data) > 2 * upload_module.PART
    assert b"".join(store.stream(digest)) == data
    pieces = store.stream(digest)
    assert next(pieces) == data[: 1 << 20]
    del pieces

    def read(number: int) -> None:
        start = number * 104_729 % (len(data) - 70_000)
        assert store.read(digest, start, 65_536) == data[start : start + 65_536]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(160)))
    modified = s3.objects()[blob_key(digest)]
    assert write_blob(store, data) == (digest, size)
    assert s3.objects()[blob_key(digest)] == modified


def test_a_truncated_object_is_named_and_mended(store: Store, s3: S3Place) -> None:
    data = bytes(100_000)
    digest, _ = write_blob(store, data)
    s3.put(blob_key(digest), data[:50_000])
    assert store.has(digest) == 50_000
    for start, end in [(40_000, 60_000), (50_000, 50_001), (0, 100_000)]:
        with pytest.raises(StoreError, match=f"{digest} in s3://{s3.location} has 50000 bytes"):
            store.read(digest, start, end - start)
    with pytest.raises(StoreError, match="has 50000 bytes, not 100000"):
        store.put_tag("v1", Descriptor(OCI_MANIFEST + ".other", digest, 100_000))
    write_blob(store, data)
    assert store.read(digest, 0, 100_000) == data


@pytest.fixture
def proxy(s3: S3Place) -> Iterator[FaultServer]:
    """The server, with a record of what it was asked for."""
    with FaultServer(forward(s3.server)) as proxy:
        yield proxy


def uploads(proxy: FaultServer) -> Counter[str]:
    """How many uploads in parts were begun, completed and aborted. (MinIO does not list them.)"""
    names = {"POST": "completed", "DELETE": "aborted"}
    found = Counter("begun" for seen in proxy.seen if seen.target.endswith("?uploads"))
    found.update(names.get(seen.method, "") for seen in proxy.seen if "uploadId=" in seen.target)
    return found


def through(proxy: FaultServer, s3: S3Place) -> Store:
    return opened(s3.location, create=True, options=StoreOptions(endpoint_url=proxy.url))


def test_the_server_copies_what_is_large_in_parts(
    proxy: FaultServer, s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "COPIED_AT_ONCE", 6 << 20)
    data = Random(1).randbytes((20 << 20) + 5)
    with through(proxy, s3) as store:
        assert write_blob(store, data) == (sha256_digest(data), len(data))
        assert b"".join(store.stream(sha256_digest(data))) == data
    assert list(s3.objects()) == [blob_key(sha256_digest(data))]
    assert uploads(proxy)["begun"] == uploads(proxy)["completed"] == 2


def test_parts_grow_when_there_are_many(
    proxy: FaultServer, s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "PART", 5 << 20)
    monkeypatch.setattr(upload_module, "LARGE_PART", 7 << 20)
    monkeypatch.setattr(upload_module, "_SMALL_PARTS", 2)
    monkeypatch.setattr(upload_module, "_MAX_PARTS", 3)
    data = Random(1).randbytes(17 << 20)
    with through(proxy, s3) as store:
        assert write_blob(store, data) == (sha256_digest(data), len(data))
        assert b"".join(store.stream(sha256_digest(data))) == data
        before = s3.objects()
        with pytest.raises(LimitError, match="more than 3 parts"):
            write_blob(store, bytes(18 << 20))
    assert s3.objects() == before
    assert uploads(proxy)["aborted"] == 1


def test_what_is_given_up_leaves_nothing(proxy: FaultServer, s3: S3Place) -> None:
    with through(proxy, s3) as store:
        with pytest.raises(KeyboardInterrupt), store.writer() as writer:
            writer.write(bytes(40 << 20))
            raise KeyboardInterrupt
        with store.writer() as writer:
            writer.write(bytes(20 << 20))
            with pytest.raises(IntegrityError):
                writer.commit(sha256_digest(b"other"))
    assert s3.objects() == {}
    assert uploads(proxy)["begun"] == uploads(proxy)["aborted"] == 2


KILLED = """
import os, signal, sys
from lazyfs.stores import open_store, parse_reference, s3_upload
step, left = sys.argv[2], int(sys.argv[3])
def dying(function):
    def called(*arguments, **words):
        global left
        left -= step in (function.__name__, *arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **words)
    return called
s3_upload._copy = dying(s3_upload._copy)
s3_upload._Upload._call = dying(s3_upload._Upload._call)
store = open_store(parse_reference(sys.argv[1]), create=True)
with store.writer() as writer:
    for number in range(32):
        writer.write(bytes([number]) * (1 << 20))
    writer.commit()
"""


@pytest.mark.parametrize(("step", "number"), [("upload_part", 3), ("_copy", 1), ("delete_object", 1)])
def test_what_a_killed_run_leaves_is_hidden_and_taken_away(
    s3: S3Place, step: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, f"s3://{s3.location}", step, str(number)]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    left = list(s3.objects())
    assert [key for key in left if not key.startswith("blobs/_uploads/")] == (
        [] if step != "delete_object" else left[1:]
    )
    data = b"".join(bytes([number]) * (1 << 20) for number in range(32))
    with opened(s3.location, create=True) as store:
        # Somebody may still be at it.
        write_blob(store, b"another")
        assert set(left) < set(s3.objects())
    monkeypatch.setattr(upload_module, "ABANDONED", timedelta(0))
    with opened(s3.location, create=True) as store:
        assert write_blob(store, data) == (sha256_digest(data), len(data))
        assert b"".join(store.stream(sha256_digest(data))) == data
    assert len(s3.objects()) == 2
    assert not [key for key in s3.objects() if "_uploads" in key]


def test_uploads_that_were_left_open_are_aborted(proxy: FaultServer, s3: S3Place) -> None:
    def upload(name: str, begun: datetime) -> str:
        key = f"{s3.prefix}/blobs/_uploads/{name}"
        return f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId><Initiated>{begun:%FT%TZ}</Initiated></Upload>"

    now = datetime.now(UTC)
    listed = upload("old", now - timedelta(hours=25)) + upload("young", now - timedelta(hours=23))
    right = proxy.script

    def script(seen: Seen) -> Reply:
        if seen.method == "GET" and "uploads" in seen.target.partition("?")[2].split("&"):
            return Reply(body=f"<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>".encode())
        return right(seen)

    proxy.script = script
    with through(proxy, s3) as store:
        write_blob(store, b"small")
    (aborted,) = [seen.target for seen in proxy.seen if seen.method == "DELETE"]
    assert aborted.endswith("_uploads/old?uploadId=old")


def test_no_blob_lies_on_the_local_disk(s3: S3Place) -> None:
    """Not even in a file without a name: the kernel refuses this process every file of more than 64 KiB."""
    code = """
import resource, sys
from lazyfs.stores import open_store, parse_reference
store = open_store(parse_reference(sys.argv[1]), create=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
with store.writer() as writer:
    for number in range(40):
        writer.write(bytes([number]) * (1 << 20))
    print(*writer.commit())
"""
    command = [sys.executable, "-c", code, f"s3://{s3.location}"]
    said = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True).stdout
    assert said.split()[1] == str(40 << 20)
