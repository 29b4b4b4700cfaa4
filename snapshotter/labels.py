"""What containerd's clients say, in labels, of the layer that a Prepare is about.

    containerd.io/snapshot.ref                the chain ID that the layer's snapshot will be looked for by; of BuildKit
                                              a name that ends in it, as sha256-…
    containerd.io/snapshot/cri.*              CRI, containerd 2's Transfer service, nerdctl, Docker
    containerd.io/snapshot/remote/stargz.*    ctr-remote images rpull, BuildKit
    containerd.io/snapshot/lazyfs.toc         the layer's annotation, handed on by all of them

Without the last one the layer is not one of ours, and no network is asked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lazyfs.errors import LazyfsError
from lazyfs.formats.oci_types import TOC_ANNOTATION
from lazyfs.stores import parse_reference

TARGET = "containerd.io/snapshot.ref"
REMOTE = "containerd.io/snapshot/remote"
_CRI = "containerd.io/snapshot/cri."
_STARGZ = "containerd.io/snapshot/remote/stargz."
_CHAIN_ID = re.compile(r"(?:^|-)sha256[-:]([0-9a-f]{64})$")
_TAG = re.compile(r":[^:/@]*(?=@|$)")


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """`reference` names the image, by its manifest's digest where that is known; `blob` is the layer's digest.

    `name` is what its snapshot is to be called.
    """

    name: str
    chain_id: str
    reference: str
    blob: str


def wanted_layer(labels: Mapping[str, str]) -> WantedLayer | None:
    """None where the labels do not speak of a layer that could be shown before it is here."""
    if not labels.get(TARGET) or TOC_ANNOTATION not in labels:
        return None
    for reference, blob, manifest in (
        (f"{_CRI}image-ref", f"{_CRI}layer-digest", f"{_CRI}manifest-digest"),
        (f"{_STARGZ}reference", f"{_STARGZ}digest", ""),
    ):
        if labels.get(reference) and labels.get(blob):
            name = f"docker://{_pinned(labels[reference], labels.get(manifest, ''))}"
            try:
                target = labels[TARGET]
                return WantedLayer(target, chain_id_of(target), str(parse_reference(name)), labels[blob])
            except LazyfsError:
                return None
    return None


def chain_id_of(name: str) -> str:
    """That in which the name of a layer's snapshot ends; where it ends in none, all behind the last slash.

    containerd puts a namespace and a number before the name that a client gave.
    """
    name = name.rpartition("/")[2]
    found = _CHAIN_ID.search(name)
    return f"sha256:{found[1]}" if found else name


def _pinned(name: str, manifest: str) -> str:
    """The image's name with its manifest's digest instead of a tag, which may move; of two names the digest."""
    repository = _TAG.sub("", name.partition("@")[0])
    if manifest:
        return f"{repository}@{manifest}"
    return f"{repository}@{name.partition('@')[2]}" if "@" in name else name
