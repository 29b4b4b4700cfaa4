"""One blob on its way into a bucket.

Its key is its digest, which is known when its last byte is, and S3 renames nothing. What is smaller than a part is
kept in memory and sent whole, unless the bucket has it already, as it has after a run that was repeated. What is
larger goes out in parts while it is being written, to a key of its own below ``blobs/_uploads/``, and is copied
by the server from there to its place: no blob ever lies on the disk of who converts.

S3 shows an object whole or not at all, so under a digest there are never other bytes. What a killed process
leaves is an open upload, or an object below ``blobs/_uploads/``: both are taken away by the next run that writes
there a day later, or by a lifecycle rule.
"""

import base64
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from lazyfs.errors import IntegrityError, LazyfsError, LimitError
from lazyfs.stores.s3_bucket import Bucket, Clients
from lazyfs.stores.s3_errors import FAILURES

log = logging.getLogger(__name__)

UPLOADS = "blobs/_uploads/"
PART = 8 << 20
LARGE_PART = 32 << 20
_SMALL_PARTS = 5000
"""After so many parts they are larger: S3 takes 10,000, and how many it will be is not known."""
_MAX_PARTS = 10_000
_PARTS_AT_ONCE = 3
COPIED_AT_ONCE = 512 << 20
"""Bytes that a server copies in one request, which must be answered in time; S3's own limit is 5 GiB."""
ABANDONED = timedelta(days=1)


class S3BlobWriter:
    """See `BlobWriter`. ``key_of`` makes the key of a digest, ``prefix`` is where the blobs' directory lies."""

    def __init__(self, bucket: Bucket, prefix: str, key_of: Callable[[str], str]) -> None:
        self._bucket = bucket
        self._key_of = key_of
        self._upload = _Upload(bucket, f"{prefix}{UPLOADS}{os.urandom(16).hex()}")
        self._buffer = bytearray()
        self._hasher = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._upload.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        self._size += len(view)
        while view:
            room = self._upload.next_part - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            # The last byte of a full part waits for the next one: a blob of one part is sent whole.
            if len(self._buffer) == self._upload.next_part and view:
                self._ship()

    def commit(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = f"sha256:{self._hasher.hexdigest()}"
        if expected_digest not in (None, digest):
            raise IntegrityError(
                f"what was written to s3://{self._bucket.name} is {digest}, not {expected_digest}",
                hint="the source is damaged or changed while it was read: try again",
            )
        what = f"blob {digest} in s3://{self._bucket.name}"
        key = self._key_of(digest)
        if self._bucket.size(key, what) != self._size:
            if self._upload.begun:
                self._ship()
                self._upload.publish(key, self._size, what)
            else:
                self._bucket.put(key, bytes(self._buffer), to_base64(self._hasher.digest()), what)
        return digest, self._size

    def _ship(self) -> None:
        full, self._buffer = self._buffer, bytearray()
        if full:
            self._upload.send(full)


class _Upload:
    """An upload in parts to a temporary key: some parts at once, each proved by the server."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._what = f"s3://{bucket.name}/{key}"
        self._target = {"Bucket": bucket.name, "Key": key}
        self._pool: ThreadPoolExecutor | None = None
        self._sending: deque[Future[dict[str, Any]]] = deque()
        self._parts: list[dict[str, Any]] = []
        self._count = 0
        self._is_open = False
        self._is_object = False

    @property
    def begun(self) -> bool:
        return self._pool is not None

    @property
    def next_part(self) -> int:
        """How many bytes the next part should have."""
        return PART if self._count < _SMALL_PARTS else LARGE_PART

    def send(self, data: bytearray) -> None:
        """Send one part; waits while too many are on their way."""
        if self._pool is None:
            self._target["UploadId"] = self._call(
                "create_multipart_upload", "UploadId", ChecksumAlgorithm="SHA256"
            )
            self._is_open = True
            self._pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="upload")
        if self._count == _MAX_PARTS:
            raise LimitError(
                f"{self._what}: a blob of more than {_MAX_PARTS} parts cannot be sent to S3",
                hint="build the image with smaller layers",
            )
        self._count += 1
        while len(self._sending) >= _PARTS_AT_ONCE:
            self._parts.append(self._sending.popleft().result())
        self._sending.append(self._pool.submit(self._send, self._count, data))

    def publish(self, key: str, size: int, what: str) -> None:
        """Let the server put together what was sent, and copy it to ``key``, where all of it is seen in one step."""
        while self._sending:
            self._parts.append(self._sending.popleft().result())
        try:
            self._is_object = True
            self._call("complete_multipart_upload", MultipartUpload={"Parts": self._parts})
        except LazyfsError:
            # Its answer may be what was lost.
            if self._bucket.size(self._target["Key"], self._what) != size:
                raise
        self._is_open = False
        _copy(self._bucket, self._target["Key"], key, size, what)

    def close(self) -> None:
        """End what is under way, and leave nothing behind."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._is_open:
            with suppress(LazyfsError):
                self._call("abort_multipart_upload", once=True)
        if self._is_object:
            self._target.pop("UploadId", None)
            try:
                self._call("delete_object")
            except LazyfsError as error:
                log.warning("%s is left behind: %s", self._what, error)
        self._is_open = self._is_object = False

    def _send(self, number: int, data: bytearray) -> dict[str, Any]:
        checksum = to_base64(hashlib.sha256(data).digest())
        tag = self._call("upload_part", "ETag", PartNumber=number, Body=data, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": tag, "ChecksumSHA256": checksum}

    def _call(self, name: str, wanted: str = "", *, once: bool = False, **words: Any) -> Any:
        """What is wanted of the answer."""

        def request(clients: Clients) -> Any:
            answer = getattr(clients.boto, name)(**self._target, **words)
            return answer[wanted] if wanted else None

        return self._bucket.call(request, self._what, once=once)


def _copy(bucket: Bucket, source: str, key: str, size: int, what: str) -> None:
    """Let the server copy an object; where it is large in parts, which become visible together."""
    target: dict[str, Any] = {"Bucket": bucket.name, "Key": key}
    origin = {"Bucket": bucket.name, "Key": source}
    if size <= COPIED_AT_ONCE:
        bucket.call(lambda clients: clients.boto.copy_object(**target, CopySource=origin), what)
        return
    target["UploadId"] = bucket.call(
        lambda clients: clients.boto.create_multipart_upload(**target)["UploadId"], what
    )

    def copy(number: int) -> dict[str, Any]:
        start = (number - 1) * COPIED_AT_ONCE
        span = f"bytes={start}-{min(start + COPIED_AT_ONCE, size) - 1}"
        tag = bucket.call(
            lambda clients: clients.boto.upload_part_copy(
                **target, PartNumber=number, CopySource=origin, CopySourceRange=span
            )["CopyPartResult"]["ETag"],
            what,
        )
        return {"PartNumber": number, "ETag": tag}

    try:
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            parts = list(pool.map(copy, range(1, -(-size // COPIED_AT_ONCE) + 1)))
        bucket.call(
            lambda clients: clients.boto.complete_multipart_upload(
                **target, MultipartUpload={"Parts": parts}
            ),
            what,
        )
    except BaseException as error:
        with suppress(LazyfsError):
            bucket.call(lambda clients: clients.boto.abort_multipart_upload(**target), what, once=True)
        # An answer that was lost, or another writer of the same bytes who was faster.
        if not isinstance(error, LazyfsError) or bucket.size(key, what) != size:
            raise


def remove_abandoned(bucket: Bucket, prefix: str) -> None:
    """Take away what runs that were killed have left below ``prefix``, so long ago that none of them can live."""
    where = f"{prefix}{UPLOADS}"
    what = f"s3://{bucket.name}/{where}"
    before = datetime.now(UTC) - ABANDONED
    scope = {"Bucket": bucket.name, "Prefix": where}

    def ask(name: str, **words: str) -> Any:
        return bucket.call(lambda clients: getattr(clients.boto, name)(**words), what, once=True)

    # Whoever may not list or delete leaves it to others, and to the lifecycle rule.
    with suppress(LazyfsError, *FAILURES):
        for upload in ask("list_multipart_uploads", **scope).get("Uploads", ()):
            if upload["Initiated"] < before:
                ask(
                    "abort_multipart_upload",
                    Bucket=bucket.name,
                    Key=upload["Key"],
                    UploadId=upload["UploadId"],
                )
    with suppress(LazyfsError, *FAILURES):
        for item in ask("list_objects_v2", **scope).get("Contents", ()):
            if item["LastModified"] < before:
                ask("delete_object", Bucket=bucket.name, Key=item["Key"])


def to_base64(sha256: bytes) -> str:
    """A digest as S3 wants it in its headers."""
    return base64.b64encode(sha256).decode("ascii")
