"""The images that a node has opened: which layers they are of, when that was, and which must stay.

<root>/seen/<sha256 of the reference>    JSON, one record per image
"""

import hashlib
import json
import logging
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lazyfs.errors import NodeError, NotFoundError
from lazyfs.node.files import remove_torn, write_new

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeenLayer:
    """`toc` names its cache; `bytes` is the size of its device."""

    toc: str
    blob: str
    bytes: int


@dataclass(frozen=True, slots=True)
class SeenImage:
    """`opened` is the last time, in seconds since 1970; `keys` name its bootstraps."""

    reference: str
    digest: str
    layers: tuple[SeenLayer, ...]
    keys: tuple[str, ...]
    opened: float
    pinned: bool = False

    @property
    def tocs(self) -> frozenset[str]:
        return frozenset(layer.toc for layer in self.layers)


class SeenImages:
    """Thread safe. A record that cannot be read is no record."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        remove_torn(directory)
        self._images = {
            image.reference: image for image in map(_read, directory.iterdir()) if image is not None
        }

    def all(self) -> list[SeenImage]:
        """The one that was opened last comes first."""
        with self._lock:
            return sorted(self._images.values(), key=lambda image: -image.opened)

    def note(self, image: SeenImage) -> None:
        """An image was opened, or some of its layers. A full disk is no reason to refuse that."""
        with self._lock:
            known = self._images.get(image.reference)
            if known is not None:
                image = replace(image, pinned=known.pinned)
            if known is not None and known.digest == image.digest:
                layers = tuple(dict.fromkeys((*known.layers, *image.layers)))
                image = replace(image, layers=layers, keys=tuple(dict.fromkeys((*known.keys, *image.keys))))
            self._images[image.reference] = image
            try:
                self._write(image)
            except NodeError as error:
                log.warning("%s", error)

    def find(self, reference: str) -> SeenImage:
        with self._lock:
            return self._find(reference)

    def pin(self, reference: str, pinned: bool) -> SeenImage:
        """Say whether an image must stay. Raises NotFoundError, and NodeError when the disk does not take it."""
        with self._lock:
            image = replace(self._find(reference), pinned=pinned)
            self._write(image)
            self._images[reference] = image
        return image

    def forget(self, reference: str) -> None:
        with self._lock:
            if self._images.pop(reference, None) is not None:
                with suppress(OSError):
                    self._path(reference).unlink()

    def pinned_layers(self) -> frozenset[str]:
        return frozenset().union(*(image.tocs for image in self.all() if image.pinned))

    def _find(self, reference: str) -> SeenImage:
        image = self._images.get(reference)
        if image is None:
            raise NotFoundError(
                f"{reference} was never opened on this node",
                hint="`lazyfs cache` lists those that were; `lazyfs cache warm REF` fetches one",
            )
        return image

    def _path(self, reference: str) -> Path:
        name = hashlib.sha256(reference.encode(errors="surrogateescape")).hexdigest()
        return self._directory / name

    def _write(self, image: SeenImage) -> None:
        write_new(self._path(image.reference), json.dumps(asdict(image)).encode())


def _read(path: Path) -> SeenImage | None:
    try:
        values = json.loads(path.read_bytes())
        layers = tuple(
            SeenLayer(str(each["toc"]), str(each["blob"]), int(each["bytes"])) for each in values["layers"]
        )
        return SeenImage(
            str(values["reference"]),
            str(values["digest"]),
            layers,
            tuple(str(key) for key in values["keys"]),
            float(values["opened"]),
            values["pinned"] is True,
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("%s is no record of an image: %s", path, error)
        return None
