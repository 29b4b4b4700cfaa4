"""What a layer's cache asks of the node that it is a part of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lazyfs.node.cache_files import OpenFiles

if TYPE_CHECKING:
    from lazyfs.node.cache import LayerCache
    from lazyfs.node.cache_layer import LayerFiles


class Surroundings:
    """This one gives all the room that is wanted, and knows no other layers."""

    def __init__(self) -> None:
        self.files = OpenFiles()
        self.now = 0
        """Seconds since 1970, coarse: what is read is marked with it."""
        self.paranoid = False
        """Verify what is read from the disk, each time."""

    def admit(self, cache: "LayerFiles", size: int) -> bool:
        """Is there room for so many bytes more?"""
        return True

    def arrived(self, home: str, size: int) -> None:
        """What was admitted while the layer lay in this directory is written, or never will be."""

    def elsewhere(self, cache: "LayerCache", index: int) -> Mapping[int, bytes]:
        """Units of a chunk that another layer has, proved."""
        return {}

    def failed(self, cache: "LayerFiles", home: str, error: OSError) -> None:
        """The disk did not take something that was begun while the layer lay in this directory."""

    def damaged(self, cache: "LayerCache", index: int) -> None:
        """The disk gave other bytes for a chunk than it was given."""
