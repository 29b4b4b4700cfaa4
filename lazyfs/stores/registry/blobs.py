"""Blobs out of a registry: in ranges, and whole. What is not exactly what was asked for is an error."""

import itertools
import re
from collections import deque
from collections.abc import Generator, Sequence
from functools import partial

from lazyfs.errors import NotFoundError, StoreError
from lazyfs.stores.base import STREAM_PIECE
from lazyfs.stores.registry.answers import TemporaryError, broken
from lazyfs.stores.registry.client import RegistryClient
from lazyfs.stores.registry.connection import Response
from lazyfs.stores.registry.server import Request
from lazyfs.stores.registry.wire import ExchangeError

_MAX_SKIPPED = 64 << 20
"""Of a blob whose server knows no ranges, what may be read for one range."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_NO_FAULT = "tell who runs the registry, or the proxy before it"


def blob_size(client: RegistryClient, digest: str, capability: str = "pull") -> int | None:
    """The size of a blob that the registry has, else None."""
    request = Request("HEAD", f"blobs/{digest}", f"blob {digest}", capability)
    try:
        return client.run(request, announced_size)
    except NotFoundError:
        return None


def announced_size(response: Response) -> int:
    """The Content-Length of an answer to HEAD."""
    text = response.headers.get("Content-Length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise StoreError(f"{response.origin} does not say how large the blob is", hint=_NO_FAULT)
    return int(text)


def read_range(client: RegistryClient, digest: str, offset: int, length: int) -> bytes:
    """Exactly these bytes of a blob; StoreError when it has them not."""
    what = f"blob {digest}"
    if length == 0:
        size = blob_size(client, digest)
        if size is None:
            raise NotFoundError(f"{what} is not in {client.url}", hint="copy or convert the image again")
        if offset > size:
            raise _outside(what, client.url, offset, length)
        return b""
    request = Request(
        "GET",
        f"blobs/{digest}",
        what,
        headers={"Range": f"bytes={offset}-{offset + length - 1}"},
        accepted=frozenset({200, 206, 416}),
        keep_redirect=True,
    )
    return client.run(request, partial(_take_range, f"{what} in {client.url}", offset, length))


def read_pieces(client: RegistryClient, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
    """Neighbouring pieces of a blob by one ranged get, as they come; a broken connection is taken up where it broke."""
    what = f"blob {digest}"
    where = f"{what} in {client.url}"
    end, left, attempts = offset + sum(lengths), deque(lengths), itertools.count(1)
    deadline = client.deadline()
    while left:
        if offset == end:
            yield read_range(client, digest, offset, left.popleft())
            continue
        headers = {"Range": f"bytes={offset}-{end - 1}"}
        accepted = frozenset({200, 206, 416})
        request = Request(
            "GET", f"blobs/{digest}", what, headers=headers, accepted=accepted, keep_redirect=True
        )
        response = client.open(request, deadline)
        try:
            with response:
                _come_to_range(where, response, offset, end - offset)
                while offset < end:
                    piece = response.read(left[0])
                    if len(piece) < left[0]:
                        raise ExchangeError("it sent too few bytes", at=response.origin)
                    offset += len(piece)
                    left.popleft()
                    if offset == end:
                        _check_end(where, response, sum(lengths))
                        break
                    yield piece
                    attempts, deadline = itertools.count(1), client.deadline()
                    response.extend(deadline)
            # The connection is free for others by now.
            yield piece
        except ExchangeError as error:
            failure = broken(where, response.origin, error)
            if not isinstance(failure, TemporaryError):
                raise failure from None
            client.pause(failure, next(attempts), deadline)


def stream_blob(client: RegistryClient, digest: str, offset: int, size: int) -> Generator[bytes]:
    """A blob from ``offset`` on in pieces of ``size`` bytes; a broken connection is taken up where it broke.

    Each piece has the time of one read, so that a server that is slow forever is an error and a large blob
    is none.
    """
    what = f"blob {digest}"
    position, total, attempts = offset, None, itertools.count(1)
    deadline = client.deadline()
    while True:
        request = Request(
            "GET",
            f"blobs/{digest}",
            what,
            headers={"Range": f"bytes={position}-"} if position else {},
            accepted=frozenset({200, 206} if position else {200}),
            keep_redirect=True,
        )
        response = client.open(request, deadline)
        try:
            with response:
                total = _open_at(f"{what} in {client.url}", response, position, total)
                while piece := response.read(size):
                    if len(piece) < size and total not in (None, position + len(piece)):
                        break
                    position += len(piece)
                    yield piece
                    attempts, deadline = itertools.count(1), client.deadline()
                    response.extend(deadline)
            if total in (None, position):
                return
            raise ExchangeError("it closed the connection in the middle", at=response.origin)
        except ExchangeError as error:
            failure = broken(f"{what} in {client.url}", response.origin, error)
            if not isinstance(failure, TemporaryError):
                raise failure from None
            client.pause(failure, next(attempts), deadline)


def _take_range(where: str, offset: int, length: int, response: Response) -> bytes:
    _come_to_range(where, response, offset, length)
    data = response.read(length)
    if len(data) < length:
        raise ExchangeError("it sent too few bytes", at=response.origin)
    _check_end(where, response, length)
    return data


def _come_to_range(where: str, response: Response, offset: int, length: int) -> None:
    """The next `length` bytes of the answer are the range, or this raises."""
    if response.status == 416:
        raise _outside(where, response.origin, offset, length)
    if response.status == 200:
        _skip(where, response, offset, length)
    else:
        _check_range(where, response, offset, offset + length)
        if response.length not in (None, length):
            raise StoreError(
                f"{where}: {response.origin} sends {response.length} bytes, not {length}", hint=_NO_FAULT
            )


def _check_end(where: str, response: Response, length: int) -> None:
    """A server that did not say how much it sends must have come to its end."""
    if response.status == 206 and response.length is None and response.read(1):
        raise StoreError(f"{where}: {response.origin} sends more than {length} bytes", hint=_NO_FAULT)


def _check_range(where: str, response: Response, start: int, end: int | None) -> int | None:
    """Hold Content-Range against what was asked for; gives the blob's size if that is said."""
    said = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(said.strip())
    if match is None:
        raise StoreError(f"{where}: {response.origin} does not say which range it sends", hint=_NO_FAULT)
    first, last, size = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
    if first == start and end is not None and last + 1 < end and size == last + 1:
        raise _outside(where, response.origin, start, end - start)
    if first != start or (end is not None and last != end - 1) or (size is not None and last >= size):
        raise StoreError(f"{where}: {response.origin} sends another range than asked for", hint=_NO_FAULT)
    return size


def _open_at(where: str, response: Response, position: int, total: int | None) -> int | None:
    """Make sure that the body goes on at ``position``; gives the blob's size if that is said."""
    if response.status == 200:
        size = response.length
        _discard(response, position)
    else:
        size = _check_range(where, response, position, total)
        if size is not None and response.length not in (None, size - position):
            raise StoreError(f"{where}: {response.origin} sends another length than it says", hint=_NO_FAULT)
    if total is not None and size not in (None, total):
        raise StoreError(f"{where}: {response.origin} says {size} bytes, and before {total}", hint=_NO_FAULT)
    return size if total is None else total


def _skip(where: str, response: Response, offset: int, length: int) -> None:
    """Come to a range in the answer of a server that sends the whole blob instead."""
    size = response.length
    if size is not None and offset + length > size:
        raise _outside(where, response.origin, offset, length)
    if offset + length > _MAX_SKIPPED:
        raise StoreError(
            f"{where}: {response.origin} sends no ranges of blobs, and this one lies {offset} bytes inside",
            hint="use a registry that follows the OCI distribution specification, or copy the image to oci:DIR",
        )
    _discard(response, offset)


def _discard(response: Response, count: int) -> None:
    while count > 0:
        piece = response.read(min(count, STREAM_PIECE))
        if not piece:
            raise ExchangeError("it closed the connection in the middle", at=response.origin)
        count -= len(piece)


def _outside(where: str, at: object, offset: int, length: int) -> StoreError:
    return StoreError(
        f"{where}: {at} has no range of {length} bytes at {offset}: the blob is shorter",
        hint="the blob is damaged in its store: convert or copy the image again",
    )
