"""What registries and buckets answer, and the files that say how to speak to them."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from botocore.awsrequest import AWSResponse
from obstore.exceptions import GenericError

from lazyfs.errors import BadInputError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import s3_bucket, s3_errors, write_blob
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.registry import (
    answers,
    auth,
    client,
    connection,
    credentials,
    hosts,
    learned,
    redirects,
    store,
    upload,
)
from lazyfs.stores.registry.names import RepositoryName
from lazyfs.stores.registry.store import RegistryStore
from lazyfs.stores.registry.wire import ExchangeError

from .images import MANIFEST
from .mutate import change_bytes
from .parser import Parser, any_json, any_text, scratch

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NAME = RepositoryName("r.example", "a/b")
_BLOB = b"0123456789" * 5
_DIGEST = sha256_digest(_BLOB)
_NEXT = b"\n----\n"


class _Wire:
    """The socket of a server that has made up its mind what to answer."""

    def __init__(self, answer: bytes) -> None:
        self._answer = BytesIO(answer)
        self._null = open("/dev/null", "rb")  # noqa: SIM115, PTH123 - closed with this

    def fileno(self) -> int:
        return self._null.fileno()

    def settimeout(self, _seconds: float) -> None: ...

    def send(self, data: bytes) -> int:
        return len(data)

    def recv_into(self, buffer: "WriteableBuffer") -> int:
        return self._answer.readinto(buffer)

    def close(self) -> None:
        self._null.close()


def _http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _part(offset: int, length: int, of: str = "50") -> bytes:
    return _http(
        206,
        _BLOB[offset : offset + length],
        f"Content-Range: bytes {offset}-{offset + length - 1}/{of}",
        f"Docker-Content-Digest: {_DIGEST}",
    )


_MANIFEST_ANSWER = _http(
    200,
    json.dumps(MANIFEST).encode(),
    "Content-Type: application/vnd.oci.image.manifest.v1+json; charset=utf-8",
    f"Docker-Content-Digest: {sha256_digest(json.dumps(MANIFEST).encode())}",
)
_CHALLENGE = (
    'WWW-Authenticate: Bearer realm="http://r.example/token?a=b",service="x y",scope="repository:a/b:*"'
)
_TOKEN = _http(200, b'{"token": "abcdef", "expires_in": 300, "issued_at": "2026-01-01T00:00:00Z"}')
_BEFORE = [
    [],
    [
        _http(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"m","detail":[{"a":1}]}]}', _CHALLENGE),
        _TOKEN,
    ],
    [_http(401, b"", 'WWW-Authenticate: Basic realm="x"')],
    [_http(429, b"", "Retry-After: 3")],
    [_http(503, b"", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT")],
    [
        _http(
            307,
            b"",
            "Location: http://r.example/b?X-Amz-Expires=300&X-Amz-Date=20260101T000000Z&se=2026-01-01",
        )
    ],
    [_http(302, b"", "Location: /v2/b?Expires=1764000000", "Cache-Control: public, max-age=60")],
    [_http(308, b"", "Location: https://r.example/")],
]


def _taken_range(opened: RegistryStore) -> None:
    assert len(opened.read(_DIGEST, 10, 20)) == 20


def _taken_pieces(opened: RegistryStore) -> None:
    assert [len(piece) for piece in opened.read_pieces(_DIGEST, 10, [8, 8, 4])] == [8, 8, 4]


_CALLS: list[tuple[Callable[[RegistryStore], object], list[bytes]]] = [
    (_taken_range, [_part(10, 20)]),
    (_taken_pieces, [_part(10, 20, "*")]),
    (_taken_pieces, [_part(10, 20)[:-4], _part(26, 4)]),
    (lambda opened: list(opened.stream(_DIGEST, 0, 20)), [_http(200, _BLOB)]),
    (lambda opened: opened.has(_DIGEST), [_http(200, b"", "X: y")]),
    (lambda opened: opened.resolve("v1"), [_MANIFEST_ANSWER]),
    (
        lambda opened: opened.resolve(None),
        [_http(404), _http(200, b'{"tags": ["a", "b"]}'), _MANIFEST_ANSWER],
    ),
    (
        lambda opened: opened.tags(),
        [
            _http(200, b'{"name": "a/b", "tags": ["x"]}', 'Link: </v2/a/b/tags/list?n=1&last=x>; rel="next"'),
            _http(200, b'{"name": "a/b", "tags": ["y"]}'),
        ],
    ),
    (lambda opened: opened.referrers(_DIGEST, "x"), [_http(200, json.dumps({"manifests": []}).encode())]),
    (
        lambda opened: write_blob(opened, _BLOB),
        [_http(404), _http(202, b"", "Location: /v2/u?s=1", "OCI-Chunk-Min-Length: 5"), _http(201)],
    ),
]


def _make_answers(rng: Random) -> bytes:
    number = rng.randrange(len(_CALLS))
    script = [*rng.choice(_BEFORE), *_CALLS[number][1]]
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(script))
        script[at] = change_bytes(script[at], rng)
    return bytes([number]) + _NEXT.join(script)


@cache
def _options(_process: str) -> StoreOptions:
    """A registry that is spoken to in plain HTTP, and its password."""
    directory = scratch("registry")
    (directory / _NAME.host).mkdir(exist_ok=True)
    (directory / _NAME.host / "hosts.toml").write_text(f'server = "http://{_NAME.host}"\n')
    (directory / "auth.json").write_text(json.dumps({"auths": {_NAME.host: {"auth": "YTpi"}}}))
    return StoreOptions(auth_file=directory / "auth.json", certs_dirs=(directory,))


def _exchange(data: bytes) -> None:
    """Have a store make of these answers what it can, without trying anything again."""
    script = iter(data[1:].split(_NEXT))

    def dial(host: str, port: int, _deadline: object) -> _Wire:
        if (host, port) != (_NAME.host, 80):
            raise ConnectionRefusedError
        return _Wire(next(script, b""))

    def give_up(_client: object, failure: answers.TemporaryError, *_: object) -> None:
        raise failure.error

    call, _ = _CALLS[data[0] % len(_CALLS)]
    with (
        patch.object(connection, "dial", dial),
        patch.object(client.RegistryClient, "pause", give_up),
        RegistryStore(_NAME, _options(str(scratch("registry"))), create=call is _CALLS[-1][0]) as opened,
    ):
        call(opened)


_HEADERS = [
    b"\r\n".join(
        [
            _CHALLENGE.encode(),
            b'WWW-Authenticate: Digest a=b, Basic realm="a\\"b", charset="UTF-8"',
            b"Retry-After: Fri, 31 Dec 2027 23:59:59 GMT",
            b"Location: http://b.example:8080/x?X-Goog-Expires=300&X-Goog-Date=20260101T000000Z",
            b"Content-Length: 12",
            b"",
            b"",
        ]
    ),
    b"Retry-After: 120\r\nLocation: //x/y?Expires=17640000&Signature=a\r\nCache-Control: max-age=5\r\n\r\n",
    b"Location: https://[::1]:5000/y?se=2026-01-01T00%3A00%3A00Z&sig=a\r\n"
    b"Retry-After: 1 Jan 2026 00:00:00 -0100\r\n\r\n",
]


def _headers(data: bytes) -> None:
    try:
        headers: HTTPMessage = parse_headers(BytesIO(data))
    except Exception as error:  # that of the standard library is not ours
        raise BadInputError("no headers") from error
    auth.parse_challenges(headers.get_all("WWW-Authenticate", []))
    after = answers.retry_after(headers)
    assert after is None or after >= 0
    try:
        url = connection.join_url("http://r.example/v2/", headers.get("Location", ""))
        _, target = connection.split_url(url)
    except ExchangeError as error:
        raise BadInputError(error.reason) from error
    assert redirects.lifetime(target, headers) <= 3600


_LISTING = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>b</Name><Prefix>p/</Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false"
    b"</IsTruncated><Contents><Key>p/tag</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    b"<ETag>&quot;a&quot;</ETag><Size>1</Size></Contents></ListBucketResult>"
)
_ERRORS = [
    b"<Error><Code>%s</Code><Message>the region is wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region>"
    b"<RequestId>1</RequestId></Error>" % code
    for code in (
        b"NoSuchBucket",
        b"SlowDown",
        b"AuthorizationHeaderMalformed",
        b"ExpiredToken",
        b"InvalidRange",
    )
]


def _make_s3(rng: Random) -> bytes:
    if rng.random() < 0.4:
        return b"200 " + change_bytes(_LISTING, rng)
    return b"%d " % rng.choice((301, 400, 403, 404, 416, 503)) + change_bytes(rng.choice(_ERRORS), rng)


@cache
def _bucket() -> tuple[s3_bucket.Bucket, list[AWSResponse]]:
    """A bucket that is never reached: the last of the list is what it answers."""
    given: list[AWSResponse] = []
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_CONFIG_FILE": "/dev/null"}
    with patch.dict("os.environ", environment):
        bucket = s3_bucket.Bucket(
            "b", StoreOptions(endpoint_url="http://s3.example", region="x", timeout=0.1)
        )
    bucket._clients.boto.meta.events.register("before-send.s3", lambda **_: given[-1])
    return bucket, given


class _Body(BytesIO):
    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.read()


def _s3(data: bytes) -> None:
    status, _, body = data.partition(b" ")
    text = f"status code: {status.decode()}, body: {body.decode(errors='replace')}"
    scene = s3_errors.Scene("b", "s3.example", "")
    refused = s3_errors.error_of(GenericError(text), "s3://b/k", scene)
    assert "\n" not in refused.message
    bucket, given = _bucket()
    answer: Any = _Body(body)
    given[:] = [AWSResponse("http://s3.example/", int(status), {"Content-Type": "application/xml"}, answer)]
    with patch.object(bucket, "_renew", lambda _: False):
        assert all(isinstance(name, str) for name in bucket.names("p/"))


_AUTH = [
    {
        "auths": {
            "r.example": {"auth": "YTpi", "email": "x"},
            "https://index.docker.io/v1/": {"username": "a", "password": "b"},
            "r.example/a": {"identitytoken": "t", "registrytoken": "u"},
        },
        "credHelpers": {"other.example": "none"},
    },
    {"auths": {"r.example": {"username": "a", "password": "b"}}, "credsStore": "", "HttpHeaders": {"a": "b"}},
]


def _credentials(data: bytes) -> None:
    path = scratch("credentials") / "config.json"
    path.write_bytes(data)
    found = credentials.find_credentials(_NAME, StoreOptions(auth_file=path))
    if found.user:
        found.basic()


def _learned(data: bytes) -> None:
    """A file of the node's own, which it goes on with whatever it holds."""
    path = scratch("learned") / "auth.json"
    path.write_bytes(data)
    learned.keep_credentials(path, _NAME, credentials.Credentials("a", "b"))
    found = credentials.find_credentials(_NAME, StoreOptions(learned_file=path, auth_file=path))
    assert (found.user, found.password) == ("a", "b")


_HOSTS = [
    b'server = "https://r.example"\nca = ["a.crt", "/b.crt"]\nskip_verify = true\n[host."http://m.example:5000/v2/x"]\n'
    b'capabilities = ["pull", "resolve"]\noverride_path = true\nclient = [["a.cert", "a.key"]]\n'
    b'[host."http://m.example:5000/v2/x".header]\nx = ["y"]\nz = "w"\n',
    b'[host."[::1]:5000"]\nca = "c.crt"\n',
]


def _hosts(data: bytes) -> None:
    directory = scratch("hosts")
    (directory / _NAME.host).mkdir(exist_ok=True)
    (directory / _NAME.host / "hosts.toml").write_bytes(data)
    hosts.find_hosts(_NAME.host, StoreOptions(certs_dirs=(directory,)))


_registry = (store, upload, client)
SERVERS = [
    Parser("registry answers", _make_answers, _exchange, _registry),
    Parser("registry headers", any_text(_HEADERS), _headers, (auth, answers, redirects)),
    Parser("S3 answer", _make_s3, _s3, (s3_bucket, s3_errors)),
    Parser("docker config.json", any_json(_AUTH), _credentials, (credentials,)),
    Parser("learned credentials", any_json(_AUTH), _learned, (learned,)),
    Parser("hosts.toml", any_text(_HOSTS), _hosts, (hosts,)),
]
