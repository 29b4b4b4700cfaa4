"""Choosing an image for a platform, and refusing what is none."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import BadInputError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from lazyfs.formats.oci import ImageConfig, Index, Manifest
from lazyfs.formats.oci_descriptor import Descriptor, Platform, parse_digest
from lazyfs.formats.oci_types import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from lazyfs.stores import LayoutStore, Reference, host_platform, load_image, parse_platform, write_blob

from .samples import make_sample, put_index, put_sample

REFERENCE = Reference("oci", "images", tag="v1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayoutStore]:
    with LayoutStore(tmp_path / "images", create=True) as store:
        yield store


def put_platforms(store: LayoutStore, names: list[str]) -> None:
    entries: list[tuple[Descriptor, Platform | None]] = []
    for name in names:
        platform = parse_platform(name)
        sample = make_sample(name, architecture=platform.architecture, variant=platform.variant)
        entries.append((put_sample(store, sample), platform))
    put_index(store, "v1", entries)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3", "linux/amd64/v3"),
        (["linux/amd64"], "linux/amd64/v3", "linux/amd64"),
        (["linux/amd64/v2"], "linux/amd64", "linux/amd64/v2"),
        (["linux/arm64/v8"], "linux/arm64", "linux/arm64/v8"),
        (["linux/arm64"], "linux/arm64/v8", "linux/arm64"),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v7", "linux/arm/v7"),
        (["linux/arm/v6"], "linux/arm/v7", "linux/arm/v6"),
        (["linux/arm/v7"], "linux/arm/v6", None),
        (["linux/amd64"], "linux/arm64", None),
        (["windows/amd64"], "linux/amd64", None),
    ],
)
def test_an_index_gives_the_image_for_a_platform(
    store: LayoutStore, offered: list[str], wanted: str, chosen: str | None
) -> None:
    put_platforms(store, offered)
    if chosen is None:
        with pytest.raises(NotFoundError, match=f"oci:images:v1: there is no image for {wanted}") as caught:
            load_image(store, REFERENCE, wanted)
        assert offered[0] in caught.value.hint
    else:
        assert load_image(store, REFERENCE, wanted).config.cmd == ("echo", chosen)


def test_without_a_wish_it_is_this_machine(store: LayoutStore) -> None:
    put_platforms(store, ["linux/mips", str(host_platform())])
    assert load_image(store, REFERENCE).config.cmd == ("echo", str(host_platform()))


def test_an_index_need_not_name_platforms_and_may_nest(store: LayoutStore) -> None:
    sample = make_sample("inner", architecture="riscv64")
    inner = put_index(store, "inner", [(put_sample(store, sample), None)])
    put_index(store, "v1", [(inner, None)])
    assert load_image(store, REFERENCE, "linux/riscv64").manifest_bytes == sample.manifest
    with pytest.raises(NotFoundError, match="for linux/riscv64, not for linux/s390x"):
        load_image(store, REFERENCE, "linux/s390x")


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/amd64/", "a/b/c/d", "linux/amd 64"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(UsageError):
        parse_platform(text)


def test_an_artifact_is_not_an_image(store: LayoutStore) -> None:
    empty = store.put_document(b"{}", OCI_EMPTY)
    manifest = Manifest(empty, (), artifact_type="application/vnd.example.sbom")
    store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    with pytest.raises(UnsupportedError, match=r"vnd\.example\.sbom"):
        load_image(store, REFERENCE)
    store.put_tag("v1", store.put_document(b"hello", "text/plain"))
    with pytest.raises(UnsupportedError, match="text/plain"):
        load_image(store, REFERENCE)


def test_documents_that_disagree_are_refused(store: LayoutStore) -> None:
    sample = make_sample("a")
    descriptor = put_sample(store, sample)
    store.put_tag("v1", Descriptor(DOCKER_MANIFEST, descriptor.digest, descriptor.size))
    with pytest.raises(BadInputError, match="its descriptor says"):
        load_image(store, REFERENCE)
    index = Index((Descriptor(OCI_INDEX, descriptor.digest, descriptor.size),)).to_bytes()
    with pytest.raises(BadInputError, match="manifest and index at once"):
        store.put_tag("v1", store.put_document(index, OCI_INDEX))


def test_layers_must_be_as_many_as_diff_ids(store: LayoutStore) -> None:
    config = store.put_document(ImageConfig(()).to_bytes(), OCI_CONFIG)
    digest, size = write_blob(store, b"layer")
    manifest = Manifest(config, (Descriptor(OCI_LAYER, digest, size),))
    store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    with pytest.raises(BadInputError, match=r"oci:images:v1: manifest.layers has 1 layers"):
        load_image(store, REFERENCE)


@pytest.mark.parametrize("which", ["manifest", "config"])
def test_a_flipped_byte_in_a_document_is_found(store: LayoutStore, tmp_path: Path, which: str) -> None:
    sample = make_sample("a")
    descriptor = put_sample(store, sample, "v1")
    digest = descriptor.digest if which == "manifest" else json.loads(sample.manifest)["config"]["digest"]
    path = tmp_path / "images/blobs/sha256" / parse_digest(digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"oci:images:v1: {digest}"):
        load_image(store, REFERENCE)
