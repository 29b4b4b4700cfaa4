"""Archives that are written: the conformance of every store, and what other tools make of the result."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from lazyfs.errors import BusyError, NotFoundError, StoreError, UnsupportedError, UsageError
from lazyfs.formats.oci import ImageConfig, Index, Manifest
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import (
    DOCKER_FOREIGN_LAYER_GZIP,
    LAYER_RECORD_TYPE,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)
from lazyfs.stores import Store, archive_write, load_image, open_store, parse_reference, write_blob
from lazyfs.stores._files import TEMP_PREFIX

from .conformance import ABSENT, StoreConformance
from .samples import make_sample, put_sample

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
KINDS = ["oci-archive", "docker-archive"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.tar"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(kind: str, path: Path, *, create: bool = False) -> Store:
    return open_store(parse_reference(f"{kind}:{path}"), create=create)


def leftovers(path: Path) -> list[Path]:
    return [other for other in path.parent.iterdir() if other != path]


class TestOciArchive(StoreConformance):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[Store]:
        with opened("oci-archive", path, create=True) as store:
            yield store


class TestDockerArchive(StoreConformance):
    keeps_referrers = False

    @pytest.fixture
    def store(self, path: Path) -> Iterator[Store]:
        with opened("docker-archive", path, create=True) as store:
            yield store

    def test_an_index_is_complete_when_its_images_are(self, store: Store) -> None:
        sample = make_sample("a")
        put_sample(store, sample)
        index = store.put_document(Index((sample.descriptor,)).to_bytes(), OCI_INDEX)
        with pytest.raises(UnsupportedError, match="one platform") as caught:
            store.put_tag("both", index)
        assert "oci-archive" in caught.value.hint

    def test_a_foreign_layer_need_not_be_there(self, store: Store) -> None:
        config = store.put_document(ImageConfig((ABSENT,)).to_bytes(), OCI_CONFIG)
        manifest = Manifest(config, (Descriptor(DOCKER_FOREIGN_LAYER_GZIP, ABSENT, 5),))
        with pytest.raises(UnsupportedError, match="all their layers"):
            store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))


def test_what_was_written_is_read_again(kind: str, path: Path) -> None:
    first, second = make_sample("first"), make_sample("second")
    with opened(kind, path, create=True) as store:
        put_sample(store, first, "app:v1")
        put_sample(store, second, "app:v2")
        store.put_tag("app:stable", first.descriptor)
        write_blob(store, b"that nothing names")
        assert not path.exists()
    assert leftovers(path) == []
    with opened(kind, path) as store:
        assert store.tags() == ["app:stable", "app:v1", "app:v2"]
        for tag, sample in [("app:v1", first), ("app:v2", second), ("app:stable", first)]:
            image = load_image(store, parse_reference(f"{kind}:{path}:{tag}"))
            assert image.manifest_bytes == sample.manifest
            for layer, plain in zip(image.manifest.layers, sample.layers, strict=True):
                assert b"".join(store.stream(layer.digest)) == plain
                assert store.read(layer.digest, 100, 50) == plain[100:150]
        assert store.has(sha256_digest(b"that nothing names")) is None
        with pytest.raises(StoreError, match="reading alone"):
            store.writer()


def test_the_same_images_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    written = []
    for name, layers in [("a.tar", 1), ("b.tar", -1)]:
        sample = make_sample("a")
        with opened(kind, tmp_path / name, create=True) as store:
            for layer in sample.layers[::layers]:
                write_blob(store, layer)
            put_sample(store, sample, "app:v1")
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_write, "_SMALL", 0)


@pytest.mark.usefixtures("nothing_is_small")
def test_blobs_go_straight_into_the_file(kind: str, path: Path) -> None:
    """With what was given up, written twice, written beside another and named by nothing on the way."""
    first, second = make_sample("first"), make_sample("second")
    with opened(kind, path, create=True) as store:
        write_blob(store, b"that nothing names")
        with store.writer() as given_up:
            given_up.write(bytes(5000))
        write_blob(store, first.layers[0])
        with store.writer() as one, store.writer() as other, store.writer() as again:
            one.write(first.layers[1][:100])
            other.write(second.layers[1])
            again.write(first.layers[0])
            assert other.commit(sha256_digest(second.layers[1]))
            again.commit()
            one.write(first.layers[1][100:])
            one.commit(sha256_digest(first.layers[1]))
        put_sample(store, first, "app:v1")
        put_sample(store, second, "app:v2")
        for plain in (*first.layers, *second.layers):
            assert b"".join(store.stream(sha256_digest(plain), 7)) == plain[7:]
    assert leftovers(path) == []
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names)) == 2 + 7 + (2 if kind == "oci-archive" else 3)
    with opened(kind, path) as store:
        for tag, sample in [("app:v1", first), ("app:v2", second)]:
            image = load_image(store, parse_reference(f"{kind}:{path}:{tag}"))
            for layer, plain in zip(image.manifest.layers, sample.layers, strict=True):
                assert b"".join(store.stream(layer.digest)) == plain


@pytest.mark.usefixtures("nothing_is_small")
def test_an_archive_is_not_finished_under_a_writer(path: Path) -> None:
    store = opened("oci-archive", path, create=True)
    put_sample(store, make_sample("a"), "app:v1")
    with store.writer() as writer:
        writer.write(b"half")
        with pytest.raises(StoreError, match="still written"):
            store.close()
    assert not path.exists()
    assert leftovers(path) == []


def test_an_archive_takes_no_space_beside_itself(path: Path) -> None:
    size = 3 << 20
    with opened("oci-archive", path, create=True) as store:
        with store.writer() as writer:
            for _ in range(3):
                writer.write(bytes(size // 3))
            (written,) = leftovers(path)
            assert written.stat().st_size >= size
            digest, _ = writer.commit()
        config = store.put_document(ImageConfig((digest,)).to_bytes(), OCI_CONFIG)
        manifest = Manifest(config, (Descriptor(OCI_LAYER, digest, size),))
        store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
        assert leftovers(path) == [written]
        inode = written.stat().st_ino
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 1 << 40])
def test_a_header_takes_one_block_whatever_the_size(size: int) -> None:
    digest = sha256_digest(b"")
    header = archive_write._blob_header(digest, size)
    assert len(header) == tarfile.BLOCKSIZE
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size


def test_images_are_added_and_replaced(kind: str, path: Path) -> None:
    with opened(kind, path, create=True) as store:
        put_sample(store, make_sample("old"), "app:v1")
        put_sample(store, make_sample("other"), "other:v1")
    with opened(kind, path, create=True) as store:
        assert store.tags() == ["app:v1", "other:v1"]
        put_sample(store, make_sample("new"), "app:v1")
    with opened(kind, path) as store:
        assert store.tags() == ["app:v1", "other:v1"]
        assert store.resolve("app:v1").digest == make_sample("new").descriptor.digest
        assert store.resolve("other:v1").digest == make_sample("other").descriptor.digest
        assert store.has(make_sample("old").descriptor.digest) is None


def test_a_store_that_fails_leaves_the_file_as_it_was(kind: str, path: Path) -> None:
    with opened(kind, path, create=True) as store:
        put_sample(store, make_sample("old"), "app:v1")
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), opened(kind, path, create=True) as store:
        put_sample(store, make_sample("new"), "app:v1")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with opened(kind, path, create=True) as store:
        put_sample(store, make_sample("new"))
    assert path.read_bytes() == before
    assert leftovers(path) == []


def test_writers_at_once_lose_no_image(kind: str, path: Path) -> None:
    def write(number: int) -> None:
        with opened(kind, path, create=True) as store:
            put_sample(store, make_sample(f"image {number}"), f"app:v{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert leftovers(path) == []
    with opened(kind, path) as store:
        assert len(store.tags()) == 16
        for number in range(16):
            sample = make_sample(f"image {number}")
            assert store.get_document(store.resolve(f"app:v{number}")) == sample.manifest


def test_an_archive_that_is_being_written_is_waited_for(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_write, "_LOCK_TIMEOUT", 0.0)
    with archive_write.exclusive(path), pytest.raises(BusyError), opened(kind, path, create=True) as store:
        put_sample(store, make_sample("a"), "app:v1")
    assert leftovers(path) == []


def test_a_killed_writer_leaves_nothing_that_lasts(path: Path) -> None:
    with opened("oci-archive", path, create=True) as store:
        put_sample(store, make_sample("old"), "app:v1")
    code = f"""
import os, signal
from lazyfs.stores import open_store, parse_reference, write_blob
store = open_store(parse_reference("oci-archive:{path}"), create=True)
write_blob(store, b"written")
store.writer().write(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [item for item in leftovers(path) if item.name.startswith(TEMP_PREFIX)]
    with opened("oci-archive", path, create=True) as store:
        assert store.tags() == ["app:v1"]
        put_sample(store, make_sample("new"), "app:v2")
    assert leftovers(path) == []


def test_a_store_keeps_reading_what_was_replaced(kind: str, path: Path) -> None:
    old, new = make_sample("old"), make_sample("new")
    with opened(kind, path, create=True) as store:
        put_sample(store, old, "app:v1")
    with opened(kind, path) as reader:
        layer = sha256_digest(old.layers[1])
        assert reader.has(layer)
        pieces = reader.stream(layer)
        with opened(kind, path, create=True) as store:
            put_sample(store, new, "app:v1")
        assert reader.resolve("app:v1").digest == new.descriptor.digest
        assert b"".join(pieces) == old.layers[1]
        assert reader.read(layer, 0, 10) == old.layers[1][:10]
        path.unlink()
        assert reader.read(layer, 0, 10) == old.layers[1][:10]
        with pytest.raises(NotFoundError, match=path.name):
            reader.tags()


def test_a_link_to_an_archive_stays_one(path: Path) -> None:
    link = path.with_name("link.tar")
    link.symlink_to(path.name)
    with opened("oci-archive", link, create=True) as store:
        put_sample(store, make_sample("a"), "app:v1")
    assert link.is_symlink()
    with opened("oci-archive", path) as store:
        assert store.tags() == ["app:v1"]


def test_records_of_layers_are_not_handed_over(kind: str, path: Path) -> None:
    with opened(kind, path, create=True) as store:
        digest, size = write_blob(store, b"{}")
        manifest = Manifest(Descriptor(OCI_EMPTY, digest, size), (), artifact_type=LAYER_RECORD_TYPE)
        record = store.put_document(manifest.to_bytes(), OCI_MANIFEST)
        store.put_tag(
            "sha256-00.lazyfs-00",
            Descriptor(OCI_MANIFEST, record.digest, record.size, artifact_type=LAYER_RECORD_TYPE),
        )
        put_sample(store, make_sample("a"), "app:v1")
    with opened(kind, path) as store:
        assert store.tags() == ["app:v1"]
        assert store.resolve(None).digest == make_sample("a").descriptor.digest


def test_a_docker_archive_does_not_become_something_else(path: Path) -> None:
    with opened("docker-archive", path, create=True) as store:
        put_sample(store, make_sample("a"), "app:v1")
    before = path.read_bytes()
    with opened("oci-archive", path) as store:
        assert store.tags() == ["v1"], "what Docker writes is both, for who reads"
    with pytest.raises(UsageError, match="is a docker-archive as well") as caught:
        opened("oci-archive", path, create=True)
    assert f"docker-archive:{path}" in caught.value.hint
    other = path.with_name("other.tar")
    with opened("oci-archive", other, create=True) as store:
        put_sample(store, make_sample("b"), "v2")
        path.replace(other)
        with pytest.raises(UsageError, match="is a docker-archive as well"):
            store.close()
    assert other.read_bytes() == before


def test_docker_finds_its_names(path: Path) -> None:
    with opened("docker-archive", path, create=True) as store:
        put_sample(store, make_sample("a"), "app")
        store.put_tag("host:5000/team/app:v1", make_sample("a").descriptor)
        assert store.resolve("docker.io/library/app:latest").digest == make_sample("a").descriptor.digest
        for name in ("App", "app:", "", "app:v1@x"):
            with pytest.raises(UsageError):
                store.put_tag(name, make_sample("a").descriptor)
    with tarfile.open(path) as archive:
        read = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        manifest_json, index_json = read["manifest.json"], read["index.json"]
        assert manifest_json and index_json
        [item] = json.load(manifest_json)
        assert item["RepoTags"] == ["app:latest", "host:5000/team/app:v1"]
        assert {item["Config"], *item["Layers"]} <= set(read)
        names = [
            entry["annotations"]["io.containerd.image.name"] for entry in json.load(index_json)["manifests"]
        ]
        assert names == ["docker.io/library/app:latest", "host:5000/team/app:v1"]


@needs_skopeo
@pytest.mark.parametrize("media_type", [OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD])
def test_skopeo_reads_what_we_write(kind: str, media_type: str, path: Path, tmp_path: Path) -> None:
    plain = make_sample("a").layers[0]
    packed = {
        OCI_LAYER: plain,
        OCI_LAYER_GZIP: gzip.compress(plain),
        OCI_LAYER_ZSTD: zstandard.compress(plain),
    }[media_type]
    config = ImageConfig((sha256_digest(plain),), architecture="amd64", os="linux").to_bytes()
    with opened(kind, path, create=True) as store:
        digest, size = write_blob(store, packed)
        manifest = Manifest(store.put_document(config, OCI_CONFIG), (Descriptor(media_type, digest, size),))
        store.put_tag("app:v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    subprocess.run(
        ["skopeo", "copy", "-q", f"{kind}:{path}:app:v1", f"dir:{tmp_path}/copy"], check=True, timeout=300
    )
    [copied] = json.loads((tmp_path / "copy/manifest.json").read_bytes())["layers"]
    # Of a docker-archive skopeo unpacks the layers itself.
    expected = plain if kind == "docker-archive" else packed
    assert (tmp_path / "copy" / copied["digest"].removeprefix("sha256:")).read_bytes() == expected
