"""From a name to an image: its manifest and config, from this machine where they are here; and its launch pack.

What a digest names is not asked for again. While a store cannot be reached, a tag means what it meant last.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.config import NodePaths, read_settings
from lazyfs.daemon.documents import Documents
from lazyfs.daemon.open_stores import OpenStores
from lazyfs.daemon.state import State
from lazyfs.errors import StoreError
from lazyfs.node.launch import Launch
from lazyfs.node.launches import Launches, documents_of
from lazyfs.node.timeline import Timeline
from lazyfs.stores import Image, Reference, Store, find_manifest, load_config, parse_reference
from lazyfs.stores.image import FoundManifest

if TYPE_CHECKING:
    from lazyfs.daemon.signatures import SignaturePolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was asked for; its launch pack, if one comes now, and the documents that it has brought."""

    store: Store
    reference: Reference
    image: Image
    launch: Launch | None
    documents: Mapping[str, bytes]


class ImageFinder:
    """Thread safe."""

    def __init__(
        self,
        documents: Documents,
        stores: OpenStores,
        state: State,
        launches: Launches,
        timeline: Timeline,
        policy: "SignaturePolicy | None",
    ) -> None:
        self._documents = documents
        self._stores = stores
        self._state = state
        self._launches = launches
        self._timeline = timeline
        self._policy = policy

    @contextmanager
    def find(self, reference_text: str, directory: Path) -> Iterator[Found]:
        """The image of that name; a relative path in it counts from `directory`.

        Its launch pack comes from now on; not if the image cannot be opened.
        """
        store, reference = self._stores.find(parse_reference(reference_text).absolute(directory))
        image = self._documents.load(reference.digest) if reference.digest else None
        launch = None
        if image is not None:
            manifest = FoundManifest(image.descriptor, image.manifest, image.manifest_bytes)
            self._require(store, manifest.descriptor.digest)
            launch = self._launches.begin(store, manifest.descriptor, manifest.manifest)
        else:
            try:
                manifest = find_manifest(store, reference)
                self._timeline.small_read(len(manifest.manifest_bytes))
                self._require(store, manifest.descriptor.digest, *manifest.indexes)
                launch = self._launches.begin(store, manifest.descriptor, manifest.manifest)
                image = self._documents.load(manifest.descriptor.digest)
            except StoreError as error:
                image = self._remembered(reference, error)
                manifest = FoundManifest(image.descriptor, image.manifest, image.manifest_bytes)
                self._require(store, manifest.descriptor.digest)
        try:
            documents = documents_of(launch)
            if image is None:
                image = load_config(store, manifest, documents)
                self._timeline.small_read(0 if documents else len(image.config_bytes))
                self._documents.keep(image)
            yield Found(store, reference, image, launch, documents)
        except BaseException:
            if launch is not None:
                launch.stop("the image cannot be opened")
            raise

    def _require(self, store: Store, manifest: str, *indexes: str) -> None:
        if self._policy is not None:
            self._policy.require(store, manifest, *indexes)

    def _remembered(self, reference: Reference, error: StoreError) -> Image:
        """The image as it was opened last under this name, while its store cannot be reached."""
        digest = self._state.digest(str(reference))
        image = self._documents.load(digest) if digest else None
        if image is None:
            raise error
        log.warning("%s; %s is opened as it was last", error, reference)
        return image


def signature_policy(paths: NodePaths) -> "SignaturePolicy | None":
    """What the node's settings demand of images; None where they demand nothing."""
    if not read_settings(paths, "policy"):
        return None
    from lazyfs.daemon.signatures import SignaturePolicy  # what it needs takes a while to load

    return SignaturePolicy.read(paths)
