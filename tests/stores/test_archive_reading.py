"""Archives that others wrote: each is read as it is meant."""

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lazyfs.errors import (
    BadInputError,
    NotFoundError,
    UsageError,
)
from lazyfs.formats.oci import Index
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.formats.oci_types import OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from lazyfs.stores import load_image, open_store, parse_reference

from .archives import (
    CONFIG,
    GOOD,
    LAYERS,
    SAMPLE,
    docker,
    files,
    item,
    layers_of,
    link,
    manifest_json,
    tar_of,
)
from .samples import make_sample, put_sample


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.tar"


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
