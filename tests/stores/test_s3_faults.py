"""S3 servers that refuse, fail, lie or stall, and users who set up the wrong thing."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.errors import LazyfsError, NotFoundError, StoreError, UsageError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import Store, StoreOptions, open_store, parse_reference, write_blob
from lazyfs.stores import s3_bucket as bucket_module
from lazyfs.stores import s3_upload as upload_module
from tests.faults import HANG, RESET, FaultServer, Reply, Seen
from tests.s3server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Place, forward
from tests.waiting import wait_until

from .samples import make_sample, put_sample

Script = Callable[[Seen], Reply]

DATA = bytes(range(256)) * 1200
DIGEST = sha256_digest(DATA)
RANGE = {
    "Content-Range": f"bytes 1000-200999/{len(DATA)}",
    "Last-Modified": "Mon, 23 Nov 2026 06:55:36 GMT",
    "ETag": '"x"',
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(bucket_module, "_LONGEST_PAUSE", 0.02)


class Clock:
    """In which a pause takes three tenths of the time that a request has, and nothing else takes any."""

    def __init__(self, timeout: float) -> None:
        self._pause = 0.3 * timeout
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += self._pause


def refusal(status: int, code: str, more: str = "") -> Reply:
    return Reply(status, body=f"<Error><Code>{code}</Code><Message>m</Message>{more}</Error>".encode())


def opened(s3: S3Place, url: str | None = None, *, create: bool = False, timeout: float = 20.0) -> Store:
    options = StoreOptions(endpoint_url=url, timeout=timeout)
    return open_store(parse_reference(f"s3://{s3.location}"), create=create, options=options)


def put(s3: S3Place) -> None:
    s3.put(f"blobs/{DIGEST.replace(':', '/')}", DATA)


def read(store: Store) -> None:
    assert store.read(DIGEST, 1000, 200_000) == DATA[1000:201_000]


def at_first(right: Script, *faults: Reply) -> Script:
    """Let these be the first answers to other requests than HEAD; then all is well."""
    waiting = list(faults)
    return lambda seen: waiting.pop(0) if waiting and seen.method != "HEAD" else right(seen)


# What may pass


@pytest.mark.parametrize(
    "fault",
    [
        refusal(503, "SlowDown"),
        refusal(429, "TooManyRequests"),
        refusal(500, "InternalError"),
        RESET,
        Reply(raw=b"nonsense\r\n\r\n", after="close"),
        Reply(206, RANGE, b"short", length=200_000, after="close"),
    ],
    ids=["slow-down", "too-many", "internal", "reset", "nonsense", "cut"],
)
def test_what_passes_is_tried_again(s3: S3Place, fault: Reply) -> None:
    put(s3)
    with FaultServer(at_first(forward(s3.server), fault, fault)) as proxy:
        with opened(s3, proxy.url) as store:
            read(store)
        assert len(proxy.seen) == 3


def test_requests_that_write_and_list_are_tried_again(s3: S3Place) -> None:
    slow = refusal(503, "SlowDown")
    with FaultServer(at_first(forward(s3.server), slow)) as proxy, opened(s3, proxy.url) as store:
        digest, _ = write_blob(store, b"written")
        proxy.script = at_first(forward(s3.server), slow, slow)
        assert store.tags() == []
    assert s3.get(f"blobs/{digest.replace(':', '/')}") == b"written"


@pytest.mark.parametrize(
    ("fault", "message", "timeout"),
    [
        (refusal(503, "SlowDown"), "slow down", 20.0),
        (RESET, "did not answer", 20.0),
        (HANG, "did not answer", 0.8),
        (Reply(206, RANGE, b"short", length=200_000, after="hang"), "did not answer", 0.8),
    ],
    ids=["slow-down", "reset", "hang", "stall"],
)
def test_patience_has_an_end(
    s3: S3Place, fault: Reply, message: str, timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "time", Clock(timeout))
    with FaultServer(lambda _: fault) as proxy, opened(s3, proxy.url, timeout=timeout) as store:
        with pytest.raises(StoreError, match=message) as caught:
            store.read(DIGEST, 1000, 200_000)
        assert proxy.host in caught.value.message
        wait_until(lambda: len(proxy.seen) > 1)  # its threads may be later than who gave up


# What does not pass


@pytest.mark.parametrize(
    "fault",
    [
        Reply(200, body=b"<html>Welcome</html>"),
        Reply(206, RANGE | {"Content-Range": f"bytes 0-199999/{len(DATA)}"}, bytes(200_000)),
        Reply(206, body=bytes(200_000)),
        Reply(206, RANGE, bytes(100)),
        Reply(206, RANGE, bytes(250_000)),
    ],
    ids=["whole", "other-range", "no-range", "less", "more"],
)
def test_an_answer_that_is_wrong_is_no_data(s3: S3Place, fault: Reply) -> None:
    with FaultServer(lambda _: fault) as proxy, opened(s3, proxy.url) as store:
        with pytest.raises(StoreError, match=DIGEST):
            store.read(DIGEST, 1000, 200_000)
        assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    ("fault", "error", "message", "hint"),
    [
        (
            refusal(403, "AccessDenied"),
            StoreError,
            "does not allow it to the credentials from env",
            "s3:GetObject",
        ),
        (refusal(403, "InvalidAccessKeyId"), StoreError, "from env: the server does not know", "AWS_PROFILE"),
        (
            refusal(403, "SignatureDoesNotMatch", SECRET_KEY),
            StoreError,
            "their secret key is not",
            "AWS_PROFILE",
        ),
        (refusal(400, "ExpiredToken"), StoreError, "they have expired", "AWS_PROFILE"),
        (refusal(403, "RequestTimeTooSkewed"), StoreError, "clock of this machine", "AWS_PROFILE"),
        (
            refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"),
            StoreError,
            "another region, eu-west-3",
            "AWS_REGION=eu-west-3",
        ),
        (refusal(301, "PermanentRedirect"), StoreError, "another region", "AWS_REGION="),
        (refusal(404, "NoSuchBucket"), NotFoundError, f"has no bucket {BUCKET}", "endpoint"),
        (refusal(418, "Teapot"), StoreError, "answered Teapot", "log"),
    ],
)
def test_a_refusal_says_why(
    s3: S3Place, fault: Reply, error: type[LazyfsError], message: str, hint: str
) -> None:
    with FaultServer(lambda _: fault) as proxy, opened(s3, proxy.url) as store:
        for attempt in (lambda: store.read(DIGEST, 0, 5), lambda: list(store.stream(DIGEST)), store.tags):
            with pytest.raises(error, match=message) as caught:
                attempt()
            assert hint in caught.value.hint
            assert SECRET_KEY not in caught.value.message + caught.value.hint
            assert "\n" not in caught.value.message
        # boto3 goes from region to region by itself, until it has enough.
        assert len(proxy.seen) == 3 or fault.status in (301, 400)


def test_a_head_that_is_refused_asks_why(s3: S3Place) -> None:
    with FaultServer(lambda _: refusal(400, "ExpiredToken")) as proxy, opened(s3, proxy.url) as store:
        with pytest.raises(StoreError, match="they have expired"):
            store.has(DIGEST)
        assert [seen.method for seen in proxy.seen] == ["HEAD", "GET"]


# Credentials


def test_credentials_that_were_renewed_are_read_again(
    s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3)
    right = forward(s3.server)
    file = tmp_path / "credentials"

    def write(key: str) -> None:
        file.write_text(f"[ci]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n")

    def script(seen: Seen) -> Reply:
        return (
            right(seen) if f"{ACCESS_KEY}/" in seen.headers["authorization"] else refusal(400, "ExpiredToken")
        )

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "ci")
    caplog.set_level(logging.DEBUG, "lazyfs")
    write("an-old-key")
    with FaultServer(script) as proxy, opened(s3, proxy.url) as store:
        with pytest.raises(StoreError, match="from shared-credentials-file: they have expired"):
            read(store)
        assert len(proxy.seen) == 1
        write(ACCESS_KEY)
        read(store)
        assert len(proxy.seen) == 3
        write("an-older-key")
        read(store)
        file.unlink()
        with pytest.raises(StoreError, match="they have expired"):
            proxy.script = lambda _: refusal(400, "ExpiredToken")
            read(store)
    assert SECRET_KEY not in caplog.text


def test_wrong_credentials_and_regions_are_told_by_the_real_server(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not s3.server.is_minio:
        pytest.skip("moto takes any credentials")
    put(s3)
    for name, value, message in [
        ("AWS_ACCESS_KEY_ID", "somebody-else", "does not know their access key"),
        ("AWS_SECRET_ACCESS_KEY", "a-guess", "secret key is not the one"),
        ("AWS_REGION", "mars-north-1", "another region, eu-test-1"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with opened(s3) as store:
                for attempt in (
                    lambda: read(store),
                    lambda: store.has(DIGEST),
                    lambda: write_blob(store, b"x"),
                ):
                    with pytest.raises(StoreError, match=message):
                        attempt()


def test_without_credentials_requests_are_anonymous(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with FaultServer(lambda _: refusal(403, "AccessDenied")) as proxy, opened(s3, proxy.url) as store:
        for attempt in (lambda: read(store), store.tags):
            with pytest.raises(StoreError, match="wants credentials, and there are none"):
                attempt()
        assert not any("authorization" in seen.headers for seen in proxy.seen)


# Settings


def test_a_bucket_that_is_not_there(s3: S3Place) -> None:
    reference = parse_reference("s3://no-such-bucket-anywhere/images/app:v1")
    with pytest.raises(NotFoundError, match="has no bucket no-such-bucket-anywhere"):
        open_store(reference, create=True)
    with open_store(reference) as store:
        with pytest.raises(NotFoundError, match="has no bucket"):
            store.resolve("v1")
        with pytest.raises(NotFoundError, match="has no bucket"):
            write_blob(store, b"x")


def test_a_bucket_of_which_not_all_may_be_read(s3: S3Place) -> None:
    right = forward(s3.server)

    def script(seen: Seen) -> Reply:
        return refusal(403, "AccessDenied") if seen.target.endswith("oci-layout") else right(seen)

    with opened(s3) as store:
        put_sample(store, make_sample("a"))
    with FaultServer(script) as proxy, opened(s3, proxy.url, create=True) as store:
        assert store.has(make_sample("a").descriptor.digest)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_PROFILE", "nobody", r"profile \(nobody\)"),
        ("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint: nonsense"),
        ("AWS_ENDPOINT_URL", f"http://me:{SECRET_KEY}@127.0.0.1:9", "has a password in it"),
        ("AWS_CA_BUNDLE", "/nonexistent", "/nonexistent"),
    ],
)
def test_settings_that_cannot_be(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as caught:
        opened(s3)
    assert SECRET_KEY not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("bucket", "path_style", "endpoint", "host"),
    [
        ("images", None, None, "images.s3.eu-west-3.amazonaws.com"),
        ("my.images", None, None, "s3.eu-west-3.amazonaws.com"),
        ("images", True, None, "s3.eu-west-3.amazonaws.com"),
        ("images", None, "https://minio.example:9000", "minio.example:9000"),
        ("images", False, "https://ceph.example", "images.ceph.example"),
    ],
)
def test_where_requests_go(
    s3: S3Place,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    path_style: bool | None,
    endpoint: str | None,
    host: str,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = StoreOptions(endpoint_url=endpoint, region="eu-west-3", path_style=path_style)
    assert bucket_module.Bucket(bucket, options).host == host


def test_what_is_said_by_hand_goes_before_the_environment(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore reads the environment too, by rules of its own."""
    put(s3)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_BUCKET", "another")
    with opened(s3, s3.server.url) as store:
        read(store)


# Uploads


def test_an_upload_that_fails_is_aborted(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "PART", 5 << 20)
    right = forward(s3.server)

    def script(seen: Seen) -> Reply:
        return refusal(403, "AccessDenied") if "partNumber=2" in seen.target else right(seen)

    with FaultServer(script) as proxy, opened(s3, proxy.url) as store, store.writer() as writer:
        writer.write(bytes(11 << 20))
        with pytest.raises(StoreError, match="does not allow"):
            writer.commit()
    assert s3.objects() == {}
    assert [seen.method for seen in proxy.seen if "uploadId=" in seen.target][-1] == "DELETE"


def test_an_upload_whose_last_answer_is_lost_succeeds(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "PART", 5 << 20)
    right = forward(s3.server)

    def script(seen: Seen) -> Reply:
        reply = right(seen)
        completes = seen.method == "POST" and "uploadId" in seen.target
        return RESET if completes and reply.status == 200 else reply

    monkeypatch.setattr(bucket_module, "time", Clock(20.0))
    with FaultServer(script) as proxy, opened(s3, proxy.url) as store, store.writer() as writer:
        writer.write(bytes(11 << 20))
        digest, size = writer.commit()
        assert store.has(digest) == size
