"""What points to a blob: digests, platforms, descriptors, and where in a layer its TOC lies.

Follows the OCI image specification 1.1 (descriptor.md, image-index.md).
"""

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import Any

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.oci_types import PACK_ANNOTATION, TOC_ANNOTATION
from lazyfs.formats.strict_json import MAX_INTEGER, Fields, filled, merge, rest, short

MAX_TOC = 256 << 20
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
        known |= filled(
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
        known |= filled({"annotations": dict(self.annotations), "artifactType": self.artifact_type})
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
