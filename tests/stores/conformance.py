"""What every store must do: a test class that the tests of each store inherit.

A store may refuse a document at once, by `put_document`, when what it names is missing, as registries do.

A subclass gives the fixture ``store``: an empty store, open for writing, at a place of its own.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from lazyfs.errors import (
    BadInputError,
    IntegrityError,
    LimitError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from lazyfs.formats.oci import ImageConfig, Index, Manifest, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import (
    DOCKER_FOREIGN_LAYER_GZIP,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from lazyfs.stores import Reference, Store, load_image, write_blob

from .samples import describe, make_sample, put_referrer, put_sample

ABSENT = sha256_digest(b"never written")


class StoreConformance:
    # What not every store can do
    second_tag = "lib/app:v2"
    foreign_layer = Descriptor(DOCKER_FOREIGN_LAYER_GZIP, ABSENT, 5)
    blobs_written_at_once = 300
    keeps_referrers = True

    # Blobs

    @pytest.mark.parametrize("size", [0, 1, 4096, (2 << 20) + 17])
    def test_a_blob_comes_back(self, store: Store, size: int) -> None:
        data = (bytes(range(251)) * (size // 251 + 1))[:size]
        with store.writer() as writer:
            for start in range(0, size, 65536):
                writer.write(memoryview(data)[start : start + 65536])
            digest, written = writer.commit()
        assert (digest, written) == (sha256_digest(data), size)
        assert store.has(digest) == size
        assert b"".join(store.stream(digest)) == data
        assert b"".join(store.stream(digest, size // 3, 1000)) == data[size // 3 :]
        assert store.read(digest, 0, size) == data
        lengths = [0, size // 2, size - size // 2]
        assert [len(piece) for piece in store.read_pieces(digest, 0, lengths)] == lengths
        assert b"".join(store.read_pieces(digest, size // 3, [size - size // 3])) == data[size // 3 :]
        for start, end in [(0, 0), (0, 1), (size // 2, size), (size, size)]:
            if end <= size:
                assert store.read(digest, start, end - start) == data[start:end]

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 6), (5, 1), (6, 0), (-1, 2), (2, -1), (0, 1 << 60), (1 << 70, 1)]
    )
    def test_a_range_outside_the_blob_is_refused(self, store: Store, offset: int, length: int) -> None:
        digest, _ = write_blob(store, b"12345")
        with pytest.raises(StoreError, match=digest):
            store.read(digest, offset, length)
        with pytest.raises(StoreError, match=digest):
            list(store.read_pieces(digest, offset, [length, 7]))

    def test_a_blob_that_is_not_there(self, store: Store) -> None:
        assert store.has(ABSENT) is None
        with pytest.raises(NotFoundError, match=ABSENT):
            store.read(ABSENT, 0, 1)
        with pytest.raises(NotFoundError, match=ABSENT):
            list(store.stream(ABSENT))
        with pytest.raises(NotFoundError, match=ABSENT):
            list(store.read_pieces(ABSENT, 0, [1, 2]))

    @pytest.mark.parametrize("digest", ["", "sha256:../../../etc/passwd", "sha256:" + "A" * 64])
    def test_a_digest_that_is_none(self, store: Store, digest: str) -> None:
        with pytest.raises(BadInputError):
            store.read(digest, 0, 1)
        with pytest.raises(BadInputError):
            store.has(digest)
        with pytest.raises(UnsupportedError):
            store.has("sha512:" + "0" * 128)

    def test_a_blob_that_was_not_committed_is_not_there(self, store: Store) -> None:
        with store.writer() as writer:
            writer.write(b"left")
        with pytest.raises(KeyboardInterrupt), store.writer() as writer:
            writer.write(b"interrupted")
            raise KeyboardInterrupt
        assert store.has(sha256_digest(b"left")) is None
        assert store.has(sha256_digest(b"interrupted")) is None

    def test_a_blob_that_is_not_what_was_expected_is_not_there(self, store: Store) -> None:
        with store.writer() as writer:
            writer.write(b"other bytes")
            with pytest.raises(IntegrityError, match=ABSENT):
                writer.commit(ABSENT)
        assert store.has(sha256_digest(b"other bytes")) is None
        assert store.has(ABSENT) is None

    def test_a_blob_may_be_written_again(self, store: Store) -> None:
        assert write_blob(store, b"twice") == write_blob(store, b"twice")
        with store.writer() as first, store.writer() as second:
            first.write(b"at once")
            second.write(b"at once")
            assert first.commit() == second.commit()
        assert store.read(sha256_digest(b"at once"), 0, 7) == b"at once"

    def test_many_threads_read_and_write_at_once(self, store: Store) -> None:
        blobs = [bytes([number]) * 5000 for number in range(100)]

        def use(number: int) -> None:
            data = blobs[number % len(blobs)]
            digest, _ = write_blob(store, data)
            for other in range(number, number + 20):
                known = store.has(sha256_digest(blobs[other % len(blobs)]))
                assert known in (None, 5000)
                if known:
                    piece = store.read(sha256_digest(blobs[other % len(blobs)]), 1000, 4000)
                    assert piece == blobs[other % len(blobs)][1000:]
            assert store.read(digest, 0, 5000) == data

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(use, range(self.blobs_written_at_once)))

    # Documents

    def test_a_document_comes_back_verified(self, store: Store) -> None:
        data = make_sample("a").config
        descriptor = store.put_document(data, OCI_CONFIG)
        assert descriptor == describe(OCI_CONFIG, data)
        assert store.get_document(descriptor) == data
        for size in (len(data) - 1, len(data) + 1, 0):
            with pytest.raises(IntegrityError, match=descriptor.digest):
                store.get_document(replace(descriptor, size=size))
        with pytest.raises(LimitError, match="the limit is 10"):
            store.get_document(descriptor, 10)
        with pytest.raises(LimitError):
            store.get_document(replace(descriptor, size=1 << 60))
        with pytest.raises(NotFoundError):
            store.get_document(replace(descriptor, digest=ABSENT))

    # Tags

    def test_an_empty_store_has_no_image(self, store: Store) -> None:
        assert store.tags() == []
        for name in (None, "latest", ABSENT):
            with pytest.raises(NotFoundError):
                store.resolve(name)

    def test_tags_name_images(self, store: Store) -> None:
        first = put_sample(store, make_sample("first"), "v1")
        second = put_sample(store, make_sample("second"), self.second_tag)
        assert store.tags() == sorted([self.second_tag, "v1"])
        assert store.resolve("v1").digest == first.digest
        assert store.resolve(self.second_tag).digest == second.digest
        assert store.resolve(first.digest).digest == first.digest
        with pytest.raises(NotFoundError) as caught:
            store.resolve("v3")
        assert "v1" in caught.value.hint

    def test_a_tag_moves_alone(self, store: Store) -> None:
        first = put_sample(store, make_sample("first"), "v1")
        store.put_tag("latest", first)
        second = put_sample(store, make_sample("second"), "latest")
        assert store.resolve("v1").digest == first.digest
        assert store.resolve("latest").digest == second.digest
        assert store.tags() == ["latest", "v1"]

    def test_without_a_name_the_only_image_or_latest_is_meant(self, store: Store) -> None:
        first = put_sample(store, make_sample("first"), "v1")
        assert store.resolve(None).digest == first.digest
        store.put_tag("v1-again", first)
        assert store.resolve(None).digest == first.digest
        second = put_sample(store, make_sample("second"), "v2")
        with pytest.raises(UsageError) as caught:
            store.resolve(None)
        assert "v1, v1-again, v2" in caught.value.hint
        store.put_tag("latest", second)
        assert store.resolve(None).digest == second.digest

    @pytest.mark.parametrize("tag", ["", "a b", "-a", "a/", "ä", "a\n", ABSENT])
    def test_a_tag_that_is_none(self, store: Store, tag: str) -> None:
        with pytest.raises(UsageError):
            store.put_tag(tag, put_sample(store, make_sample("a")))

    def test_an_image_that_is_not_complete_gets_no_tag(self, store: Store) -> None:
        sample = make_sample("a")
        with pytest.raises(StoreError, match=sample.descriptor.digest):
            store.put_tag("v1", sample.descriptor)
        write_blob(store, sample.layers[0])
        write_blob(store, sample.layers[1])
        with pytest.raises(StoreError, match=sha256_digest(sample.config)):
            store.put_tag("v1", store.put_document(sample.manifest, OCI_MANIFEST))
        assert store.tags() == []
        store.put_document(sample.config, OCI_CONFIG)
        store.put_tag("v1", store.put_document(sample.manifest, OCI_MANIFEST))
        assert store.tags() == ["v1"]

    def test_a_layer_of_another_size_gets_no_tag(self, store: Store) -> None:
        config = store.put_document(ImageConfig((ABSENT,)).to_bytes(), OCI_CONFIG)
        digest, size = write_blob(store, b"a layer")
        manifest = Manifest(config, (Descriptor(OCI_LAYER, digest, size + 1),))
        with pytest.raises(StoreError, match="has 7 bytes, not 8"):
            store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))

    def test_an_index_is_complete_when_its_images_are(self, store: Store) -> None:
        here, absent = make_sample("here"), make_sample("absent")
        put_sample(store, here)
        index = Index((here.descriptor, absent.descriptor))
        with pytest.raises(StoreError, match=absent.descriptor.digest):
            store.put_tag("both", store.put_document(index.to_bytes(), OCI_INDEX))
        put_sample(store, absent)
        store.put_tag("both", store.put_document(index.to_bytes(), OCI_INDEX))
        assert store.resolve("both").media_type == OCI_INDEX

    def test_a_foreign_layer_need_not_be_there(self, store: Store) -> None:
        config = store.put_document(ImageConfig((ABSENT,)).to_bytes(), OCI_CONFIG)
        manifest = Manifest(config, (self.foreign_layer,))
        store.put_tag("v1", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
        assert store.tags() == ["v1"]

    def test_an_image_is_loaded(self, store: Store) -> None:
        sample = make_sample("a")
        put_sample(store, sample, "v1")
        image = load_image(store, Reference("oci", "images", tag="v1"))
        assert (image.manifest_bytes, image.config_bytes) == (sample.manifest, sample.config)
        assert [diff_id for _, diff_id in image.layers] == [sha256_digest(layer) for layer in sample.layers]
        assert image.config.cmd == ("echo", "a")

    # Referrers

    def test_referrers_are_found_by_what_they_refer_to(self, store: Store) -> None:
        if not self.keeps_referrers:
            with pytest.raises(UnsupportedError):
                put_referrer(store, put_sample(store, make_sample("a"), "v1"), "some/type", b"one")
            return
        subject = put_sample(store, make_sample("a"), "v1")
        other = put_sample(store, make_sample("b"), "v2")
        assert store.referrers(subject.digest, "some/type") == []
        signature = put_referrer(store, subject, "a/signature", b"signature")
        put_referrer(store, other, "some/type", b"of another")
        first = put_referrer(store, subject, "some/type", b"one")
        assert [item.digest for item in store.referrers(subject.digest, "some/type")] == [first.digest]
        second = put_referrer(store, subject, "some/type", b"two")
        (*_, latest) = store.referrers(subject.digest, "some/type")
        assert (latest.digest, latest.size) == (second.digest, second.size)
        assert latest.annotations == {"said": "two"}
        manifest = parse_manifest(store.get_document(latest))
        assert manifest.subject == subject
        assert store.read(manifest.layers[0].digest, 0, 3) == b"two"
        assert [item.digest for item in store.referrers(subject.digest, "a/signature")] == [signature.digest]
        assert store.resolve("v1").digest == subject.digest

    def test_a_referrer_is_no_image(self, store: Store) -> None:
        if self.keeps_referrers:
            subject = put_sample(store, make_sample("a"), "v1")
            put_referrer(store, subject, "some/type", b"one")
            assert store.resolve(None).digest == subject.digest

    def test_a_referrer_that_is_not_complete_is_not_found(self, store: Store) -> None:
        subject = put_sample(store, make_sample("a"), "v1")
        manifest = Manifest(
            describe(OCI_EMPTY, b"{}"),
            (Descriptor("some/type", ABSENT, 5),),
            subject=subject,
            artifact_type="some/type",
        )
        with pytest.raises((StoreError, UnsupportedError)):
            store.put_referrer(subject, store.put_document(manifest.to_bytes(), OCI_MANIFEST))
        assert store.referrers(subject.digest, "some/type") == []

    def test_a_closed_store_reads_no_more(self, store: Store) -> None:
        digest, _ = write_blob(store, b"data")
        with store:
            assert store.read(digest, 0, 4) == b"data"
        with pytest.raises(StoreError, match="closed"):
            store.read(digest, 0, 4)
