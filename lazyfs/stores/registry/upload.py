"""One blob on its way to a registry: the "Pushing Blobs" chapter of the OCI distribution specification.

What is smaller than a chunk is sent whole once its digest is known, and only if the registry lacks it. What is
larger goes out in chunks while it is being written, since its digest is known only in the end; a chunk stays in
memory until the registry has all of it, so that a broken connection costs that chunk at most.
"""

import hashlib
import itertools
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self
from urllib.parse import quote

from lazyfs.errors import IntegrityError, LazyfsError, NotFoundError, StoreError
from lazyfs.stores.registry.answers import TemporaryError
from lazyfs.stores.registry.blobs import blob_size
from lazyfs.stores.registry.client import RegistryClient
from lazyfs.stores.registry.connection import Response, join_url
from lazyfs.stores.registry.server import Request
from lazyfs.stores.registry.wire import Deadline

log = logging.getLogger(__name__)

CHUNK = 16 << 20
"""Bytes sent at a time; a writer holds two of them: one being filled, one on its way."""
_MAX_CHUNK = 64 << 20
_SLOWEST = 64 << 10
"""Bytes a second below which a transfer counts as broken."""
_COMMITTED = 8 << 20
"""Bytes a second at which a registry puts a blob in its place, at the least."""
_RANGE = re.compile(r"(?:bytes=)?0-(-?[0-9]{1,19})")
_ACCEPTED = frozenset({200, 202, 204})
_CREATED = frozenset({201, 204})
_OCTETS = {"Content-Type": "application/octet-stream"}


def mount_blob(client: RegistryClient, digest: str, repository: str) -> bool:
    """Let the registry take a blob from another of its repositories; False when it will not."""
    query = f"mount={quote(digest, safe='')}&from={quote(repository, safe='')}"
    what = f"mounting blob {digest} from {repository}"
    request = Request(
        "POST",
        f"blobs/uploads/?{query}",
        what,
        "push",
        accepted=frozenset({201, 202}),
        mount_from=repository,
    )
    try:
        mounted, location = client.run(request, lambda answer: (answer.status == 201, _location(answer)))
    except (StoreError, NotFoundError) as error:
        log.info("%s", error)
        return False
    if not mounted and location:
        # It began an upload instead.
        UploadSession(client, what, location).cancel()
    return mounted


class UploadSession:
    """An upload that the registry has begun: ``offset`` bytes of it have arrived."""

    def __init__(self, client: RegistryClient, what: str, location: str = "") -> None:
        self.offset = 0
        self.minimum = 0
        self._client = client
        self._what = what
        self._location = location
        self._deadline = client.deadline()

    def start(self) -> None:
        request = Request("POST", "blobs/uploads/", self._what, "push", accepted=_ACCEPTED)
        self._location, minimum = self._client.run(
            request, lambda answer: (_location(answer), answer.headers.get("OCI-Chunk-Min-Length", ""))
        )
        if not self._location:
            raise StoreError(
                f"{self._what} in {self._client.url}: the registry does not say where to send it"
            )
        self.minimum = int(minimum) if minimum.isascii() and minimum.isdigit() and len(minimum) < 10 else 0
        self.offset = 0

    def append(self, data: memoryview) -> None:
        """Send one chunk, going on where a broken connection left it."""
        begin, doubtful = self.offset, False
        self._deadline = deadline = self._client.deadline(len(data) / _SLOWEST, patient=True)
        for attempt in itertools.count(1):
            try:
                if doubtful:
                    self._recover(begin, len(data), deadline)
                doubtful = True
                while self.offset < begin + len(data):
                    self._patch(data[self.offset - begin :], deadline)
            except TemporaryError as error:
                self._client.pause(error, attempt, deadline)
            else:
                return

    def finish(self, digest: str, body: memoryview) -> None:
        """Send what no chunk has carried yet, and let the blob be seen."""
        size = self.offset + len(body)
        more = self.offset / _COMMITTED + len(body) / _SLOWEST
        self._deadline = deadline = self._client.deadline(more, patient=True)
        for attempt in itertools.count(1):
            url = f"{self._location}{'&' if '?' in self._location else '?'}digest={quote(digest, safe='')}"
            request = Request("PUT", "", self._what, "push", _OCTETS, body, _CREATED, url=url)
            try:
                self._client.once(request, lambda _: None, deadline)
            except TemporaryError as error:
                failure = error
            except NotFoundError as error:
                # A first attempt may have done it although its answer was lost.
                if attempt > 1 or self.offset:
                    raise
                failure = TemporaryError(StoreError(error.message, hint=error.hint))
            else:
                return
            self._client.pause(failure, attempt, deadline)
            if blob_size(self._client, digest, "push") == size:
                return
            if self.offset == 0:
                self.start()

    def abandon(self) -> None:
        """Let what another thread is sending come to its end at once."""
        self._deadline.cut()

    def cancel(self) -> None:
        """Let the registry forget what it has."""
        if not self._location:
            return
        request = Request("DELETE", "", self._what, "push", accepted=_ACCEPTED, url=self._location)
        try:
            self._client.once(request, lambda _: None, self._client.deadline())
        except (LazyfsError, TemporaryError) as error:
            log.info("an upload that was given up may be left behind: %s", error)
        self._location = ""

    def _patch(self, data: memoryview, deadline: Deadline) -> None:
        headers = _OCTETS | {"Content-Range": f"{self.offset}-{self.offset + len(data) - 1}"}
        request = Request("PATCH", "", self._what, "push", headers, data, _ACCEPTED, url=self._location)
        end = self.offset + len(data)
        received = self._client.once(request, self._received, deadline)
        received = end if received is None else received
        if not self.offset < received <= end:
            raise self._lost(f"the registry says it has {received} bytes")
        self.offset = received

    def _recover(self, begin: int, length: int, deadline: Deadline) -> None:
        """Learn how much of the current chunk arrived. The first one can be sent anew instead."""
        request = Request("GET", "", self._what, "push", accepted=_ACCEPTED, url=self._location)
        reason = "the registry says another size"
        try:
            received = self._client.once(request, self._received, deadline)
        except (StoreError, NotFoundError) as error:
            # So does Docker's own registry after a chunk of which it got but a part.
            received, reason = None, error.message
        if received is not None and begin <= received <= begin + length:
            self.offset = received
        elif begin == 0:
            self.cancel()
            self.start()
        else:
            raise self._lost(reason)

    def _received(self, answer: Response) -> int | None:
        """How many bytes have arrived, if the answer says so."""
        self._location = _location(answer) or self._location
        match = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
        if match is None:
            return None
        # Docker's registry writes 0-0 for nothing; no chunk is as short as one byte.
        return int(match[1]) + 1 if match[1] != "0" else 0

    def _lost(self, reason: str) -> StoreError:
        return StoreError(
            f"{self._what} in {self._client.url} broke after {self.offset} bytes and cannot go on: {reason}",
            hint="try again: what the registry has whole is not sent again",
        )


class RegistryBlobWriter:
    """One blob being written to a registry; see `BlobWriter`."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._hasher = hashlib.sha256()
        self._size = 0
        self._buffer = bytearray()
        self._chunk = CHUNK
        self._session = UploadSession(client, "upload of a blob")
        self._sender: ThreadPoolExecutor | None = None
        self._sending: Future[None] | None = None
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._sender is not None:
            if not self._committed:
                self._session.abandon()
            self._sender.shutdown()
        if not self._committed:
            self._session.cancel()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        self._size += len(view)
        while view:
            room = self._chunk - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) >= self._chunk:
                self._ship()

    def commit(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = f"sha256:{self._hasher.hexdigest()}"
        if expected_digest not in (None, digest):
            raise IntegrityError(
                f"what was written to {self._client.url} is {digest}, not {expected_digest}",
                hint="the source is damaged or changed while it was read: try again",
            )
        rest = memoryview(self._buffer)
        if self._sender is not None:
            self._wait_for_sender()
            if rest:
                self._session.append(rest)
            self._session.finish(digest, memoryview(b""))
        elif blob_size(self._client, digest, "push") != self._size:
            self._session.start()
            self._session.finish(digest, rest)
        self._committed = True
        return digest, self._size

    def _ship(self) -> None:
        """Send the full buffer while another is being filled."""
        if self._sender is None:
            self._session.start()
            self._sender = ThreadPoolExecutor(1, thread_name_prefix="upload")
            if self._chunk < self._session.minimum <= _MAX_CHUNK:
                self._chunk = self._session.minimum
                return
        self._wait_for_sender()
        full, self._buffer = self._buffer, bytearray()
        self._sending = self._sender.submit(self._session.append, memoryview(full))

    def _wait_for_sender(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()


def _location(answer: Response) -> str:
    location = answer.headers.get("Location", "")
    return join_url(answer.url, location) if location else ""
