"""``docker-archive:FILE[:name[:tag]]``: the format that ``docker save`` and ``podman save`` write.

``manifest.json`` is a list of images, each with the member that is its config, the members that are its
layers, and its names. There are no manifests and no digests, so lazyfs makes a manifest: OCI, the config as it
is, and for each layer, in order,

    mediaType   application/vnd.oci.image.layer.v1.tar, with +gzip or +zstd if its first bytes say so
    digest      of the member: for a plain layer that is its DiffID, taken from the config (whoever reads the
                layer proves it), for others computed
    size        of the member

written as all documents of lazyfs are, so that the same archive always gives the same digest. Since version
25, Docker puts an OCI layout into the same archive: where that has a manifest with this config and these
layers, it is used instead, annotations and all.

Written is what Docker writes since then: an OCI layout, and a ``manifest.json`` that names its blobs. Older
Docker, podman and skopeo read the latter, and unpack compressed layers themselves (Docker before 23 knows no
zstd: an image for it is converted to gzip). So no digest changes, and a converted image stays as lazy as it was.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from lazyfs.errors import BadInputError, LimitError, NotFoundError, UnsupportedError
from lazyfs.formats.oci import MAX_DOCUMENT, Index, Manifest, parse_config, parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest, sha256_digest
from lazyfs.formats.oci_types import (
    FOREIGN_LAYER_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    REF_NAME_ANNOTATION,
)
from lazyfs.formats.strict_json import Fields, dump, load, plain
from lazyfs.stores._index import MAX_INDEX, tag_of
from lazyfs.stores.archive import OciArchiveStore
from lazyfs.stores.archive_contents import BLOBS, DOCKER_MANIFESTS, Contents, find_blobs
from lazyfs.stores.archive_file import ArchiveFile, Extent
from lazyfs.stores.archive_names import full_name, position, split_name, with_tag

_CONTAINERD_NAME = "io.containerd.image.name"  # by which containerd, Docker and podman name what they load
_MAX_NESTING = 2
_LAYER_TYPES = {b"\x1f\x8b": OCI_LAYER_GZIP, b"\x28\xb5\x2f\xfd": OCI_LAYER_ZSTD}
_STRANGE_LAYERS = {b"\xfd7zXZ": "xz", b"BZh": "bzip2"}


def read_docker(file: ArchiveFile) -> Contents:
    """The contents of a docker-archive."""
    if file.find(DOCKER_MANIFESTS) is None:
        is_oci = file.find("index.json") is not None
        raise NotFoundError(
            "not a docker-archive: it has no manifest.json",
            hint=f"name it oci-archive:{file.path}" if is_oci else "`docker save -o FILE IMAGE` writes one",
        )
    reader = _Reader(file)
    # A list, where strict JSON reads objects.
    data = b'{"%s":%s}' % (DOCKER_MANIFESTS.encode(), file.document(DOCKER_MANIFESTS, MAX_DOCUMENT))
    entries: list[Descriptor] = []
    for item in load(data, "archive", len(data)).children(DOCKER_MANIFESTS):
        image = reader.image(item)
        reader.contents.images.append(image)
        names = dict.fromkeys(item.texts("RepoTags"))
        for name in names:
            full_name(name)
            entries.append(replace(image, annotations={REF_NAME_ANNOTATION: name}))
        if not names:
            entries.append(image)
    reader.contents.index = Index(tuple(entries))
    return reader.contents


class DockerArchiveStore(OciArchiveStore):
    """A docker-archive as a `Store`; tags are ``name[:tag]``, and ``@N`` is the image at place N."""

    transport: ClassVar[str] = "docker-archive"

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        if tag_or_digest is None or tag_or_digest.startswith("sha256:"):
            return super().resolve(tag_or_digest)
        place = position(tag_or_digest)
        if place is not None:
            return self._at(place)
        wanted = full_name(tag_or_digest)
        same = [tag for tag in self.tags() if full_name(tag) == wanted]
        return super().resolve(same[0] if same else tag_or_digest)

    def _read_contents(self, file: ArchiveFile) -> Contents:
        return read_docker(file)

    def _same_name(self, tag: str) -> str:
        return full_name(tag)

    def _check_tag(self, tag: str) -> None:
        full_name(tag)

    def _check_image(self, descriptor: Descriptor) -> None:
        use = "write it to oci-archive:FILE instead"
        if descriptor.media_type not in MANIFEST_TYPES:
            raise UnsupportedError(
                f"a docker-archive holds images for one platform; {descriptor.digest} is for several",
                hint=use,
            )
        manifest = parse_manifest(self.get_document(descriptor))
        if not manifest.is_image() or any(
            layer.media_type in FOREIGN_LAYER_TYPES for layer in manifest.layers
        ):
            raise UnsupportedError(
                f"a docker-archive holds images with all their layers, which {descriptor.digest} is not",
                hint=use,
            )

    def _documents(self, index: Index) -> list[tuple[str, bytes]]:
        images: dict[str, dict[str, Any]] = {}
        entries: list[Descriptor] = []
        for item in index.manifests:
            if item.digest not in images:
                manifest = parse_manifest(self.get_document(item))
                config, *layers = (_member(blob) for blob in (manifest.config, *manifest.layers))
                images[item.digest] = {"Config": config, "RepoTags": [], "Layers": layers}
            annotations = {}
            if (name := tag_of(item)) is not None:
                images[item.digest]["RepoTags"].append(with_tag(name))
                annotations = {
                    _CONTAINERD_NAME: full_name(name),
                    REF_NAME_ANNOTATION: split_name(name)[1],
                }
            entries.append(replace(item, annotations=annotations))
        return [
            *super()._documents(Index(tuple(entries))),
            (DOCKER_MANIFESTS, dump(list(images.values()))),
        ]

    def _at(self, place: int) -> Descriptor:
        contents = self._current()
        images = [] if contents is None else contents.images
        if place >= len(images):
            raise NotFoundError(
                f"{self.url} has {len(images)} images, so none at place {place}", hint="@0 is the first"
            )
        return images[place]


class _Reader:
    """Turns the entries of a manifest.json into manifests. No member is read twice, however often named."""

    def __init__(self, file: ArchiveFile) -> None:
        self.contents = Contents(file, extents=find_blobs(file))
        self._inner = dict(_inner_manifests(self.contents))
        self._configs: dict[Extent, tuple[Descriptor, tuple[str, ...]]] = {}
        self._layers: dict[Extent, tuple[str, str | None]] = {}

    def image(self, item: Fields) -> Descriptor:
        """The manifest of one entry, found or made."""
        config_name = _normal(item.text("Config", required=True))
        layer_names = [_normal(name) for name in item.texts("Layers")]
        found = self._inner.get((config_name, *layer_names))
        if found is not None:
            return found
        config, diff_ids = self._config(config_name)
        if len(diff_ids) != len(layer_names):
            raise BadInputError(
                f"{item.at('Layers')} has {len(layer_names)} layers, but the config has {len(diff_ids)}",
                hint="save the image again",
            )
        layers = map(self._layer, layer_names, diff_ids)
        data = Manifest(config, tuple(layers)).to_bytes()
        if len(data) > MAX_DOCUMENT:
            raise LimitError(
                f"{item.path} makes a manifest of {len(data)} bytes, the limit is {MAX_DOCUMENT}",
                hint="build the image with fewer layers",
            )
        made = Descriptor(OCI_MANIFEST, sha256_digest(data), len(data))
        self.contents.documents[made.digest] = data
        return made

    def _config(self, name: str) -> tuple[Descriptor, tuple[str, ...]]:
        extent = self.contents.file.member(name)
        if extent not in self._configs:
            data = self.contents.file.document(name, MAX_DOCUMENT)
            descriptor = Descriptor(OCI_CONFIG, sha256_digest(data), len(data))
            self.contents.extents[descriptor.digest] = extent
            self._configs[extent] = descriptor, parse_config(data).diff_ids
        return self._configs[extent]

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        extent = self.contents.file.member(name)
        if extent not in self._layers:
            self._layers[extent] = self._type_and_digest(extent, name)
        media_type, digest = self._layers[extent]
        digest = digest or diff_id
        known = self.contents.extents.setdefault(digest, extent)
        if known.size != extent.size:
            raise BadInputError(
                f"{digest} is two layers, of {known.size} and of {extent.size} bytes",
                hint="save the image again",
            )
        return Descriptor(media_type, digest, extent.size)

    def _type_and_digest(self, extent: Extent, name: str) -> tuple[str, str | None]:
        """The digest is None where it is the DiffID."""
        file = self.contents.file
        head = file.read(extent, 0, min(8, extent.size))
        for magic, compression in _STRANGE_LAYERS.items():
            if head.startswith(magic):
                raise UnsupportedError(
                    f"layer {plain(name)} is compressed with {compression}", hint="save the image again"
                )
        for magic, media_type in _LAYER_TYPES.items():
            if head.startswith(magic):
                hasher = hashlib.sha256()
                for piece in file.stream(extent):
                    hasher.update(piece)
                return media_type, f"sha256:{hasher.hexdigest()}"
        return OCI_LAYER, None


def _inner_manifests(contents: Contents) -> Iterator[tuple[tuple[str, ...], Descriptor]]:
    """The manifests of the OCI layout inside, if there is one, by the names of config and layers.

    What its indexes name and the archive has not is passed over: Docker saves one platform of many.
    """
    if contents.file.find("index.json") is None:
        return
    level = list(parse_index(contents.file.document("index.json", MAX_INDEX), limit=MAX_INDEX).manifests)
    seen: set[str] = set()
    for _ in range(_MAX_NESTING):
        below: list[Descriptor] = []
        for item in level:
            if item.digest in seen or item.size > MAX_DOCUMENT or contents.size(item.digest) != item.size:
                continue
            seen.add(item.digest)
            data = contents.read(item.digest, 0, item.size)
            if sha256_digest(data) != item.digest:
                continue
            if item.media_type in INDEX_TYPES:
                below += parse_index(data).manifests
            elif item.media_type in MANIFEST_TYPES:
                manifest = parse_manifest(data)
                names = tuple(_member(blob) for blob in (manifest.config, *manifest.layers))
                yield names, Descriptor(item.media_type, item.digest, len(data))
        level = below


def _member(blob: Descriptor) -> str:
    return BLOBS + parse_digest(blob.digest)


def _normal(name: str) -> str:
    return name.removeprefix("./")
