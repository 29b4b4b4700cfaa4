"""Proving who we are: at docker-registry with passwords and tokens, and at servers that ask for strange things."""

import base64
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import StoreError
from lazyfs.stores import write_blob
from lazyfs.stores.registry.auth import parse_challenges
from tests.faults import Reply, Seen, ranged
from tests.registry import (
    BASIC,
    HTPASSWD,
    PASSWORD,
    Registry,
    TokenServer,
    needs_registry,
    run_registry,
    skopeo,
    write_auth,
)

from .conformance import ABSENT
from .memory_registry import BLOB, DIGEST, Serve, opened_as
from .samples import make_sample, put_sample

pytestmark = pytest.mark.usefixtures("alone", "impatient")


# Passwords, at docker-registry


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    with run_registry(directory, auth=auth) as registry:
        yield registry


@needs_registry
def test_a_password_opens_a_registry(guarded: Registry, tmp_path: Path) -> None:
    auth_file = write_auth(tmp_path / "auth.json", guarded.host)
    sample = make_sample("a")
    with opened_as(guarded.host, auth_file, create=True) as store:
        put_sample(store, sample, "v1")
    with opened_as(guarded.host, auth_file) as store:
        assert store.resolve("v1").digest == sample.descriptor.digest
        assert store.tags() == ["v1"]
    name = f"docker://{guarded.host}/app:v1"
    shown = skopeo("inspect", "--raw", "--tls-verify=false", f"--authfile={auth_file}", name)
    assert shown == sample.manifest


@needs_registry
def test_without_a_password_the_remedy_is_named(guarded: Registry) -> None:
    with opened_as(guarded.host) as store, pytest.raises(StoreError) as caught:
        store.resolve("v1")
    assert "answered 401 Unauthorized (UNAUTHORIZED: authentication required" in caught.value.message
    assert f"`skopeo login {guarded.host}`" in caught.value.hint
    assert "REGISTRY_AUTH_FILE" in caught.value.hint


@needs_registry
def test_a_wrong_password_is_named_by_its_file_and_a_new_one_is_noticed(
    guarded: Registry, tmp_path: Path
) -> None:
    auth_file = write_auth(tmp_path / "auth.json", guarded.host, password="wr0ng")
    with opened_as(guarded.host, auth_file) as store:
        with pytest.raises(StoreError) as caught:
            store.has(ABSENT)
        assert str(auth_file) in caught.value.hint
        assert "wr0ng" not in caught.value.message + caught.value.hint
        write_auth(auth_file, guarded.host)
        assert store.has(ABSENT) is None


# Tokens, at docker-registry


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    with TokenServer(tmp_path_factory.mktemp("tokens")).running() as tokens:
        yield tokens


@pytest.fixture(scope="module")
def issued(tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("issued"), auth=tokens.registry_auth()) as registry:
        yield registry


@needs_registry
def test_one_token_serves_many_requests(issued: Registry, tokens: TokenServer, tmp_path: Path) -> None:
    auth_file = write_auth(tmp_path / "auth.json", issued.host)
    tokens.requests.clear()
    with opened_as(issued.host, auth_file, create=True) as store:
        put_sample(store, make_sample("a"), "v1")
    assert [fields["scope"] for _, fields in tokens.requests] == [["repository:app:pull,push"]]
    tokens.requests.clear()
    with opened_as(issued.host, auth_file) as store, ThreadPoolExecutor(8) as pool:
        digest = make_sample("a").descriptor.digest
        assert {found.digest for found in pool.map(store.resolve, ["v1", digest] * 20)} == {digest}
    assert [(method, fields["scope"]) for method, fields in tokens.requests] == [
        ("GET", ["repository:app:pull"])
    ]


@needs_registry
def test_an_identity_token_is_taken_to_the_token_server(
    issued: Registry, tokens: TokenServer, tmp_path: Path
) -> None:
    auth_file = tmp_path / "auth.json"
    entry = {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": tokens.refresh_token}
    auth_file.write_text(json.dumps({"auths": {issued.host: entry}}))
    tokens.requests.clear()
    with opened_as(issued.host, auth_file, name="by-token", create=True) as store:
        put_sample(store, make_sample("a"), "v1")
    [(method, fields)] = tokens.requests
    assert method == "POST"
    assert fields["service"] == ["the registry"]
    assert fields["client_id"] == ["lazyfs"]


@needs_registry
def test_a_token_for_two_repositories_mounts_a_blob(
    issued: Registry, tokens: TokenServer, tmp_path: Path
) -> None:
    auth_file = write_auth(tmp_path / "auth.json", issued.host)
    with (
        opened_as(issued.host, auth_file, name="from", create=True) as source,
        opened_as(issued.host, auth_file, name="to", create=True) as target,
    ):
        digest, size = write_blob(source, b"shared")
        assert target.adopt(source, digest)
        assert target.has(digest) == size
    assert ["repository:to:pull,push", "repository:from:pull"] in [
        fields["scope"] for _, fields in tokens.requests
    ]


@needs_registry
def test_who_may_read_but_not_write_is_told_so(
    issued: Registry, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth_file = write_auth(tmp_path / "auth.json", issued.host)
    monkeypatch.setattr(tokens, "actions", {"pull"})
    with opened_as(issued.host, auth_file, create=True) as store, pytest.raises(StoreError) as caught:
        write_blob(store, b"more")
    assert "answered 401 Unauthorized (UNAUTHORIZED: authentication required" in caught.value.message
    assert f"what {auth_file} has for it is not enough" in caught.value.hint


@needs_registry
def test_a_token_server_that_knows_us_not(issued: Registry, tokens: TokenServer, tmp_path: Path) -> None:
    auth_file = write_auth(tmp_path / "auth.json", issued.host, password="wr0ng")
    with opened_as(issued.host, auth_file) as store, pytest.raises(StoreError) as caught:
        store.tags()
    assert "asking for a token: http://127.0.0.1:" in caught.value.message
    assert "answered 401" in caught.value.message
    assert f"what {auth_file} has for it is not enough" in caught.value.hint


# What is secret stays so


def test_authorization_goes_to_the_registry_alone(served: Serve, tmp_path: Path) -> None:
    storage = served(lambda request: ranged(request, BLOB))

    def script(request: Seen) -> Reply:
        if request.headers.get("authorization") != BASIC:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        if "here" not in request.target:
            return Reply(307, {"Location": f"{request.path}?here=1"})
        return Reply(307, {"Location": f"{storage.url}/blob"})

    server = served(script)
    auth_file = write_auth(tmp_path / "auth.json", server.host)
    with opened_as(server.host, auth_file) as store:
        assert store.read(DIGEST, 0, 10) == BLOB[:10]
        assert store.read(DIGEST, 10, 10) == BLOB[10:20]
        assert store.has(DIGEST) == len(BLOB)
        assert b"".join(store.stream(DIGEST)) == BLOB
    assert len(storage.seen) == 4
    assert all("authorization" not in seen.headers for seen in storage.seen)


def test_a_storage_that_asks_for_a_password_gets_none(served: Serve, tmp_path: Path) -> None:
    storage = served(lambda _: Reply(401, {"WWW-Authenticate": 'Basic realm="give"'}))
    server = served(lambda _: Reply(307, {"Location": f"{storage.url}/blob"}))
    auth_file = tmp_path / "auth.json"
    packed = {"auth": BASIC.removeprefix("Basic ")}
    auth_file.write_text(json.dumps({"auths": {server.host: packed, storage.host: packed}}))
    with opened_as(server.host, auth_file) as store, pytest.raises(StoreError, match="401"):
        store.read(DIGEST, 0, 10)
    assert all("authorization" not in seen.headers for seen in storage.seen)


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_no_secret_is_ever_shown(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    """Not even when the server says it."""
    caplog.set_level(logging.DEBUG)

    def script(request: Seen) -> Reply:
        if request.path == "/token":
            return Reply(body=b'{"token": "t0ken"}')
        header = request.headers.get("authorization", "")
        if not header:
            realm = f'{scheme} realm="http://{request.headers["host"]}/token"'
            return Reply(401, {"WWW-Authenticate": realm})
        body = {"errors": [{"code": header, "message": f"{PASSWORD} {header}", "detail": {"x": PASSWORD}}]}
        return Reply(400, {}, json.dumps(body).encode())

    server = served(script)
    auth_file = write_auth(tmp_path / "auth.json", server.host)
    with opened_as(server.host, auth_file) as store:
        with pytest.raises(StoreError) as caught:
            store.read(DIGEST, 0, 10)
        client = store._client
        shown = [
            *(caught.value.message, caught.value.hint, caplog.text, repr(store), repr(client)),
            *(repr(vars(part)) for part in (store, client, client._servers[0])),
        ]
    for secret in (PASSWORD, BASIC.partition(" ")[2], "t0ken"):
        assert all(secret not in text for text in shown)
    assert "400 Bad Request" in caught.value.message


# Challenges


@pytest.mark.parametrize(
    ("values", "challenges"),
    [
        ([], []),
        (["Basic"], [("basic", {})]),
        (['Basic realm="a b"'], [("basic", {"realm": "a b"})]),
        (
            ['Bearer realm="https://x/token",service="y", scope="repository:a:pull,push"'],
            [("bearer", {"realm": "https://x/token", "service": "y", "scope": "repository:a:pull,push"})],
        ),
        (
            ['BEARER Realm = "x" , error=invalid_token'],
            [("bearer", {"realm": "x", "error": "invalid_token"})],
        ),
        (
            ['Negotiate, Basic realm="r", Bearer realm="t"'],
            [("negotiate", {}), ("basic", {"realm": "r"}), ("bearer", {"realm": "t"})],
        ),
        (["Basic realm=r", 'Bearer realm="t"'], [("basic", {"realm": "r"}), ("bearer", {"realm": "t"})]),
        (['Basic realm="a \\"quoted\\" word"'], [("basic", {"realm": 'a "quoted" word'})]),
        (['Bearer realm="unfinished'], [("bearer", {})]),
        (["Negotiate abc=="], [("negotiate", {})]),
        (["", ",,, ,"], []),
    ],
)
def test_challenges(values: list[str], challenges: list[tuple[str, dict[str, str]]]) -> None:
    found = [(challenge.scheme, challenge.parameters) for challenge in parse_challenges(values)]
    assert found == challenges


@given(st.lists(st.text(max_size=200) | st.text('Bearer realm="x",= \\', max_size=60)))
def test_any_text_may_be_a_challenge(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()
