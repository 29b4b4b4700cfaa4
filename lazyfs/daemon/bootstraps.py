"""The bootstraps of images, one for each merged tree, made when it is first asked for.

<root>/bootstraps/<boot id>/<key>
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from lazyfs.daemon.layers import Layer
from lazyfs.daemon.locks import NamedLocks
from lazyfs.formats import bootstrap
from lazyfs.formats.image_tree import merge
from lazyfs.node.files import remove_torn, write_new


class Bootstraps:
    """Those of this boot. Thread safe."""

    def __init__(self, directory: Path, boot: bytes) -> None:
        self._directory = directory / boot.decode()[:8]
        self._being_made = NamedLocks()
        self._directory.mkdir(parents=True, exist_ok=True)
        remove_torn(self._directory)
        _remove_others(directory, self._directory.name)

    @property
    def directory(self) -> Path:
        """Where what is made of an image lies as long as this boot lasts, under names that begin with its key."""
        return self._directory

    def path(self, key: str) -> Path:
        return self._directory / key

    def make(self, layers: Sequence[Layer]) -> str:
        """The key of the image of these layers, whose bootstrap is there then."""
        key = image_key(layers)
        path = self.path(key)
        with self._being_made.of(key):
            if not path.exists():
                tree = merge([layer.toc.tree for layer in layers])
                write_new(path, bootstrap.build(tree, [layer.device.size for layer in layers]))
        return key


def image_key(layers: Sequence[Layer]) -> str:
    """Names the merged tree: equal TOCs in equal order, laid out by the same code, give the same bootstrap."""
    text = f"{bootstrap.VERSION} " + " ".join(layer.toc_digest for layer in layers)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _remove_others(directory: Path, kept: str) -> None:
    """Bootstraps of earlier boots were never synced and may be torn: they are built anew."""
    for other in directory.iterdir():
        if other.name != kept and other.is_dir():
            for file in other.iterdir():
                file.unlink(missing_ok=True)
            other.rmdir()
