"""Archives that others wrote, kindly or not: each is read as it is meant, or refused in one line."""

import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import (
    BadInputError,
    LazyfsError,
    LimitError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from lazyfs.formats.oci import Index
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.formats.oci_types import OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from lazyfs.stores import Store, archive_file, load_image, open_store, parse_reference

from .samples import Sample, make_sample, put_sample

Member = tuple[str, bytes] | tarfile.TarInfo

SAMPLE = make_sample("a")
CONFIG = "config.json"
LAYERS = ["base/layer.tar", "name/layer.tar"]


def tar_of(*members: Member, layout: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def manifest_json(*items: dict[str, Any]) -> Member:
    return "manifest.json", json.dumps(list(items)).encode()


def item(*names: str, config: str = CONFIG, layers: list[str] | None = None) -> dict[str, Any]:
    return {"Config": config, "RepoTags": list(names) or None, "Layers": LAYERS if layers is None else layers}


def files(sample: Sample = SAMPLE) -> list[Member]:
    return [(CONFIG, sample.config), *zip(LAYERS, sample.layers, strict=True)]


GOOD = tar_of(*files(), manifest_json(item("app:v1")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.tar"


def docker(path: Path) -> Store:
    return open_store(parse_reference(f"docker-archive:{path}"))


def oci(path: Path) -> Store:
    return open_store(parse_reference(f"oci-archive:{path}"))


def layers_of(store: Store, name: str | None = None) -> list[tuple[str, bytes]]:
    """Type and bytes of each layer, every digest proved."""
    reference = parse_reference(f"{store.url}:{name}" if name else store.url)
    layers = []
    for layer, _ in load_image(store, reference).layers:
        data = b"".join(store.stream(layer.digest))
        assert (sha256_digest(data), len(data)) == (layer.digest, layer.size)
        layers.append((layer.media_type, data))
    return layers


# What others write


def test_a_manifest_is_made_for_a_docker_archive(path: Path) -> None:
    path.write_bytes(GOOD)
    with docker(path) as store:
        assert store.tags() == ["app:v1"]
        image = load_image(store, parse_reference(f"docker-archive:{path}:docker.io/library/app:v1"))
        assert image.config_bytes == SAMPLE.config
        # The digest of what is made is part of the format: it must never change.
        assert image.manifest_bytes == SAMPLE.manifest
        assert layers_of(store, "app:v1") == [(OCI_LAYER, layer) for layer in SAMPLE.layers]
        assert store.resolve(image.descriptor.digest) == image.descriptor
        for name in ("app:v2", "other", "@1"):
            with pytest.raises(NotFoundError):
                store.resolve(name)


def test_links_stand_for_layers_that_are_there_already(path: Path) -> None:
    path.write_bytes(
        tar_of(
            ("./store/layer.tar", SAMPLE.layers[0]),
            ("store/other", SAMPLE.layers[1]),
            link(LAYERS[0], "../store/./layer.tar"),
            link(LAYERS[1], "store/other", tarfile.LNKTYPE),
            (CONFIG, SAMPLE.config),
            manifest_json(item("app:v1", layers=[f"./{name}" for name in LAYERS])),
        )
    )
    with docker(path) as store:
        assert [data for _, data in layers_of(store)] == list(SAMPLE.layers)


def test_compressed_layers_are_named_by_what_is_stored(path: Path) -> None:
    packed = [gzip.compress(SAMPLE.layers[0]), zstandard.compress(SAMPLE.layers[1])]
    path.write_bytes(
        tar_of((CONFIG, SAMPLE.config), *zip(LAYERS, packed, strict=True), manifest_json(item("app:v1")))
    )
    with docker(path) as store:
        assert layers_of(store) == [(OCI_LAYER_GZIP, packed[0]), (OCI_LAYER_ZSTD, packed[1])]


def test_several_images_by_name_and_place(path: Path) -> None:
    other = make_sample("b")
    path.write_bytes(
        tar_of(
            *files(),
            ("other.json", other.config),
            ("other.tar", other.layers[1]),
            manifest_json(
                item("app:v1", "team/app"), item(config="other.json", layers=[LAYERS[0], "other.tar"])
            ),
        )
    )
    with docker(path) as store:
        assert store.tags() == ["app:v1", "team/app"]
        assert (
            store.resolve("team/app:latest").digest == store.resolve("@0").digest == SAMPLE.descriptor.digest
        )
        assert store.resolve("@1").digest == other.descriptor.digest
        with pytest.raises(UsageError) as caught:
            store.resolve(None)
        assert "app:v1, team/app" in caught.value.hint


def test_an_oci_layout_inside_is_preferred(tmp_path: Path, path: Path) -> None:
    """As Docker 25 saves one platform of an image for many, with its attestations left out."""
    annotated = make_sample("a")
    with open_store(parse_reference(f"oci:{tmp_path}/layout"), create=True) as layout:
        manifest = json.loads(annotated.manifest)
        manifest["annotations"] = {"made": "elsewhere"}
        put_sample(layout, annotated)
        inner = layout.put_document(json.dumps(manifest).encode(), annotated.descriptor.media_type)
        absent = make_sample("absent").descriptor
        index = layout.put_document(Index((absent, inner)).to_bytes(), OCI_INDEX)
    blobs = [
        (f"blobs/sha256/{blob.name}", blob.read_bytes())
        for blob in sorted((tmp_path / "layout/blobs/sha256").iterdir())
    ]

    def blob_name(data: bytes) -> str:
        return sha256_digest(data).replace("sha256:", "blobs/sha256/")

    path.write_bytes(
        tar_of(
            *blobs,
            ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
            ("index.json", Index((index, absent)).to_bytes()),
            manifest_json(
                item(
                    "app:v1",
                    config=blob_name(annotated.config),
                    layers=[blob_name(layer) for layer in annotated.layers],
                )
            ),
        )
    )
    with docker(path) as store:
        assert store.resolve("app:v1").digest == inner.digest
        assert [data for _, data in layers_of(store)] == list(annotated.layers)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_an_archive_that_is_compressed_as_a_whole(path: Path, pack: Any) -> None:
    path.write_bytes(pack(GOOD))
    with docker(path) as store:
        assert [data for _, data in layers_of(store)] == list(SAMPLE.layers)
    path.write_bytes(pack(GOOD)[:-200])
    with pytest.raises(BadInputError, match=r"images\.tar"), docker(path) as store:
        layers_of(store)


def test_a_large_member_is_where_its_header_says(path: Path) -> None:
    """Nine GiB, most of them holes in the file: more than the eleven octal digits of ustar can state."""
    size = 9 << 30
    header = tarfile.TarInfo("large.tar")
    header.size = size
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.PAX_FORMAT))
        start = file.tell()
        file.seek(start + size)
        file.write(GOOD)
    with docker(path) as store:
        assert [data for _, data in layers_of(store)] == list(SAMPLE.layers)


# What is refused


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        (
            [*files(), ("../evil", b""), manifest_json(item())],
            BadInputError,
            "climbs out",
        ),
        ([*files(), *files(), manifest_json(item())], BadInputError, "two members config.json"),
        ([("/manifest.json", b"[]")], NotFoundError, "no manifest.json"),
        ([*files()[1:], manifest_json(item())], BadInputError, "there is no member config.json"),
        ([*files()[:2], manifest_json(item())], BadInputError, "there is no member name/layer.tar"),
        (
            [*files()[:2], link(LAYERS[1], "../../etc/passwd"), manifest_json(item())],
            BadInputError,
            "no member",
        ),
        ([*files()[:2], link(LAYERS[1], "/etc/passwd"), manifest_json(item())], BadInputError, "no member"),
        (
            [*files()[:2], link(LAYERS[1], "../x"), link("x", LAYERS[1]), manifest_json(item())],
            BadInputError,
            "in a circle",
        ),
        ([*files(), manifest_json(item(layers=LAYERS[:1]))], BadInputError, "1 layers, but the config has 2"),
        (
            [
                (CONFIG, SAMPLE.config.replace(sha256_digest(SAMPLE.layers[1]).encode(), b"x")),
                *files()[1:],
                manifest_json(item()),
            ],
            BadInputError,
            "rootfs.diff_ids",
        ),
        ([*files(), ("manifest.json", b"[")], BadInputError, "is not JSON"),
        ([*files(), ("manifest.json", b"{}")], BadInputError, "must be a list"),
        ([*files(), ("manifest.json", b'[{"Config": 1}]')], BadInputError, "must be a text"),
        ([*files(), ("manifest.json", b"[" * 100_000)], BadInputError, "nested"),
        ([*files(), ("manifest.json", b" " * (5 << 20))], LimitError, "limit"),
        ([*files(), manifest_json(item("App:v1"))], UsageError, "App"),
        ([*files()[:2], (LAYERS[1], b"\xfd7zXZ\x00"), manifest_json(item())], UnsupportedError, "xz"),
        ([], NotFoundError, "not a docker-archive"),
    ],
)
def test_what_is_no_docker_archive(
    path: Path, members: list[Member], error: type[LazyfsError], message: str
) -> None:
    path.write_bytes(tar_of(*members))
    with pytest.raises(error, match=message) as caught, docker(path) as store:
        store.resolve(None)
    assert "images.tar" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([("index.json", b"{}")], NotFoundError, "no oci-layout"),
        ([("oci-layout", b"{}"), ("index.json", b"{}")], BadInputError, "imageLayoutVersion"),
        (
            [("oci-layout", b'{"imageLayoutVersion": "2.0.0"}'), ("index.json", b"{}")],
            UnsupportedError,
            r"2\.0\.0",
        ),
        (
            [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b"{}")],
            BadInputError,
            "schemaVersion",
        ),
        (
            [
                ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
                ("index.json", Index((SAMPLE.descriptor,)).to_bytes()),
            ],
            NotFoundError,
            SAMPLE.descriptor.digest,
        ),
    ],
)
def test_what_is_no_oci_archive(
    path: Path, members: list[Member], error: type[LazyfsError], message: str
) -> None:
    path.write_bytes(tar_of(*members))
    with pytest.raises(error, match=message) as caught, oci(path) as store:
        load_image(store, parse_reference(f"oci-archive:{path}"))
    assert "images.tar" in caught.value.message


def test_an_archive_of_the_other_kind_is_named(path: Path) -> None:
    path.write_bytes(GOOD)
    with pytest.raises(NotFoundError) as caught:
        oci(path)
    assert caught.value.hint == f"name it docker-archive:{path}"
    path.write_bytes(tar_of(("oci-layout", b"{}"), ("index.json", b"{}")))
    with pytest.raises(NotFoundError) as caught:
        docker(path)
    assert caught.value.hint == f"name it oci-archive:{path}"


def test_what_is_no_file_of_ours(path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"images\.tar"):
        docker(path)
    path.mkdir()
    with pytest.raises(StoreError, match="not a regular file"):
        docker(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a regular file"):
        docker(path)
    path.unlink()
    path.write_bytes(b"\x7fELF" + bytes(2000))
    with pytest.raises(BadInputError, match=r"images\.tar"):
        docker(path)
    for data, tool in [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz")]:
        path.write_bytes(data)
        with pytest.raises(UnsupportedError, match=tool):
            docker(path)


def test_two_layers_cannot_have_one_digest(path: Path) -> None:
    twice = json.loads(SAMPLE.config)
    twice["rootfs"]["diff_ids"][1] = twice["rootfs"]["diff_ids"][0]
    longer = SAMPLE.layers[1] + bytes(512)
    path.write_bytes(
        tar_of(
            (CONFIG, json.dumps(twice).encode()),
            (LAYERS[0], SAMPLE.layers[0]),
            (LAYERS[1], longer),
            manifest_json(item()),
        )
    )
    with pytest.raises(BadInputError, match="is two layers"):
        docker(path)


def test_a_sparse_member_is_refused(path: Path, tmp_path: Path) -> None:
    holes = tmp_path / CONFIG
    holes.touch()
    os.truncate(holes, 1 << 20)
    subprocess.run(["tar", "--sparse", "-cf", path, "-C", tmp_path, CONFIG], check=True)
    with pytest.raises(UnsupportedError, match="sparse"):
        docker(path)


def test_headers_without_end_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_MAX_HEADERS", 100 * 512)
    path.write_bytes(tar_of(*[(f"{number}", b"") for number in range(200)]))
    with pytest.raises(LimitError, match="headers"):
        docker(path)
    path.write_bytes(GOOD)
    os.truncate(path, 1 << 30)
    with pytest.raises(LimitError, match="headers"):
        docker(path)


def test_a_bomb_does_not_fill_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_FREE_SPOOL", 1 << 20)
    path.write_bytes(gzip.compress(tar_of(("zeros", bytes(16 << 20)))))
    with pytest.raises(LimitError, match="unpacks to more"):
        docker(path)


def test_a_file_that_shrinks_while_it_is_read(path: Path) -> None:
    path.write_bytes(GOOD)
    with docker(path) as store:
        layer = sha256_digest(SAMPLE.layers[1])
        os.truncate(path, 2000)
        with pytest.raises(StoreError, match="shrank"):
            store.read(layer, 0, len(SAMPLE.layers[1]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8)), max_size=6),
    st.data(),
)
def test_any_damage_is_an_error_of_ours(
    tmp_path: Path, edits: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    archive = bytearray(GOOD)
    for at, patch in edits:
        archive[at : at + len(patch)] = patch
    cut = data.draw(st.integers(0, len(archive)))
    path = tmp_path / "images.tar"
    path.write_bytes(archive[: cut or len(archive)])
    for store in (docker, oci):
        try:
            with store(path) as opened:
                image = load_image(opened, parse_reference(opened.url))
                for layer, _ in image.layers:
                    assert len(b"".join(opened.stream(layer.digest))) == layer.size
        except LazyfsError as error:
            assert "\n" not in error.message
