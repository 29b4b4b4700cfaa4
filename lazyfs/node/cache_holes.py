"""Which blocks of a data file may be punched when chunks of it are dropped."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lazyfs.node.cache_files import BLOCK


def holes(
    start: npt.NDArray[np.int64], chosen: Sequence[int], is_free: Callable[[int], bool]
) -> tuple[list[tuple[int, int]], set[int]]:
    """Ranges of whole blocks that hold bytes of `chosen` chunks (rising) and of free ones only.

    Chunk i lies at [start[i], start[i + 1]). Also returns which chunks the ranges touch: while they are punched,
    nothing may be written to any of these.
    """
    going = frozenset(chosen)
    touched = set(chosen)

    def may_go(index: int) -> bool:
        return index in going or is_free(index)

    found: list[tuple[int, int]] = []
    for first, last in _runs(chosen):
        low, high = int(start[first]), int(start[last + 1])
        before = _reach(start, first, -1, low // BLOCK * BLOCK, may_go)
        after = _reach(start, last, 1, -(-high // BLOCK) * BLOCK, may_go)
        touched.update(before or (), after or ())
        low = (low if before is not None else low + BLOCK - 1) // BLOCK * BLOCK
        high = (high + BLOCK - 1 if after is not None else high) // BLOCK * BLOCK
        if low < high:
            found.append((low, high))
    return found, touched


def _runs(chosen: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours."""
    runs: list[tuple[int, int]] = []
    for index in chosen:
        if runs and runs[-1][1] + 1 == index:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _reach(
    start: npt.NDArray[np.int64], index: int, step: int, edge: int, is_free: Callable[[int], bool]
) -> list[int] | None:
    """The neighbours beyond chunk `index` as far as `edge`, if all of them are free."""
    passed: list[int] = []
    while True:
        border = int(start[index] if step < 0 else start[index + 1])
        if (border <= edge) if step < 0 else (border >= edge):
            return passed
        index += step
        if not 0 <= index < len(start) - 1:
            return passed
        if not is_free(index):
            return None
        passed.append(index)
