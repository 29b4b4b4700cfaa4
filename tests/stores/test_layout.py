"""The OCI layout: the conformance of every store, and what only a directory can get wrong."""

import errno
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from lazyfs.errors import BadInputError, BusyError, LimitError, NotFoundError, StoreError, UnsupportedError
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest, sha256_digest
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.stores import LayoutStore, Store, load_image, open_store, parse_reference, write_blob
from lazyfs.stores import layout as layout_module
from lazyfs.stores._files import TEMP_PREFIX

from .conformance import StoreConformance
from .samples import make_sample, put_sample

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with open_store(parse_reference(f"oci:{directory}:v1"), create=True) as store:
        yield store


class TestConformance(StoreConformance):
    pass


def blob_path(directory: Path, digest: str) -> Path:
    return directory / "blobs/sha256" / parse_digest(digest)


def temps(directory: Path) -> list[Path]:
    return sorted(directory.rglob(f"{TEMP_PREFIX}*"))


# Opening


def test_a_layout_is_made_where_there_is_none(directory: Path) -> None:
    deep = directory / "a" / "b"
    LayoutStore(deep, create=True).close()
    assert json.loads((deep / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    with LayoutStore(deep, create=True) as again:
        put_sample(again, make_sample("a"), "v1")
    with LayoutStore(deep, create=True) as again:
        assert again.tags() == ["v1"]
    assert temps(deep) == []


def test_a_layout_that_was_killed_while_it_was_made_is_finished(directory: Path) -> None:
    directory.mkdir()
    (directory / "oci-layout").touch()
    with LayoutStore(directory, create=True) as store:
        put_sample(store, make_sample("a"), "v1")
    with LayoutStore(directory) as store:
        assert store.tags() == ["v1"]


def test_what_is_no_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a directory"):
        LayoutStore(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="no file oci-layout"):
        LayoutStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        LayoutStore(tmp_path / "file", create=True)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(UnsupportedError, match=r"2\.0\.0"):
        LayoutStore(tmp_path)
    (tmp_path / "oci-layout").write_text("not json")
    with pytest.raises(BadInputError, match="oci-layout"):
        LayoutStore(tmp_path)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_refused(store: Store, directory: Path, name: str) -> None:
    path = directory / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=name):
        LayoutStore(directory).tags()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match=name):
        LayoutStore(directory).tags()


def test_an_index_that_cannot_be_read_is_named(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = directory / "index.json"
    index.write_text('{"schemaVersion": 2, "manifests": [{"size": -1}]}')
    with pytest.raises(BadInputError, match=rf"{directory}: index\.manifests\[0\]"):
        store.tags()
    index.unlink()
    with pytest.raises(NotFoundError, match=r"index\.json"):
        store.resolve("v1")
    monkeypatch.setattr(layout_module, "MAX_INDEX", 100)
    index.write_text(" " * 1000)
    with pytest.raises(LimitError):
        store.tags()


# Blobs that a stranger or an accident left


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_blob_that_is_not_a_regular_file_is_refused(store: Store, directory: Path, kind: str) -> None:
    digest = sha256_digest(b"trick")
    path = blob_path(directory, digest)
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    for attempt in (
        lambda: store.read(digest, 0, 1),
        lambda: list(store.stream(digest)),
        lambda: store.has(digest),
    ):
        with pytest.raises(StoreError, match=digest.removeprefix("sha256:")):
            attempt()


def test_a_truncated_blob_is_named_and_may_be_mended(store: Store, directory: Path) -> None:
    digest, _ = write_blob(store, b"0123456789")
    assert store.read(digest, 0, 10) == b"0123456789"
    os.truncate(blob_path(directory, digest), 5)
    with pytest.raises(StoreError, match=f"{digest} in {directory} has 5 bytes"):
        store.read(digest, 0, 10)
    assert store.read(digest, 0, 5) == b"01234"
    write_blob(store, b"0123456789")
    assert store.read(digest, 0, 10) == b"0123456789"


def test_a_tag_that_names_two_images_is_refused(store: Store, directory: Path) -> None:
    put_sample(store, make_sample("a"), "v1")
    put_sample(store, make_sample("b"), "v2")
    index = directory / "index.json"
    index.write_text(index.read_text().replace('"v2"', '"v1"'))
    with pytest.raises(BadInputError, match="names 2 images") as caught:
        store.resolve("v1")
    assert make_sample("b").descriptor.digest in caught.value.hint


def test_an_image_that_only_an_index_names_is_found_by_its_digest(store: Store) -> None:
    descriptor = put_sample(store, make_sample("a"))
    assert store.resolve(descriptor.digest) == descriptor
    digest, _ = write_blob(store, b"no manifest")
    with pytest.raises(BadInputError, match=digest):
        store.resolve(digest)


# Writing


def test_what_others_wrote_into_the_index_is_kept(store: Store, directory: Path) -> None:
    put_sample(store, make_sample("a"), "v1")
    index = directory / "index.json"
    tree = json.loads(index.read_bytes())
    tree["x-note"] = {"by": "somebody"}
    tree["manifests"][0]["x-list"] = [1, None]
    stranger = {"mediaType": "text/plain", "digest": sha256_digest(b"absent"), "size": 1}
    tree["manifests"].insert(0, stranger)
    index.write_text(json.dumps(tree))
    put_sample(store, make_sample("b"), "v2")
    after = json.loads(index.read_bytes())
    assert after["x-note"] == tree["x-note"]
    assert after["manifests"][:2] == tree["manifests"]
    assert len(after["manifests"]) == 3


def test_a_full_disk_leaves_nothing_half_made(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_sample(store, make_sample("a"), "v1")
    before = sorted(directory.rglob("*"))

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    descriptor = put_sample(store, make_sample("a"))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        write_blob(store, b"does not fit")
    assert "space" in caught.value.hint
    with pytest.raises(StoreError, match=r"index\.json: No space left"):
        store.put_tag("v2", descriptor)
    assert store.tags() == ["v1"]
    assert sorted(directory.rglob("*")) == before


def test_an_index_that_another_process_holds_is_not_waited_for_forever(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_module, "_LOCK_TIMEOUT", 0.01)
    descriptor = put_sample(store, make_sample("a"))
    with (directory / "oci-layout").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="oci-layout"):
            store.put_tag("v1", descriptor)
    store.put_tag("v1", descriptor)


def _write_tags(directory: str, name: str) -> None:
    with LayoutStore(Path(directory), create=True) as store:
        for number in range(10):
            put_sample(store, make_sample(f"{number % 3}"), f"{name}-{number}")
            put_sample(store, make_sample(name), "latest")


def test_processes_that_write_one_layout_do_each_other_no_harm(directory: Path) -> None:
    names = ["a", "b", "c", "d"]
    with ProcessPoolExecutor(len(names), mp_context=get_context("spawn")) as pool:
        writers = [pool.submit(_write_tags, str(directory), name) for name in names]
        seen = 0
        while not all(writer.done() for writer in writers):
            if not (directory / "index.json").exists():
                continue
            with LayoutStore(directory) as reader:
                tags = reader.tags()
                assert len(tags) >= seen
                seen = len(tags)
                for tag in tags[-3:]:
                    load_image(reader, parse_reference(f"oci:{directory}:{tag}"), "linux/amd64")
        for writer in writers:
            writer.result()
    with LayoutStore(directory) as store:
        assert store.tags() == sorted(
            [f"{name}-{number}" for name in names for number in range(10)] + ["latest"]
        )
    assert temps(directory) == []


_ENDLESS_WRITER = """
import sys
from pathlib import Path
from lazyfs.stores import LayoutStore
with LayoutStore(Path(sys.argv[1]), create=True).writer() as writer:
    writer.write(b"begun")
    print("writing", flush=True)
    while True:
        writer.write(bytes(1000))
        sys.stdin.buffer.read(1)
"""


def test_a_killed_writer_leaves_a_layout_that_can_be_read_and_written(store: Store, directory: Path) -> None:
    descriptor = put_sample(store, make_sample("a"), "v1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS_WRITER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"writing\n"
            [alive] = temps(directory)
            with LayoutStore(directory) as other:
                write_blob(other, b"meanwhile")
            assert temps(directory) == [alive]
        finally:
            process.send_signal(signal.SIGKILL)
    assert store.resolve("v1").digest == descriptor.digest
    assert temps(directory) == [alive]
    with LayoutStore(directory) as other:
        write_blob(other, b"afterwards")
    assert temps(directory) == []


# Beside skopeo


def skopeo(*arguments: str) -> bytes:
    return subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True, timeout=300
    ).stdout


@needs_skopeo
def test_skopeo_reads_what_we_wrote_and_we_read_what_it_wrote(store: Store, tmp_path: Path) -> None:
    sample = make_sample("a")
    put_sample(store, sample, "v1")
    other = tmp_path / "other"
    skopeo("copy", f"{store.url}:v1", f"oci:{other}:copied")
    with LayoutStore(other) as copy:
        assert copy.tags() == ["copied"]
        image = load_image(copy, parse_reference(f"oci:{other}"), "linux/amd64")
        assert image.config_bytes == sample.config
        layers = [gzip.decompress(b"".join(copy.stream(layer.digest))) for layer, _ in image.layers]
        assert layers == list(sample.layers)
        put_sample(copy, make_sample("b"), "ours")
    assert skopeo("inspect", "--raw", f"oci:{other}:ours") == make_sample("b").manifest
    skopeo("copy", "--preserve-digests", f"oci:{other}:ours", f"{store.url}:v1")
    assert store.resolve("v1").digest == make_sample("b").descriptor.digest


@needs_skopeo
def test_skopeo_does_not_mind_a_blob_that_is_being_written(store: Store, tmp_path: Path) -> None:
    put_sample(store, make_sample("a"), "v1")
    with store.writer() as writer:
        writer.write(b"half")
        skopeo("copy", f"{store.url}:v1", f"oci:{tmp_path / 'other'}:v1")
        skopeo("copy", f"{store.url}:v1", f"{store.url}:v2")
    assert store.tags() == ["v1", "v2"]


def test_a_descriptor_of_a_missing_manifest_says_so(store: Store) -> None:
    with pytest.raises(StoreError, match="no tag may lead to it"):
        store.put_tag("v1", Descriptor(OCI_MANIFEST, sha256_digest(b"absent"), 6))


def test_a_layout_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in ("file", "file/below"):
        with pytest.raises(StoreError, match=r"cannot be made: (File exists|Not a directory)") as caught:
            LayoutStore(tmp_path / place, create=True)
        assert "is a directory" in caught.value.hint
    with pytest.raises(NotFoundError, match="/proc/here cannot be made"):
        LayoutStore(Path("/proc/here"), create=True)
