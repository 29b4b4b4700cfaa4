"""Stand-ins for the node's daemon, where a test is about records alone."""

from pathlib import Path

from snapshotter.labels import WantedLayer
from snapshotter.records import Lazy


class NoImages:
    """Finds none."""

    def find(self, wanted: WantedLayer) -> Lazy | None:
        return None

    def show(self, number: int, lazy: Lazy, target: Path) -> None:
        raise AssertionError(target)

    def forget(self, numbers: set[int]) -> None:
        assert not numbers


class EveryImage(NoImages):
    """Every layer is the lowest one of some image."""

    def find(self, wanted: WantedLayer) -> Lazy | None:
        return Lazy(wanted.reference, 1, wanted.chain_id, "", ())
