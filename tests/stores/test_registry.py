"""The registry: the conformance of every store at Debian's docker-registry, beside skopeo, and end to end."""

import gzip
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import NotFoundError, StoreError, UsageError
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import OCI_FOREIGN_LAYER_GZIP, OCI_MANIFEST
from lazyfs.stores import LayoutStore, Store, load_image, open_store, parse_reference, write_blob
from lazyfs.stores.registry import upload
from lazyfs.stores.registry.store import RegistryStore
from tests.registry import Registry, needs_registry, run_registry, skopeo

from .conformance import ABSENT, StoreConformance
from .samples import make_sample, put_sample

pytestmark = needs_registry

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def name(registry: Registry) -> str:
    """A repository that no other test uses."""
    return f"docker://{registry.host}/tests/number-{next(_numbers)}"


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with open_store(parse_reference(name), create=True) as store:
        yield store


def opened(name: str, *, create: bool = False) -> RegistryStore:
    store = open_store(parse_reference(name), create=create)
    assert isinstance(store, RegistryStore)
    return store


class TestConformance(StoreConformance):
    second_tag = "App_v2.0"
    foreign_layer = Descriptor(
        OCI_FOREIGN_LAYER_GZIP, ABSENT, 5, extra={"urls": ["https://licences.example/layer"]}
    )
    blobs_written_at_once = 40


def test_a_reader_sees_what_a_writer_wrote(store: Store, name: str) -> None:
    descriptor = put_sample(store, make_sample("a"), "v1")
    with opened(name) as reader:
        assert reader.resolve("v1") == reader.resolve(descriptor.digest) == reader.resolve(None)
        image = load_image(reader, parse_reference(f"{name}:v1"), "linux/amd64")
        assert image.manifest_bytes == make_sample("a").manifest
        assert reader.url == name


def test_a_repository_that_is_not_there(name: str) -> None:
    with opened(name) as reader:
        assert reader.tags() == []
        with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN") as caught:
            reader.resolve("v1")
        assert caught.value.hint == "check the name of the repository"
        with pytest.raises(NotFoundError, match="has no image"):
            reader.resolve(None)


def test_tags_come_in_pages(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.stores.registry.store._PAGE", 3)
    descriptor = put_sample(store, make_sample("a"))
    tags = [f"v{number}" for number in range(10)]
    for tag in tags:
        store.put_tag(tag, descriptor)
    assert store.tags() == tags


def test_what_is_attached_to_an_image_is_no_image_of_the_repository(store: Store) -> None:
    first = put_sample(store, make_sample("first"), "v1")
    put_sample(store, make_sample("signature"), f"{first.digest.replace(':', '-')}.sig")
    assert store.resolve(None).digest == first.digest
    with pytest.raises(NotFoundError) as caught:
        store.resolve("v2")
    assert caught.value.hint == "its tags are: v1"


# Writing


@pytest.mark.parametrize("size", [999, 1000, 1001, 2000, 5500])
def test_a_large_blob_goes_out_in_chunks(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1000)
    data = os.urandom(size)
    with store.writer() as writer:
        for start in range(0, size, 300):
            writer.write(data[start : start + 300])
        assert writer.commit(sha256_digest(data)) == (sha256_digest(data), size)
    assert store.read(sha256_digest(data), 0, size) == data
    assert registry.uploads() == []


def test_a_blob_that_is_given_up_leaves_nothing(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1000)
    with store.writer() as writer:
        writer.write(bytes(3500))
        with pytest.raises(Exception, match="not sha256:0000"):
            writer.commit(ABSENT[:7] + "0" * 64)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.write(bytes(3500))
        raise KeyboardInterrupt
    assert registry.uploads() == []


def test_a_small_blob_that_is_there_is_not_sent_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_blob(store, b"once")

    def start(_: object) -> None:
        raise AssertionError("an upload was begun")

    monkeypatch.setattr(upload.UploadSession, "start", start)
    assert write_blob(store, b"once") == (sha256_digest(b"once"), 4)


def test_a_blob_is_taken_from_another_repository(store: Store, name: str, registry: Registry) -> None:
    digest, size = write_blob(store, b"shared")
    with opened(f"{name}-other", create=True) as other, LayoutStore(registry.storage, create=True) as layout:
        assert other.adopt(store, digest)
        assert other.has(digest) == size
        assert not other.adopt(store, ABSENT)
        assert not other.adopt(layout, digest)
        assert other.has(ABSENT) is None
    assert registry.uploads() == []


def test_a_manifest_without_its_blobs_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="MANIFEST_BLOB_UNKNOWN") as caught:
        store.put_document(make_sample("a").manifest, OCI_MANIFEST)
    assert "write every blob before" in caught.value.hint


def test_a_tag_that_no_registry_can_have(store: Store) -> None:
    descriptor = put_sample(store, make_sample("a"))
    with pytest.raises(UsageError, match="cannot be a tag in a registry"):
        store.put_tag("lib/app:v2", descriptor)


def test_what_was_opened_for_reading_is_not_written(store: Store, name: str) -> None:
    with opened(name) as reader:
        with pytest.raises(StoreError, match="for reading alone"):
            reader.writer()
        with pytest.raises(StoreError, match="for reading alone"):
            reader.put_document(make_sample("a").manifest, OCI_MANIFEST)
        with pytest.raises(StoreError, match="for reading alone"):
            reader.adopt(store, ABSENT)


# Beside skopeo, and end to end


def test_skopeo_reads_what_we_wrote_and_we_read_what_it_wrote(
    store: Store, name: str, tmp_path: Path
) -> None:
    sample = make_sample("a")
    put_sample(store, sample, "v1")
    assert skopeo("inspect", "--raw", "--tls-verify=false", f"{name}:v1") == sample.manifest
    skopeo("copy", "--src-tls-verify=false", f"{name}:v1", f"oci:{tmp_path}/copy:v1")
    with LayoutStore(tmp_path / "copy") as copy:
        layers = load_image(copy, parse_reference(f"oci:{tmp_path}/copy:v1"), "linux/amd64").layers
        unpacked = [gzip.decompress(b"".join(copy.stream(layer.digest))) for layer, _ in layers]
        assert unpacked == list(sample.layers)
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/copy:v1", f"{name}:v2")
    image = load_image(store, parse_reference(f"{name}:v2"), "linux/amd64")
    assert image.config_bytes == sample.config
    for layer, _ in image.layers:
        assert store.has(layer.digest) == layer.size


def lazyfs(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "lazyfs.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_image_is_converted_into_a_registry_and_checked_there(name: str, tmp_path: Path) -> None:
    with LayoutStore(tmp_path / "plain", create=True) as plain:
        put_sample(plain, make_sample("a"), "v1")
    lazyfs("convert", f"oci:{tmp_path}/plain:v1", f"{name}:lazy")
    assert lazyfs("check", f"{name}:lazy").startswith("ok")
    # And from the registry to itself: what is there is not converted again.
    lazyfs("convert", f"{name}:lazy", f"{name}:again")
    assert lazyfs("check", f"{name}:again").startswith("ok")
    skopeo("copy", "--src-tls-verify=false", f"{name}:lazy", f"oci:{tmp_path}/copy:v1")


def test_naming_an_image_imports_no_http_client() -> None:
    program = (
        "import sys, lazyfs.stores as stores\n"
        "stores.parse_reference('docker://localhost:5000/app')\n"
        "assert not {'http.client', 'ssl', 'urllib.request'} & set(sys.modules), sys.modules.keys()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
