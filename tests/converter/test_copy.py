"""Images that are moved, with what an index names and what refers to them; and indexes that are converted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from converter import (
    Settings,
    check_against,
    check_image,
    convert_image,
    copy_attached,
    copy_tree,
)
from lazyfs.errors import IntegrityError, NotFoundError, UnsupportedError
from lazyfs.formats.oci import ImageConfig, Index, Manifest, parse_index
from lazyfs.formats.oci_descriptor import Descriptor, Platform, sha256_digest
from lazyfs.formats.oci_types import (
    DOCKER_FOREIGN_LAYER_GZIP,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    PACK_TYPE,
)
from lazyfs.stores import Reference, Store, load_image, open_store, parse_reference, write_blob
from tests.faults import FaultServer
from tests.stores.memory_registry import MemoryRegistry
from tests.stores.samples import make_sample, put_referrer, put_sample

SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"


def put_signature(store: Store, image: Descriptor, suffix: str) -> str:
    """As cosign does it, without a subject."""
    config = Descriptor(OCI_CONFIG, *write_blob(store, ImageConfig(()).to_bytes()))
    payload = Descriptor(
        "application/vnd.dev.cosign.simplesigning.v1+json", *write_blob(store, suffix.encode())
    )
    tag = image.digest.replace(":", "-") + suffix
    store.put_tag(tag, store.put_document(Manifest(config, (payload,)).to_bytes(), OCI_MANIFEST))
    return tag


def copied(source: Reference, target: Reference) -> int:
    with open_store(source) as old, open_store(target, create=True) as new:
        top = copy_tree(old, old.resolve(source.selector), new)
        count = copy_attached(old, top, new)
        new.put_tag(target.tag_to_write(), top)
    return count


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Reference, Descriptor]:
    """An image with a launch pack, two signatures as referrers and two as tags."""
    reference = parse_reference(f"oci:{tmp_path}/source:v1")
    with open_store(reference, create=True) as store:
        image = put_sample(store, make_sample("a"), "v1")
        put_referrer(store, image, PACK_TYPE, b"an old pack")
        put_referrer(store, image, PACK_TYPE, b"pack")
        put_referrer(store, image, SIGNATURE, b"mine")
        put_referrer(store, image, SIGNATURE, b"yours")
        put_signature(store, image, ".sig")
        put_signature(store, image, ".att")
    return reference, image


@pytest.fixture(params=["oci", "oci-archive", "docker"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Reference]:
    if request.param == "docker":
        server = request.getfixturevalue("registry")
        return lambda name: parse_reference(f"docker://{server.host}/{name}:v1")
    return lambda name: parse_reference(f"{request.param}:{tmp_path}/{name}:v1")


@pytest.fixture
def registry() -> object:
    with FaultServer(MemoryRegistry()) as server:
        yield server


def test_what_refers_to_an_image_goes_along(
    signed: tuple[Reference, Descriptor], target: Callable[[str], Reference]
) -> None:
    source, image = signed
    assert copied(source, target("first")) == 5
    # And on from there.
    assert copied(target("first"), target("second")) == 5
    with open_store(source) as old, open_store(target("second")) as new:
        assert new.resolve("v1").digest == image.digest
        for artifact_type, count in ((PACK_TYPE, 1), (SIGNATURE, 2), ("", 3)):
            found = new.referrers(image.digest, artifact_type)
            assert len(found) == count
            assert [item.digest for item in found] == [
                item.digest for item in old.referrers(image.digest, artifact_type)
            ]
        for suffix in (".sig", ".att"):
            tag = image.digest.replace(":", "-") + suffix
            assert new.resolve(tag).digest == old.resolve(tag).digest


def test_a_copy_again_adds_nothing(signed: tuple[Reference, Descriptor], tmp_path: Path) -> None:
    source, image = signed
    target = parse_reference(f"oci:{tmp_path}/target:v1")
    assert copied(source, target) == copied(source, target) == 5
    with open_store(target) as store:
        assert len(store.referrers(image.digest, "")) == 3
        # What is attached is no image that could be meant.
        assert store.resolve(None).digest == image.digest


def test_an_archive_of_images_gets_images_alone(signed: tuple[Reference, Descriptor], tmp_path: Path) -> None:
    target = parse_reference(f"docker-archive:{tmp_path}/archive.tar:app:v1")
    assert copied(signed[0], target) == 0
    with open_store(target) as store:
        assert store.resolve(None).digest


def make_index(store: Store) -> tuple[Descriptor, dict[str, Descriptor]]:
    """Linux on two machines, Windows with a foreign layer, an attestation."""
    parts = {
        "amd64": put_sample(store, make_sample("a")),
        "arm64": put_sample(store, make_sample("b", architecture="arm64")),
    }
    foreign = Descriptor(
        DOCKER_FOREIGN_LAYER_GZIP,
        sha256_digest(b"kept by its maker"),
        17,
        extra={"urls": ["https://example.com"]},
    )
    config = store.put_document(
        ImageConfig((sha256_digest(b"x"),), architecture="amd64", os="windows").to_bytes(), OCI_CONFIG
    )
    parts["windows"] = store.put_document(Manifest(config, (foreign,)).to_bytes(), OCI_MANIFEST)
    empty = Descriptor(OCI_EMPTY, *write_blob(store, b"{}"))
    statement = Descriptor("application/vnd.in-toto+json", *write_blob(store, b'{"_type": "statement"}'))
    parts["unknown"] = store.put_document(Manifest(empty, (statement,)).to_bytes(), OCI_MANIFEST)
    platforms = {
        "amd64": Platform("amd64", "linux"),
        "arm64": Platform("arm64", "linux"),
        "windows": Platform("amd64", "windows"),
        "unknown": Platform("unknown", "unknown"),
    }
    entries = tuple(replace(parts[name], platform=platform) for name, platform in platforms.items())
    document = Index(entries, annotations={"org.example": "kept"}).to_bytes()
    top = store.put_document(document, OCI_INDEX)
    store.put_tag("v1", top)
    return top, parts


def test_an_index_is_converted_and_what_is_no_image_for_linux_carried_along(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/lazy:v1")
    with open_store(source, create=True) as old, open_store(target, create=True) as new:
        _, parts = make_index(old)
        convert_image(old, source, new, target, Settings(jobs=1), all_platforms=True)
        index = parse_index(new.get_document(new.resolve("v1")))
        found = {str(entry.platform): entry for entry in index.manifests}
        assert index.annotations == {"org.example": "kept"}
        assert list(found) == ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown"]
        assert found["windows/amd64"].digest == parts["windows"].digest
        assert found["unknown/unknown"].digest == parts["unknown"].digest
        for name in ("amd64", "arm64"):
            digest = found[f"linux/{name}"].digest
            assert digest != parts[name].digest
            one = check_image(new, replace(target, tag=None, digest=digest))
            assert [image.platform for image in one.images] == [f"linux/{name}"]
            check_against(one, old, source)
        with pytest.raises(NotFoundError):
            convert_image(old, source, new, target, Settings(jobs=1), platform="linux/s390x")


def test_a_converted_image_is_converted_again_for_another_codec_alone(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/lazy:v1")
    with open_store(source, create=True) as store, open_store(target, create=True) as new:
        put_sample(store, make_sample("a"), "v1")
        first = convert_image(store, source, new, target, Settings(jobs=1))
        same = convert_image(new, target, new, replace(target, tag="same"), Settings(jobs=1))
        assert same.digest == first.digest
        assert all(layer.reused and not layer.new_chunks for layer in same.layers)
        gzip = convert_image(new, target, new, replace(target, tag="gzip"), Settings("gzip", jobs=1))
        assert not any(layer.reused for layer in gzip.layers)
        again = convert_image(store, source, new, replace(target, tag="again"), Settings("gzip", jobs=1))
        assert [layer.digest for layer in again.layers] == [layer.digest for layer in gzip.layers]
        check_against(check_image(new, replace(target, tag="gzip")), store, source)


def test_all_images_of_an_index_are_proved(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/lazy:v1")
    with open_store(source, create=True) as old, open_store(target, create=True) as new:
        make_index(old)
        convert_image(old, source, new, target, Settings(jobs=1), all_platforms=True)
        report = check_image(new, target)
        assert report.digest == new.resolve("v1").digest
        assert [image.platform for image in report.images] == ["linux/amd64", "linux/arm64"]
        assert report.carried == 2
        assert report.total("layers") == 4
        check_against(report, old, source)

        amd64, arm64 = (load_image(new, target, image.platform) for image in report.images)
        own = {layer.digest for layer, _ in arm64.layers} - {layer.digest for layer, _ in amd64.layers}
        blob = tmp_path / "lazy/blobs" / own.pop().replace(":", "/")
        blob.write_bytes(bytes(100) + blob.read_bytes()[100:])
        assert check_image(new, target, "linux/amd64").digest == amd64.descriptor.digest
        with pytest.raises(IntegrityError):
            check_image(new, target)
        with pytest.raises(NotFoundError):
            check_image(new, target, "linux/s390x")


def test_an_image_is_not_held_against_another(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/lazy:v1")
    with open_store(source, create=True) as old, open_store(target, create=True) as new:
        make_index(old)
        put_sample(old, make_sample("another"), "other")
        convert_image(old, source, new, target, Settings(jobs=1), all_platforms=True)
        with pytest.raises(IntegrityError, match="has config"):
            check_against(check_image(new, target), old, parse_reference(f"oci:{tmp_path}/source:other"))


def test_a_foreign_layer_alone_cannot_be_converted(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/lazy:v1")
    with open_store(source, create=True) as old, open_store(target, create=True) as new:
        _, parts = make_index(old)
        one = replace(source, tag=None, digest=parts["windows"].digest)
        with pytest.raises(UnsupportedError, match="foreign layer"):
            convert_image(old, one, new, target, Settings(jobs=1))
        assert new.tags() == []


def test_an_index_is_copied_with_foreign_layers_left_where_they_are(tmp_path: Path) -> None:
    source, target = parse_reference(f"oci:{tmp_path}/source:v1"), parse_reference(f"oci:{tmp_path}/copy:v1")
    with open_store(source, create=True) as old:
        top, _ = make_index(old)
    assert copied(source, target) == 0
    with open_store(target) as new:
        assert new.resolve("v1").digest == top.digest
        assert new.has(sha256_digest(b"kept by its maker")) is None
