"""OCI image documents as values: manifests, indexes, image configs.

Follows the OCI image specification 1.1 (manifest.md, image-index.md, config.md) and Docker's image manifest
version 2, schema 2, which differs from it in media types alone. A value keeps in ``extra`` what it does not
know, so that a document is rewritten without loss. `to_bytes` gives the same bytes for the same value, but not
the bytes that were parsed: whoever needs those (they carry the digest) keeps them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from lazyfs.errors import UnsupportedError
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST
from lazyfs.formats.strict_json import Fields, bad, dump, filled, load, merge, rest, short

MAX_DOCUMENT = 4 << 20  # what registries accept as a manifest


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
        known |= filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
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
        known |= filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
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
        execution = filled(
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
        known |= filled(
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
