"""Integer columns as byte planes: all lowest bytes first, then all second bytes, and so on.

A column of 64-bit offsets is mostly zero bytes that stand in the same place of every value; laid
out in planes they are runs, and zstd takes them away. On the TOC of a Debian root file system
(11,000 inodes) planes make the compressed TOC a third smaller than rows or plain columns.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError

Column = npt.NDArray[Any]
Number = TypeVar("Number", bound=np.signedinteger[Any])
BATCH = 1 << 16


def to_planes(values: Column, dtype: str) -> bytes:
    """The column as bytes: for each byte of `dtype` (little-endian), lowest first, that byte of every value."""
    array = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()


def from_planes(data: bytes, dtype: str, count: int, name: str) -> Column:
    """The inverse of `to_planes`; raises BadInputError where the length is not that of `count` values."""
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) != count * kind.itemsize:
        raise BadInputError(
            f"TOC: column {name} has {len(data)} bytes, {count} values need {count * kind.itemsize}"
        )
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, count)
    return np.ascontiguousarray(planes.T).view(kind).reshape(count).astype(dtype, copy=False)


def ranges(start: npt.NDArray[Number], count: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The concatenation of `range(start[i], start[i] + count[i])`."""
    ends = np.cumsum(count, dtype=start.dtype)
    flat = np.repeat(start - (ends - count), count)
    flat += np.arange(len(flat), dtype=start.dtype)
    return flat


def batches(count: int) -> Iterator[slice]:
    """`count` rows, some at a time: for work that needs much memory for each of them."""
    return (slice(first, min(first + BATCH, count)) for first in range(0, count, BATCH))


def shares(count: npt.NDArray[np.signedinteger[Any]]) -> Iterator[slice]:
    """Rows that have `count` of something each, some at a time: about BATCH of it, or what a single row has."""
    before = np.cumsum(count, dtype=np.int64) - count
    cuts = np.flatnonzero(np.diff(before // BATCH, prepend=-1)).tolist()
    return itertools.starmap(slice, itertools.pairwise((*cuts, len(count))))


def take(table: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """The value of a decoded map that must be there and be of one type."""
    value = table.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadInputError(f"TOC: {where}.{name} is missing or not {kind.__name__}")
    return value
