"""Manifests and configs that a node has seen, so that what it has cached can be opened without a network.

    <root>/documents/<sha256>    one document as it came

Only what is asked for by digest is found here: a tag may have moved since.
"""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.formats.oci import parse_config, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.node.files import remove_torn, write_new
from lazyfs.stores import Image

log = logging.getLogger(__name__)


class Documents:
    """The documents below one directory. Thread safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        remove_torn(directory)

    def load(self, digest: str) -> Image | None:
        """The image whose manifest has this digest, if both its documents are here."""
        content = self._read(digest)
        if content is None:
            return None
        try:
            manifest = parse_manifest(content)
            config = self._read(manifest.config.digest)
            if config is None:
                return None
            return Image(
                Descriptor(manifest.media_type, digest, len(content)),
                manifest,
                parse_config(config),
                content,
                config,
            )
        except LazyfsError as error:
            log.warning("%s of this node: %s", digest, error)
            return None

    def keep(self, image: Image) -> None:
        """A full disk is no reason not to run what has been read."""
        try:
            self._write(image.descriptor.digest, image.manifest_bytes)
            self._write(image.manifest.config.digest, image.config_bytes)
        except NodeError as error:
            log.warning("%s", error)

    def _path(self, digest: str) -> Path:
        return self._directory / digest.rpartition(":")[2]

    def _read(self, digest: str) -> bytes | None:
        with suppress(OSError):
            data = self._path(digest).read_bytes()
            if f"sha256:{hashlib.sha256(data).hexdigest()}" == digest:
                return data
        return None

    def _write(self, digest: str, data: bytes) -> None:
        path = self._path(digest)
        if not path.exists():
            write_new(path, data)
