"""One image out of a store: its manifest for this platform and its config, every document verified."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyfs.errors import BadInputError, NotFoundError, UnsupportedError, UsageError
from lazyfs.formats.oci import (
    ImageConfig,
    Index,
    Manifest,
    pair_layers,
    parse_config,
    parse_index,
    parse_manifest,
)
from lazyfs.formats.oci_descriptor import Descriptor, Platform, parse_digest
from lazyfs.formats.oci_types import INDEX_TYPES, MANIFEST_TYPES
from lazyfs.formats.strict_json import plain, short
from lazyfs.stores.base import Store, named
from lazyfs.stores.reference import Reference

_MAX_NESTING = 4
_MAX_PLATFORMS_SHOWN = 20
_PLATFORM = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?")
# What uname(2) calls a machine, and what Go and therefore OCI call it.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
# A manifest that names no variant is of the oldest one, or, for arm64, of the only one in use.
_PLAIN_VARIANTS = frozenset({"", "v1", "v8"})


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it was read; the raw bytes are the ones that the digests promise."""

    descriptor: Descriptor  # of the manifest
    manifest: Manifest
    config: ImageConfig
    manifest_bytes: bytes
    config_bytes: bytes

    @property
    def layers(self) -> list[tuple[Descriptor, str]]:
        """Each layer with its DiffID, lowest first."""
        return pair_layers(self.manifest, self.config)


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """The manifest of an image, and where it was found."""

    descriptor: Descriptor
    manifest: Manifest
    manifest_bytes: bytes
    indexes: tuple[str, ...] = ()
    """The digests of the indexes that led to it."""


def load_image(store: Store, reference: Reference, platform: str | None = None) -> Image:
    """Load the image that ``reference`` names; of an index the manifest for ``platform``.

    ``platform`` is written ``os/architecture[/variant]``; None means Linux on this machine's architecture.
    Raises NotFoundError when there is none for it, IntegrityError or BadInputError for damaged documents, and
    UnsupportedError for what is not an image.
    """
    found = find_manifest(store, reference, platform)
    with named(reference):
        image = load_config(store, found)
        if platform is not None:
            _check_platform(image.config, parse_platform(platform))
    return image


def find_manifest(store: Store, reference: Reference, platform: str | None = None) -> FoundManifest:
    """The first step of `load_image`: the manifest, and not yet the config."""
    wanted = host_platform() if platform is None else parse_platform(platform)
    descriptor = store.resolve(reference.selector)
    indexes: list[str] = []
    with named(reference):
        for _ in range(_MAX_NESTING):
            if descriptor.media_type not in INDEX_TYPES:
                break
            index = parse_index(store.get_document(descriptor))
            _check_type(descriptor, index.media_type)
            indexes.append(descriptor.digest)
            descriptor = _choose(index, wanted)
        return replace(_read_manifest(store, descriptor), indexes=tuple(indexes))


def host_platform() -> Platform:
    machine = os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(architecture, "linux", variant)


def parse_platform(text: str) -> Platform:
    """Parse ``os/architecture[/variant]``; UsageError otherwise."""
    match = _PLATFORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{short(text)} is not a platform",
            hint="write os/architecture[/variant], for example linux/arm64",
        )
    return Platform(match[2], match[1], match[3] or "")


def load_manifest(store: Store, descriptor: Descriptor) -> Image:
    """Load the image whose manifest ``descriptor`` points to; errors as of `load_image`."""
    return load_config(store, _read_manifest(store, descriptor))


def load_config(store: Store, found: FoundManifest, known: Mapping[str, bytes] | None = None) -> Image:
    """The second step of `load_image`. ``known`` has documents by sha256 (hex), each with that digest."""
    wanted = found.manifest.config
    config_bytes = (known or {}).get(parse_digest(wanted.digest))
    if config_bytes is None:
        config_bytes = store.get_document(wanted)
    config = parse_config(config_bytes)
    pair_layers(found.manifest, config)
    return Image(found.descriptor, found.manifest, config, found.manifest_bytes, config_bytes)


def _read_manifest(store: Store, descriptor: Descriptor) -> FoundManifest:
    if descriptor.media_type not in MANIFEST_TYPES:
        raise UnsupportedError(
            f"{descriptor.digest} is of type {short(descriptor.media_type)}, which is no image manifest",
            hint="name an image; `skopeo inspect --raw` shows what this is",
        )
    manifest_bytes = store.get_document(descriptor)
    manifest = parse_manifest(manifest_bytes)
    _check_type(descriptor, manifest.media_type)
    if not manifest.is_image():
        kind = manifest.artifact_type or manifest.config.media_type
        raise UnsupportedError(
            f"{descriptor.digest} is an artifact of type {short(kind)}, not an image",
            hint="name the image that it belongs to",
        )
    return FoundManifest(descriptor, manifest, manifest_bytes)


def _check_type(descriptor: Descriptor, media_type: str) -> None:
    # One document must not be one thing to us and another to a reader who trusts the descriptor.
    if media_type != descriptor.media_type:
        raise BadInputError(
            f"{descriptor.digest} says it is {media_type}, "
            f"but its descriptor says {short(descriptor.media_type)}",
            hint="make or copy the image again",
        )


def _choose(index: Index, wanted: Platform) -> Descriptor:
    images = [item for item in index.manifests if not item.artifact_type]
    ranks = [(rank, number) for number, item in enumerate(images) if (rank := _rank(item.platform, wanted))]
    if not ranks:
        raise NotFoundError(f"there is no image for {wanted}", hint=_platforms_hint(images))
    return images[min(ranks)[1]]


def _rank(offered: Platform | None, wanted: Platform) -> int:
    """How well a manifest fits: 1 best, 0 not at all."""
    if offered is None:
        return 4  # an index need not say what its manifests are for
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return 0
    if offered.variant == wanted.variant:
        return 1
    if not offered.variant or {offered.variant, wanted.variant} <= _PLAIN_VARIANTS:
        return 2
    # 32-bit ARM runs what was made for an older variant; without a wish, any variant is better than none.
    older_arm = offered.architecture == "arm" and offered.variant < wanted.variant
    return 3 if older_arm or not wanted.variant else 0


def _platforms_hint(manifests: Sequence[Descriptor]) -> str:
    names = [plain(str(item.platform)) for item in manifests if item.platform is not None]
    if not names:
        return "the index names no platforms: name an image by its digest"
    return f"choose a platform that is there: {', '.join(names[:_MAX_PLATFORMS_SHOWN])}"


def _check_platform(config: ImageConfig, wanted: Platform) -> None:
    offered = Platform(config.architecture, config.os, config.variant)
    if not _rank(offered, wanted):
        raise NotFoundError(
            f"the image is for {plain(str(offered))}, not for {wanted}", hint="leave the platform out"
        )
