"""Which chunks go first: the least recently used, over all layers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.uint32]
Sizes = npt.NDArray[np.int64]


def oldest(layers: Sequence[tuple[Times, Sizes]], need: int) -> list[list[int]]:
    """For each layer (when each chunk was last used, what room it takes) the chunks to drop for `need` bytes."""
    if not layers or need <= 0:
        return [[] for _ in layers]
    times = np.concatenate([each for each, _ in layers])
    sizes = np.concatenate([each for _, each in layers])
    order = np.argsort(times, kind="stable")
    order = order[sizes[order] > 0]
    enough = int(np.searchsorted(np.cumsum(sizes[order]), need, "left")) + 1
    chosen = np.sort(order[:enough])
    borders = np.cumsum([0, *(len(each) for each, _ in layers)])
    parts = np.split(chosen, np.searchsorted(chosen, borders[1:-1]))
    return [(part - border).tolist() for part, border in zip(parts, borders[:-1], strict=True)]


def unused_since(layers: Sequence[tuple[Times, Sizes]], moment: float) -> list[list[int]]:
    """For each layer the chunks that take room and were not used since `moment` (seconds since 1970)."""
    return [np.flatnonzero((sizes > 0) & (times < moment)).tolist() for times, sizes in layers]
