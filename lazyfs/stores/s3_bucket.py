"""One bucket: sessions, credentials and writing by boto3, the bytes of reading by obstore.

boto3 finds credentials and endpoints in every way that its users know. Small ranged reads are what a node
lives on: obstore does 900 of 64 KiB a second at 0.4 ms of CPU each, where boto3 does 310 at 2.1 ms (16 at once, client
and MinIO on the same 2 cores).

A read ends within ``StoreOptions.timeout``: for half of it, connections that fail and answers that ask to slow
down are tried again, after pauses that grow and differ from client to client; one attempt may take the other
half. Credentials that a server refuses are read anew, and if they have changed the request is tried
once more: a long-lived process outlives its keys.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import boto3
import botocore.loaders
import botocore.session
import obstore
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ConfigNotFound,
    ConfigParseError,
    InvalidRegionError,
    ProfileNotFound,
)
from obstore.store import S3Store as ObjectStore

from lazyfs.errors import LazyfsError, StoreError, UsageError
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.s3_errors import FAILURES, Scene, error_of, problem_of

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore import GetOptions, GetResult
    from obstore.store import ClientConfig, S3Credential

_T = TypeVar("_T")
log = logging.getLogger(__name__)

_WRONG_SETTINGS = (ValueError, ProfileNotFound, ConfigNotFound, ConfigParseError, InvalidRegionError)
_NO_REGION = "s3.amazonaws.com"
_DEFAULT_REGION = "us-east-1"
_CONNECT_TIMEOUT = 5
_MAX_CONNECTIONS = 32
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_ARRIVING = 128 << 10
_MAX_BREAKS = 2
_STALLED = 10.0  # seconds without a byte
# obstore asks anew five minutes before; what botocore hands out is good for ten at least.
_CREDENTIALS_KEPT = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Clients:
    """What uses one set of credentials: ``boto`` is a client of boto3."""

    boto: Any
    objects: ObjectStore
    keys: tuple[str, ...]
    scene: Scene


def open_bucket(name: str, options: StoreOptions) -> "Bucket":
    """The one bucket of that name: all repositories in it share its connections and credentials."""
    environment = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
    with _opening:
        bucket = _opened.get((name, options, environment))
        if bucket is None:
            bucket = _opened[name, options, environment] = Bucket(name, options)
        return bucket


class Bucket:
    """Requests to one bucket. Thread safe. Errors are those of `s3_errors.error_of`."""

    def __init__(self, name: str, options: StoreOptions) -> None:
        self.name = name
        self._options = options
        self._lock = threading.Lock()
        self._clients = _connect(name, options)

    @property
    def host(self) -> str:
        """Where requests go, with the port."""
        return self._clients.scene.host

    def get(self, key: str, offset: int, length: int, what: str) -> tuple[bytes, int]:
        """Bytes from ``offset``, ``length`` > 0 of them or fewer where the object ends, and its whole size.

        NotFoundError when it is not there. Nothing when it ends before ``offset``.
        """

        def request(clients: Clients) -> tuple[bytes, int]:
            try:
                answer = obstore.get(clients.objects, key, options={"range": (offset, offset + length)})
                return bytes(answer.bytes()), answer.meta["size"]
            except FAILURES as error:
                if not problem_of(error).is_outside:
                    raise
                return b"", obstore.head(clients.objects, key)["size"]

        return self.call(request, what)

    def arriving(self, key: str, offset: int, length: int, what: str) -> Iterator[memoryview]:
        """As `get`, piece by piece as it comes; a connection that breaks is taken up where it broke."""
        end, attempts = offset + length, 0
        while offset < end:
            try:
                options: GetOptions = {"range": (offset, end)}
                answer = self.call(partial(_get, key, options), what)
                if answer is None:
                    return
                for piece in answer.stream(min_chunk_size=_ARRIVING):
                    yield memoryview(piece)
                    offset, attempts = offset + len(piece), 0
            except FAILURES as error:
                attempts += 1
                if attempts > _MAX_BREAKS or not problem_of(error).may_pass:
                    raise error_of(error, what, self._clients.scene) from None
                log.info("%s broke off, going on", what)
            else:
                return

    def size(self, key: str, what: str) -> int | None:
        """The size of an object, or None when it is not there."""

        def request(clients: Clients) -> int | None:
            try:
                return obstore.head(clients.objects, key)["size"]
            except FileNotFoundError:
                return None
            except FAILURES as error:
                if problem_of(error).is_vague:
                    obstore.get(clients.objects, key, options={"range": (0, 1)})  # which may say why
                raise

        return self.call(request, what)

    def names(self, prefix: str) -> list[str]:
        """What follows ``prefix`` in the keys of the bucket, up to the next slash only."""

        def request(clients: Clients) -> list[str]:
            pages = clients.boto.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix, Delimiter="/"
            )
            return [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", ())]

        return self.call(request, f"s3://{self.name}/{prefix}")

    def put(self, key: str, data: bytes, sha256: str, what: str, media_type: str = "") -> None:
        """Write an object in one step; ``sha256``, in base64, is proved by servers that know how to."""
        extra = {"ContentType": media_type} if media_type else {}
        self.call(
            lambda clients: clients.boto.put_object(
                Bucket=self.name, Key=key, Body=data, ChecksumSHA256=sha256, **extra
            ),
            what,
        )

    def check(self, key: str) -> bool:
        """Is there such an object? Raises if the bucket is not there, or does not let us in.

        That it must not be asked for is no reason: who may only write learns no more.
        """

        def request(clients: Clients) -> bool:
            try:
                obstore.get(clients.objects, key, options={"range": (0, 1)})
            except FAILURES as error:
                if problem_of(error).code in ("NoSuchKey", "AccessDenied"):
                    return False
                raise
            return True

        return self.call(request, f"s3://{self.name}/{key}")

    def call(self, request: Callable[[Clients], _T], what: str, *, once: bool = False) -> _T:
        """Make a request until it succeeds or there is no hope; ``what`` names it in errors.

        ``once`` is for cleaning up, which must not make anybody wait for a network that is gone.
        """
        give_up = time.monotonic() + (0 if once else self._options.timeout / 2)
        pause = _FIRST_PAUSE
        renewed = False
        while True:
            clients = self._clients
            wait = random.uniform(pause / 2, pause)
            try:
                return request(clients)
            except FAILURES as error:
                problem = problem_of(error)
                if problem.may_be_credentials and not renewed and self._renew(clients):
                    renewed = True
                    continue
                if not problem.may_pass or time.monotonic() + wait > give_up:
                    raise error_of(error, what, clients.scene) from None
                log.info("%s: %s, trying again", what, problem.code or "no answer")
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _renew(self, used: Clients) -> bool:
        """Read the credentials anew; are they others than those that were used?"""
        with self._lock:
            if self._clients is used:
                try:
                    new = _connect(self.name, self._options)
                except LazyfsError:
                    return False
                if new.keys != used.keys:
                    self._clients = new
            return self._clients is not used


def _get(key: str, options: "GetOptions", clients: Clients) -> "GetResult | None":
    """None when the object ends before the range."""
    try:
        return obstore.get(clients.objects, key, options=options)
    except FAILURES as error:
        if not problem_of(error).is_outside:
            raise
        return None


_opening = threading.Lock()
_opened: WeakValueDictionary[tuple[str, StoreOptions, frozenset[tuple[str, str]]], Bucket] = (
    WeakValueDictionary()
)


def _connect(bucket: str, options: StoreOptions) -> Clients:
    try:
        core = botocore.session.Session(profile=options.profile)
        core.register_component("data_loader", _loader())
        # boto3 knows AWS_DEFAULT_REGION alone, every other tool AWS_REGION.
        region = options.region or os.environ.get("AWS_REGION")
        session = boto3.Session(botocore_session=core, region_name=region)
        credentials = session.get_credentials()
        boto = session.client(
            "s3",
            endpoint_url=options.endpoint_url,
            config=_boto_config(options, anonymous=credentials is None),
        )
        # boto3 alone knows where it goes: endpoint, path or host, FIPS, access points; but for the region,
        # which it leaves out when it signs for others.
        address = boto.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        address = address.replace(_NO_REGION, urlsplit(boto.meta.endpoint_url).netloc, 1)
        keys = credentials.get_frozen_credentials() if credentials else ()
        ca_bundle = core.get_config_variable("ca_bundle")
    except (BotoCoreError, ValueError) as error:
        kind = UsageError if isinstance(error, _WRONG_SETTINGS) else StoreError
        reason = type(error).__name__ if "@" in str(error) else error
        raise kind(f"s3://{bucket}: {reason}", hint="`aws configure list` shows what is used") from None
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise UsageError(
            "the endpoint of S3 has a password in it", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    client_options: ClientConfig = {
        "allow_http": parts.scheme == "http",
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT),
        "timeout": timedelta(seconds=options.timeout / 2),
        "read_timeout": timedelta(seconds=min(_STALLED, options.timeout / 4)),
        "user_agent": "lazyfs",
    }
    if ca_bundle:
        client_options["root_certificate"] = _read_certificates(ca_bundle)
    objects = ObjectStore(
        bucket,
        # obstore reads the environment itself: every setting that boto3 has read is given here.
        aws_endpoint_url_s3=f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/k')}",
        virtual_hosted_style_request=True,
        region=session.region_name or _DEFAULT_REGION,
        skip_signature=credentials is None,
        credential_provider=None if credentials is None else _provider(credentials),
        client_options=client_options,
        retry_config={"max_retries": 0},
    )
    origin = credentials.method if credentials else ""
    return Clients(boto, objects, tuple(map(str, keys)), Scene(bucket, parts.netloc, origin))


@cache
def _loader() -> Any:
    """What botocore knows of services, read once: 12 MB, and most of the time that a client takes to make."""
    return botocore.loaders.create_loader()


def _boto_config(options: StoreOptions, *, anonymous: bool) -> Config:
    style = {None: {}, True: {"addressing_style": "path"}, False: {"addressing_style": "virtual"}}
    return Config(
        signature_version=UNSIGNED if anonymous else "s3v4",
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=options.timeout / 2,
        max_pool_connections=_MAX_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 1},
        # Servers other than AWS know no trailing checksums; those that matter we send ourselves.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=style[options.path_style] or None,
        user_agent_extra="lazyfs",
    )


def _provider(credentials: "Credentials") -> "Callable[[], S3Credential]":
    def provide() -> "S3Credential":
        keys = credentials.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_KEPT,
        }

    return provide


def _read_certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: {os.strerror(error.errno or 0)}",
            hint="AWS_CA_BUNDLE must name a file of certificates",
        ) from error
