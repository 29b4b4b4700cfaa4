"""OCI image documents as values: descriptors, manifests, indexes, image configs, the TOC annotation.

Follows the OCI image specification 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and Docker's
image manifest version 2, schema 2, which differs from it in media types alone. A value keeps in ``extra``
what it does not know, so that a document is rewritten without loss. `to_bytes` gives the same bytes for the
same value, but not the bytes that were parsed: whoever needs those (they carry the digest) keeps them.
"""

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import Any

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.strict_json import MAX_INTEGER, Fields, bad, dump, load, merge, rest, short

MAX_DOCUMENT = 4 << 20  # what registries accept as a manifest
MAX_TOC = 256 << 20

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_FOREIGN_LAYER_GZIP = f"{OCI_FOREIGN_LAYER}+gzip"
OCI_FOREIGN_LAYER_ZSTD = f"{OCI_FOREIGN_LAYER}+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = f"{DOCKER_LAYER}.gzip"
DOCKER_LAYER_ZSTD = f"{DOCKER_LAYER}.zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP = f"{DOCKER_FOREIGN_LAYER}.gzip"

MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# Layers that a store need not hold: their maker forbids to pass them on, and names URLs instead.
FOREIGN_LAYER_TYPES = frozenset(
    {
        OCI_FOREIGN_LAYER,
        OCI_FOREIGN_LAYER_GZIP,
        OCI_FOREIGN_LAYER_ZSTD,
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP,
    }
)

REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
# containerd hands annotations of this prefix to the snapshotter as labels.
TOC_ANNOTATION = "containerd.io/snapshot/lazyfs.toc"
# On layers as well, for containerd; and on the pack's own artifact, where it is seen in a list of referrers.
PACK_ANNOTATION = "containerd.io/snapshot/lazyfs.pack"
# The artifact that holds a launch pack, and the blob in it.
OUR_TYPES = "application/vnd.lazyfs."
PACK_TYPE = "application/vnd.lazyfs.launch-pack.v1"
# An artifact that the converter leaves beside a layer, for its next run.
LAYER_RECORD_TYPE = "application/vnd.lazyfs.layer.v1"

_COMPRESSIONS = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    OCI_FOREIGN_LAYER: "none",
    OCI_FOREIGN_LAYER_GZIP: "gzip",
    OCI_FOREIGN_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: "none",
    DOCKER_FOREIGN_LAYER_GZIP: "gzip",
}
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):[A-Za-z0-9=_-]+")
_PACK_LOCATION = re.compile(r"(sha256:[0-9a-f]{64}):([1-9][0-9]{0,18})")
_TOC_LOCATION = re.compile(r"(0|[1-9][0-9]{0,18}):(0|[1-9][0-9]{0,18}):([0-9a-f]{64})")


def sha256_digest(data: bytes | bytearray | memoryview) -> str:
    """The digest of these bytes as OCI writes it: ``sha256:`` and 64 lower-case hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_digest(text: str, path: str = "digest") -> str:
    """The 64 hex digits of a sha256 digest, safe as a file name; ``path`` names the field in errors."""
    match = _SHA256.fullmatch(text)
    if match:
        return match[1]
    other = _DIGEST.fullmatch(text)
    if other and other[1] != "sha256":
        raise UnsupportedError(
            f"{path} is a {short(other[1])} digest; lazyfs knows sha256 alone",
            hint="copy the image with a tool that writes sha256 digests, for example skopeo",
        )
    raise BadInputError(
        f"{path} is not a digest: {short(text)}", hint="a digest is sha256: and 64 lower-case hex digits"
    )


def layer_compression(media_type: str) -> str:
    """``none``, ``gzip`` or ``zstd``; UnsupportedError for a type that is no layer we can read."""
    try:
        return _COMPRESSIONS[media_type]
    except KeyError:
        raise UnsupportedError(
            f"layers of type {short(media_type)} cannot be read",
            hint="lazyfs reads tar layers, plain or packed with gzip or zstd, and not encrypted",
        ) from None


@dataclass(frozen=True, slots=True)
class TocLocation:
    """Where in a layer's blob the packed TOC lies, and the sha256 (hex) of those bytes."""

    offset: int
    length: int
    sha256: str

    def format(self) -> str:
        return f"{self.offset}:{self.length}:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> "TocLocation":
        """Read the annotation's value; the TOC is at most 256 MiB and ends below 2^63."""
        match = _TOC_LOCATION.fullmatch(text)
        if match is None or match[2] == "0":
            raise BadInputError(
                f"annotation {TOC_ANNOTATION} must be <offset>:<length>:<sha256>, not {short(text)}",
                hint="convert the image again",
            )
        offset, length = int(match[1]), int(match[2])
        if length > MAX_TOC or offset + length > MAX_INTEGER:
            raise LimitError(
                f"annotation {TOC_ANNOTATION} asks for {length} bytes at {offset}; the limit is {MAX_TOC}",
                hint="convert the image again, with larger chunks if it is really that large",
            )
        return cls(offset, length, match[3])


@dataclass(frozen=True, slots=True)
class PackLocation:
    """Which blob is the image's launch pack, and its size in bytes."""

    digest: str
    size: int

    def format(self) -> str:
        return f"{self.digest}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> "PackLocation":
        """Read the annotation's value."""
        match = _PACK_LOCATION.fullmatch(text)
        if match is None:
            raise BadInputError(f"annotation {PACK_ANNOTATION} must be <digest>:<size>, not {short(text)}")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class Platform:
    architecture: str
    os: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        known |= _filled(
            {"variant": self.variant, "os.version": self.os_version, "os.features": list(self.os_features)}
        )
        return merge(self.extra, known)

    @classmethod
    def from_fields(cls, fields: Fields) -> "Platform":
        platform = cls(
            architecture=fields.text("architecture"),
            os=fields.text("os"),
            variant=fields.text("variant"),
            os_version=fields.text("os.version"),
            os_features=fields.texts("os.features"),
        )
        return replace(platform, extra=rest(fields.values, platform.to_json()))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What points to a blob: type, sha256 digest, and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def toc_location(self) -> TocLocation | None:
        """Where the TOC of this layer lies, or None when the layer was not converted."""
        text = self.annotations.get(TOC_ANNOTATION)
        if text is None:
            return None
        location = TocLocation.parse(text)
        if location.offset + location.length > self.size:
            raise BadInputError(
                f"annotation {TOC_ANNOTATION} points behind the end of {self.digest} ({self.size} bytes)",
                hint="convert the image again",
            )
        return location

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        known |= _filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
        if self.platform is not None:
            known["platform"] = self.platform.to_json()
        return merge(self.extra, known)

    @classmethod
    def from_fields(cls, fields: Fields) -> "Descriptor":
        digest = fields.text("digest", required=True)
        parse_digest(digest, fields.at("digest"))
        platform = fields.child("platform")
        descriptor = cls(
            media_type=fields.text("mediaType", required=True),
            digest=digest,
            size=fields.integer("size"),
            annotations=fields.text_map("annotations"),
            platform=None if platform is None else Platform.from_fields(platform),
            artifact_type=fields.text("artifactType"),
        )
        return replace(descriptor, extra=rest(fields.values, descriptor.to_json()))


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image (or artifact): its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: dict[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def is_image(self) -> bool:
        return self.config.media_type in CONFIG_TYPES

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        known |= _filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
        if self.subject is not None:
            known["subject"] = self.subject.to_json()
        return merge(self.extra, known)

    def to_bytes(self) -> bytes:
        return dump(self.to_json())


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests under one digest, most often one per platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: dict[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        known |= _filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
        if self.subject is not None:
            known["subject"] = self.subject.to_json()
        return merge(self.extra, known)

    def to_bytes(self) -> bytes:
        return dump(self.to_json())


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image wants to run, and the DiffIDs of its layers, lowest first."""

    diff_ids: tuple[str, ...]
    architecture: str = ""
    os: str = ""
    variant: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        execution = _filled(
            {
                "Entrypoint": list(self.entrypoint),
                "Cmd": list(self.cmd),
                "Env": list(self.env),
                "WorkingDir": self.working_dir,
                "User": self.user,
                "Labels": dict(self.labels),
                "StopSignal": self.stop_signal,
                "Volumes": {name: {} for name in self.volumes},
                "ExposedPorts": {name: {} for name in self.exposed_ports},
            }
        )
        known: dict[str, Any] = {"rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)}}
        known |= _filled(
            {
                "architecture": self.architecture,
                "os": self.os,
                "variant": self.variant,
                "config": execution,
            }
        )
        return merge(self.extra, known)

    def to_bytes(self) -> bytes:
        return dump(self.to_json())


def parse_manifest(data: bytes, *, limit: int = MAX_DOCUMENT) -> Manifest:
    """Parse an OCI manifest or a Docker schema 2 manifest.

    Raises BadInputError (naming the field), LimitError, or UnsupportedError (schema 1, other digests than
    sha256).
    """
    return _manifest(load(data, "manifest", limit))


def parse_index(data: bytes, *, limit: int = MAX_DOCUMENT) -> Index:
    """Parse an OCI index or a Docker manifest list; raises as `parse_manifest`."""
    return _index(load(data, "index", limit))


def parse_document(data: bytes, *, limit: int = MAX_DOCUMENT) -> Manifest | Index:
    """Parse a manifest or an index, whichever it says it is."""
    fields = load(data, "manifest", limit)
    media_type = fields.text("mediaType")
    if media_type in INDEX_TYPES or (not media_type and "manifests" in fields.values):
        fields.path = "index"
        return _index(fields)
    return _manifest(fields)


def parse_config(data: bytes, *, limit: int = MAX_DOCUMENT) -> ImageConfig:
    """Parse an image config, OCI or Docker; raises as `parse_manifest`."""
    fields = load(data, "config", limit)
    rootfs = fields.required_child("rootfs")
    if rootfs.text("type") != "layers":
        bad(f"{rootfs.at('type')} must be 'layers', not {short(rootfs.text('type'))}")
    rootfs.require("diff_ids")
    diff_ids = rootfs.texts("diff_ids")
    for number, diff_id in enumerate(diff_ids):
        parse_digest(diff_id, f"{rootfs.at('diff_ids')}[{number}]")
    execution = fields.child("config") or Fields({}, fields.at("config"))
    config = ImageConfig(
        diff_ids=diff_ids,
        architecture=fields.text("architecture"),
        os=fields.text("os"),
        variant=fields.text("variant"),
        entrypoint=execution.texts("Entrypoint"),
        cmd=execution.texts("Cmd"),
        env=execution.texts("Env"),
        working_dir=execution.text("WorkingDir"),
        user=execution.text("User"),
        labels=execution.text_map("Labels"),
        stop_signal=execution.text("StopSignal"),
        volumes=execution.names("Volumes"),
        exposed_ports=execution.names("ExposedPorts"),
    )
    return replace(config, extra=rest(fields.values, config.to_json()))


def pair_layers(manifest: Manifest, config: ImageConfig) -> list[tuple[Descriptor, str]]:
    """Each layer with its DiffID, lowest first; BadInputError when the two documents disagree."""
    layers, diff_ids = len(manifest.layers), len(config.diff_ids)
    if layers != diff_ids:
        bad(f"manifest.layers has {layers} layers, but config.rootfs.diff_ids has {diff_ids}")
    return list(zip(manifest.layers, config.diff_ids, strict=True))


def _manifest(fields: Fields) -> Manifest:
    media_type = _check_header(fields, MANIFEST_TYPES, OCI_MANIFEST, foreign_keys=("manifests",))
    subject = fields.child("subject")
    fields.require("layers")
    manifest = Manifest(
        config=Descriptor.from_fields(fields.required_child("config")),
        layers=tuple(Descriptor.from_fields(layer) for layer in fields.children("layers")),
        media_type=media_type,
        annotations=fields.text_map("annotations"),
        artifact_type=fields.text("artifactType"),
        subject=None if subject is None else Descriptor.from_fields(subject),
    )
    return replace(manifest, extra=rest(fields.values, manifest.to_json()))


def _index(fields: Fields) -> Index:
    media_type = _check_header(fields, INDEX_TYPES, OCI_INDEX, foreign_keys=("config", "layers"))
    subject = fields.child("subject")
    fields.require("manifests")
    index = Index(
        manifests=tuple(Descriptor.from_fields(manifest) for manifest in fields.children("manifests")),
        media_type=media_type,
        annotations=fields.text_map("annotations"),
        artifact_type=fields.text("artifactType"),
        subject=None if subject is None else Descriptor.from_fields(subject),
    )
    return replace(index, extra=rest(fields.values, index.to_json()))


def _check_header(
    fields: Fields, types: frozenset[str], default: str, *, foreign_keys: tuple[str, ...]
) -> str:
    version = fields.integer("schemaVersion")
    if version == 1:
        raise UnsupportedError(
            f"{fields.path} is a Docker schema 1 manifest, a format given up in 2017",
            hint="bring it to this decade with `skopeo copy --format oci SRC DST`",
        )
    if version != 2:
        bad(f"{fields.at('schemaVersion')} must be 2, not {version}")
    # A document that can be read as both is two images under one digest (CVE-2021-41190).
    for key in foreign_keys:
        if fields.values.get(key) is not None:
            bad(f"{fields.at(key)} does not belong there: the document would be manifest and index at once")
    media_type = fields.text("mediaType") or default
    if media_type not in types:
        bad(f"{fields.at('mediaType')} must be {' or '.join(sorted(types))}, not {short(media_type)}")
    return media_type


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}
