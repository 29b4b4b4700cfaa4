"""A directory for layers' caches: how much it holds, how much it may hold, and whether its disk is there."""

import hashlib
import logging
import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from lazyfs.node.cache_settings import Limit
from lazyfs.node.files import TORN

log = logging.getLogger(__name__)

HIGH_WATER, LOW_WATER = 0.95, 0.85
"""Shares of the limit: room is made from here, to here. Beyond the limit itself nothing is taken in."""
SPARE_WATER = 0.8
"""To here the cache takes what nobody has asked for."""

RETRY_SECONDS = 60.0
REST_SECONDS = 5.0
_NAME_LENGTH = 64
_GONE = ".gone-"


class CacheDirectory:
    """One of a node's cache directories.

    `used` is what was measured and what was admitted since then; `arriving` what was admitted and is being written.
    """

    def __init__(self, path: Path, limit: Limit, weight: float = 1.0) -> None:
        self.path = path
        self.weight = weight
        self.used = self.arriving = 0
        self.stale = True
        """Something was written or dropped since `measure`."""
        self.problem = ""
        self._limit = limit
        self._broken_until = self._resting_until = 0.0
        self.limit = self._limit_now()

    @property
    def due(self) -> bool:
        """Should it be measured again?"""
        return self.stale or (bool(self.problem) and not self.broken)

    @property
    def broken(self) -> bool:
        """Its disk failed, and not long ago."""
        return time.monotonic() < self._broken_until

    @property
    def resting(self) -> bool:
        """No room could be made, not long ago."""
        return time.monotonic() < self._resting_until

    def rest(self) -> None:
        self._resting_until = time.monotonic() + REST_SECONDS

    def fail(self, reason: str) -> None:
        self.problem = reason
        self._broken_until = time.monotonic() + RETRY_SECONDS

    def set_limit(self, limit: Limit) -> None:
        self._limit = limit
        self.limit = self._limit_now()

    def names(self) -> list[str]:
        """Layers that have something here."""
        try:
            return [each.name for each in os.scandir(self.path) if len(each.name) == _NAME_LENGTH]
        except OSError as error:
            self.fail(error.strerror or str(error))
            return []

    def measure(self) -> int:
        """What the layers take of the disk, as `du` says."""
        if not self.broken:
            self.stale, self.problem = False, ""
        self.limit = self._limit_now()
        self.used = sum(layer_size(self.path / name) for name in self.names()) + self.arriving
        return self.used

    def remove(self, name: str) -> None:
        """Remove a layer that nobody has open. Raises OSError."""
        gone = self.path / f"{_GONE}{name}"
        shutil.rmtree(gone, ignore_errors=True)
        (self.path / name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        self.stale = True

    def clear(self) -> None:
        """Remove what a killed daemon had begun to remove, or to write."""
        for torn in self.path.glob(f"*/{TORN}*"):
            torn.unlink(missing_ok=True)
        for gone in self.path.glob(f"{_GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)

    def score(self, name: str) -> float:
        """The directory with the highest score gets a new layer: each gets its share, whichever others there are."""
        seed = hashlib.sha256(os.fsencode(self.path) + b"\0" + name.encode()).digest()
        uniform = (int.from_bytes(seed[:7]) + 1) / (1 << 56 | 1)
        return -self.weight / math.log(uniform)

    def _limit_now(self) -> int:
        try:
            return self._limit.of(self.path)
        except OSError as error:
            self.fail(error.strerror or str(error))
            return 0


def layer_size(directory: Path) -> int:
    """Bytes of the disk that a layer's files take."""
    total = 0
    with suppress(OSError):
        for file in os.scandir(directory):
            with suppress(OSError):
                total += file.stat().st_blocks * 512
    return total
