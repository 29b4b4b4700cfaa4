"""Tokens, from services that do as they please."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from lazyfs.errors import StoreError
from lazyfs.stores import StoreOptions, open_store, parse_reference
from lazyfs.stores.registry.auth import Authorizer, Challenge
from lazyfs.stores.registry.connection import Origin, Response
from lazyfs.stores.registry.credentials import Credentials
from lazyfs.stores.registry.wire import Deadline
from tests.faults import Reply, Seen, ranged

from .memory_registry import BLOB, DIGEST, Serve, opened_as

pytestmark = pytest.mark.usefixtures("alone", "impatient")


class Gate:
    """A registry with a token service of its own; each token opens it ``uses`` times."""

    def __init__(self, uses: int = 1 << 30, **answer: Any) -> None:
        self.uses = uses
        self.answer = answer
        self.given = 0
        self.left = 0
        self.challenge = 'Bearer realm="http://{host}/token",service="x",scope="repository:app:pull"'

    def __call__(self, request: Seen) -> Reply:
        if request.path == "/token":
            self.given += 1
            self.left = self.uses
            return Reply(body=json.dumps({"token": f"t0ken-{self.given}", **self.answer}).encode())
        if request.headers.get("authorization") != f"Bearer t0ken-{self.given}" or self.left == 0:
            challenge = self.challenge.format(host=request.headers["host"])
            return Reply(401, {"WWW-Authenticate": challenge}, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        self.left -= 1
        return ranged(request, BLOB)


def test_a_token_that_is_refused_is_renewed(served: Serve) -> None:
    gate = Gate(uses=3)
    server = served(gate)
    with opened_as(server.host) as store:
        for offset in range(10):
            assert store.read(DIGEST, offset, 10) == BLOB[offset : offset + 10]
    assert gate.given == 4


def test_a_token_is_renewed_before_it_is_refused(served: Serve) -> None:
    gate = Gate(expires_in=1e-9)
    server = served(gate)
    with opened_as(server.host) as store:
        for offset in range(5):
            store.read(DIGEST, offset, 10)
    refused = [seen for seen in server.seen if seen.path != "/token" and "authorization" not in seen.headers]
    assert len(refused) == 1
    assert gate.given >= 5


@pytest.mark.parametrize("lifetime", [None, "soon", -5, 1e300, True])
def test_a_token_without_a_sensible_end(served: Serve, lifetime: object) -> None:
    gate = Gate(expires_in=lifetime)
    with opened_as(served(gate).host) as store:
        store.read(DIGEST, 0, 10)
        store.read(DIGEST, 0, 10)
    assert gate.given == 1


def test_a_registry_that_refuses_every_token(served: Serve) -> None:
    gate = Gate(uses=0)
    server = served(gate)
    with opened_as(server.host) as store, pytest.raises(StoreError, match="401 Unauthorized"):
        store.read(DIGEST, 0, 10)
    assert gate.given == 2


def test_a_registry_token_is_used_as_it_is(served: Serve, tmp_path: Path) -> None:
    gate = Gate()
    gate.given, gate.left = 7, 10
    server = served(gate)
    auth_file = tmp_path / "auth.json"
    auth_file.write_text(json.dumps({"auths": {server.host: {"registrytoken": "t0ken-7"}}}))
    with opened_as(server.host, auth_file) as store:
        assert store.read(DIGEST, 0, 10) == BLOB[:10]
    assert all(seen.path != "/token" for seen in server.seen)


def test_an_identity_token_that_is_replaced(served: Serve, tmp_path: Path) -> None:
    gate = Gate(uses=1, refresh_token="second")
    server = served(gate)
    auth_file = tmp_path / "auth.json"
    auth_file.write_text(json.dumps({"auths": {server.host: {"identitytoken": "first"}}}))
    with opened_as(server.host, auth_file) as store:
        store.read(DIGEST, 0, 10)
        store.read(DIGEST, 0, 10)
    forms = [parse_qs(seen.body.decode()) for seen in server.seen if seen.path == "/token"]
    assert [form["refresh_token"] for form in forms] == [["first"], ["second"]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Reply(body=b"no JSON"), "not JSON"),
        (Reply(body=b"{}"), "gave no token"),
        (Reply(body=b'{"token": ["x"]}'), "must be a text"),
        (Reply(body=b'{"token": "a\\r\\nX-Evil: 1"}'), "gave no token"),
        (Reply(body=json.dumps({"token": "x" * 100_000}).encode()), "gave no token"),
        (Reply(body=b'{"token": "' + b"x" * (2 << 20)), "limit"),
        (Reply(404), "404 Not Found"),
        (Reply(403), "403 Forbidden"),
        (Reply(302, {"Location": "http://127.0.0.1:1/"}), "302 Found"),
    ],
)
def test_a_token_server_that_gives_no_token(served: Serve, answer: Reply, message: str) -> None:
    gate = Gate()
    server = served(lambda request: answer if request.path == "/token" else gate(request))
    with opened_as(server.host) as store, pytest.raises(StoreError, match=message) as caught:
        store.read(DIGEST, 0, 10)
    assert "asking for a token" in caught.value.message
    assert caught.value.hint
    assert len(server.seen) == 2


def test_a_token_server_that_is_busy_is_asked_again(served: Serve) -> None:
    gate = Gate()
    busy = [Reply(503), Reply(429, {"Retry-After": "0"})]
    server = served(lambda request: busy.pop() if request.path == "/token" and busy else gate(request))
    with opened_as(server.host) as store:
        assert store.read(DIGEST, 0, 10) == BLOB[:10]


@pytest.mark.parametrize(
    "realm",
    ["", "nowhere", "ftp://127.0.0.1/token", "http://u:p@127.0.0.1/token", "http://127.0.0.1:1/token"],
)
def test_a_challenge_that_leads_nowhere(served: Serve, realm: str) -> None:
    gate = Gate()
    gate.challenge = f'Bearer realm="{realm}",service="x"'
    with (
        open_store(
            parse_reference(f"docker://{served(gate).host}/app"), options=StoreOptions(timeout=0.3)
        ) as store,
        pytest.raises(StoreError),
    ):
        store.read(DIGEST, 0, 10)


def test_a_password_is_not_sent_without_tls_where_the_registry_has_it() -> None:
    def send(*_: object) -> Response:
        raise AssertionError("it was sent")

    authorizer = Authorizer("registry.example", "docker://registry.example/app", Credentials, send)
    challenge = Challenge("bearer", {"realm": "http://registry.example/token"})
    with pytest.raises(StoreError, match="without TLS"):
        authorizer.renew([challenge], (), None, Origin("https", "registry.example", 443), Deadline(5, 5))


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("repository:app:pull", ["repository:app:pull"]),
        ("repository:app:push,pull", ["repository:app:pull", "repository:app:push,pull"]),
        ("repository:mirror/app:pull x", ["repository:app:pull", "repository:mirror/app:pull", "x"]),
    ],
)
def test_what_a_challenge_asks_for_is_asked_for_as_well(served: Serve, asked: str, sent: list[str]) -> None:
    gate = Gate()
    gate.challenge = f'Bearer realm="http://{{host}}/token?a=b",scope="{asked}"'
    server = served(gate)
    with opened_as(server.host) as store:
        store.read(DIGEST, 0, 10)
    [query] = [parse_qs(seen.target.partition("?")[2]) for seen in server.seen if seen.path == "/token"]
    assert query == {"a": ["b"], "scope": sent}


# What expires in the middle


@pytest.mark.parametrize("how", ["stream", "pieces"])
def test_a_token_that_expires_in_the_middle_of_a_blob(served: Serve, how: str) -> None:
    """And the connection breaks: it goes on where it broke, with a new token."""
    gate = Gate(uses=1)

    def breaking(request: Seen) -> Reply:
        reply = gate(request)
        if not isinstance(reply.body, bytes) or len(reply.body) <= 1000 or reply.status >= 400:
            return reply
        return replace(reply, body=reply.body[:1000], length=len(reply.body), after="reset")

    server = served(breaking)
    with opened_as(server.host) as store:
        if how == "stream":
            read = b"".join(store.stream(DIGEST, piece=500))
        else:
            read = b"".join(store.read_pieces(DIGEST, 0, [512] * (len(BLOB) // 512)))
    assert read == BLOB
    assert gate.given >= 4


def test_an_address_and_a_token_that_expire_together(served: Serve) -> None:
    """The storage refuses the address (403), the registry the token (401): both are asked for anew."""
    gate, good = Gate(uses=1), ["signature-1"]
    storage = served(
        lambda request: ranged(request, BLOB) if request.target.endswith(good[0]) else Reply(403)
    )

    def redirecting(request: Seen) -> Reply:
        reply = gate(request)
        if reply.status >= 400 or request.path == "/token":
            return reply
        return Reply(307, {"Location": f"{storage.url}/blob?X-Amz-Expires=600&X-Amz-Signature={good[0]}"})

    server = served(redirecting)
    with opened_as(server.host) as store:
        for number in range(1, 4):
            good[0] = f"signature-{number}"
            for offset in range(3):
                assert store.read(DIGEST, offset, 100) == BLOB[offset : offset + 100]
    assert gate.given == 3
    assert [seen.target.rpartition("=")[2] for seen in storage.seen].count("signature-1") == 4


def test_a_helper_is_asked_again_when_its_password_has_expired(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\ncat >/dev/null; echo asked >>"$0.log"\n'
        'echo "{\\"Username\\":\\"somebody\\",\\"Secret\\":\\"$(cat "$0.secret")\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    secret, log = Path(f"{helper}.secret"), Path(f"{helper}.log")
    valid = ["one"]

    def script(request: Seen) -> Reply:
        expected = base64.b64encode(f"somebody:{valid[0]}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {expected}":
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        return ranged(request, BLOB)

    server = served(script)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {server.host: {}}, "credHelpers": {server.host: "tests"}}))
    with opened_as(server.host, config) as store:
        for password in ("one", "two"):
            secret.write_text(password)
            valid[0] = password
            for offset in range(5):
                assert store.read(DIGEST, offset, 10) == BLOB[offset : offset + 10]
        assert log.read_text().split() == ["asked", "asked"]
        valid[0] = "three"
        with pytest.raises(StoreError, match="401") as caught:
            store.read(DIGEST, 0, 10)
        assert "docker-credential-tests" in caught.value.hint
        assert "two" not in caught.value.message + caught.value.hint
