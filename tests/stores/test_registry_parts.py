"""The small parts of the registry client: names, lifetimes of redirects, waits, addresses, proxies."""

import email.utils
import time
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPMessage
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import StoreError, UsageError
from lazyfs.stores import StoreOptions, open_store, parse_reference
from lazyfs.stores.registry import redirects
from lazyfs.stores.registry.answers import retry_after
from lazyfs.stores.registry.connection import Origin, split_url
from lazyfs.stores.registry.names import RepositoryName, parse_repository
from lazyfs.stores.registry.redirects import Address, Redirects, lifetime
from lazyfs.stores.registry.wire import ExchangeError
from tests.faults import FaultServer, Reply, Seen, ranged

from .memory_registry import MemoryRegistry


def headers(**values: str) -> HTTPMessage:
    message = HTTPMessage()
    for name, value in values.items():
        message[name.replace("_", "-")] = value
    assert isinstance(message, Message)
    return message


# Names


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("busybox", "docker.io", "library/busybox"),
        ("team/app", "docker.io", "team/app"),
        ("docker.io/busybox", "docker.io", "library/busybox"),
        ("index.docker.io/busybox", "docker.io", "library/busybox"),
        ("registry-1.docker.io/team/app", "docker.io", "team/app"),
        ("localhost/app", "localhost", "app"),
        ("host:80/app", "host:80", "app"),
        ("HOST/app", "HOST", "app"),
        ("[::1]/app", "[::1]", "app"),
        ("r.example/a/b.c/d_e/f__g/h--i", "r.example", "a/b.c/d_e/f__g/h--i"),
    ],
)
def test_names_of_repositories(text: str, host: str, path: str) -> None:
    assert parse_repository(text) == RepositoryName(host, path)


NO_REPOSITORIES = """
/ a//b a/ /a App a_/b a___b a/ä r.example/ r.example:0/a r.example:99999/a -.x/a [::1/a user@r.example/app
"""


@pytest.mark.parametrize("text", ["", "r.example/a b", "a/" * 200 + "a", *NO_REPOSITORIES.split()])
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_repository(text)
    assert "docker://" in caught.value.hint


@given(st.text(max_size=40) | st.text("aA.:/-_@0[]", max_size=20))
def test_any_text_is_a_repository_or_a_usage_error(text: str) -> None:
    try:
        name = parse_repository(text)
    except UsageError:
        return
    assert parse_repository(str(name)) == name
    assert not {"..", "//", "?", "#", "%"} & {str(name)[at : at + 2] for at in range(len(str(name)))}


# Redirects

NOW = 1_700_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, as the code under test sees it."""
    now = [float(NOW)]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("query", "control", "seconds"),
    [
        ("", "", 300),
        ("X-Amz-Expires=1200", "", 960),
        ("X-Amz-Date=20231114T221320Z&X-Amz-Expires=1000", "", 800),
        ("X-Amz-Date=20231114T221220Z&X-Amz-Expires=1000", "", 752),
        ("X-Amz-Date=20231114T231320Z&X-Amz-Expires=1000", "", 800),
        ("X-Amz-Date=nonsense&X-Amz-Expires=1000", "", 800),
        ("X-Goog-Expires=100&X-Goog-Date=20231114T221320Z", "", 80),
        (f"Expires={NOW + 500}&Signature=x", "", 400),
        (f"Expires={NOW - 500}", "", -400),
        ("se=2023-11-14T22%3A23%3A20Z&sig=x", "", 480),
        ("se=nonsense", "", 300),
        ("X-Amz-Expires=604800", "", 3600),
        ("X-Amz-Expires=" + "9" * 5000, "", 3600),
        ("X-Amz-Expires=-1", "", 300),
        ("", "max-age=100", 80),
        ("X-Amz-Expires=1200", "private, max-age=100", 80),
        ("", "no-store", 0),
        ("X-Amz-Expires=1200", "no-cache", 0),
        ("", "max-age=0", 0),
    ],
)
@pytest.mark.usefixtures("clock")
def test_how_long_a_redirect_holds(query: str, control: str, seconds: float) -> None:
    found = headers(Cache_Control=control) if control else headers()
    assert lifetime(f"/blob?{query}", found) == pytest.approx(seconds)


@given(st.text(max_size=80), st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40))
def test_any_redirect_holds_for_a_bounded_time(query: str, control: str) -> None:
    assert lifetime(f"/blob?{quote(query, safe='=&')}", headers(Cache_Control=control)) <= 3600


def test_redirects_are_forgotten_in_time(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "_MAX_KEPT", 2)
    kept = Redirects()
    address = Address(Origin("https", "storage.example", 443), "/blob?signature=secret")
    assert "secret" not in repr(address)
    kept.keep("a", address, 10)
    kept.keep("never", address, 0)
    assert kept.get("a") == address
    assert kept.get("never") is None
    clock[0] += 11
    assert kept.get("a") is None
    for key in "abc":
        kept.keep(key, address, 10)
    assert [kept.get(key) for key in "abc"] == [None, address, address]
    kept.forget("b")
    assert kept.get("b") is None


# Waits and addresses


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("9" * 500, None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after(headers(Retry_After=text)) == seconds


def test_retry_after_a_date() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    seconds = retry_after(headers(Retry_After=date))
    assert seconds is not None
    assert 95 < seconds <= 100


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("https://x.example", "https://x.example", "/"),
        ("http://x.example:8080/a?b=c#d", "http://x.example:8080", "/a?b=c"),
        ("https://[::1]:443/a", "https://[::1]", "/a"),
    ],
)
def test_addresses(url: str, origin: str, target: str) -> None:
    found, rest = split_url(url)
    assert (str(found), rest) == (origin, target)


@given(st.text(max_size=60) | st.text(max_size=30).map(lambda text: f"http://{text}"))
def test_any_text_is_an_address_or_an_error(url: str) -> None:
    try:
        origin, target = split_url(url)
    except ExchangeError as error:
        assert error.final
    else:
        assert origin.host
        assert target.startswith("/")
        assert target.isascii()


# Proxies


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A proxy that serves what it is asked for itself."""
    with FaultServer(MemoryRegistry()) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://u:p%3Aw@{proxy.host}")
        monkeypatch.delenv("no_proxy", raising=False)
        yield proxy


def test_a_registry_behind_a_proxy(proxy: FaultServer, tmp_path: Path) -> None:
    memory = MemoryRegistry()
    digest = memory.add(b"through the proxy")

    def script(request: Seen) -> Reply:
        assert request.target == f"http://registry.invalid:81/v2/app/blobs/{digest}"
        assert request.headers["proxy-authorization"] == "Basic dTpwOnc="
        assert request.headers["host"] == "registry.invalid:81"
        return ranged(request, memory.blobs[digest])

    proxy.script = script
    (tmp_path / "registry.invalid:81").mkdir()
    (tmp_path / "registry.invalid:81/hosts.toml").write_text('server = "http://registry.invalid:81"')
    reference = parse_reference("docker://registry.invalid:81/app")
    with open_store(reference, options=StoreOptions(certs_dirs=(tmp_path,))) as store:
        assert store.read(digest, 8, 9) == b"the proxy"


def test_a_proxy_and_headers_by_choice(
    proxy: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name)
    memory = MemoryRegistry()
    digest = memory.add(b"through the proxy")
    proxy.script = lambda request: ranged(request, memory.blobs[digest])
    (tmp_path / "registry.invalid:81").mkdir()
    (tmp_path / "registry.invalid:81/hosts.toml").write_text('server = "http://registry.invalid:81"')
    options = StoreOptions(
        certs_dirs=(tmp_path,),
        proxy=f"http://me:word@{proxy.host}",
        headers=(("X-Dragonfly-Tag", "lazyfs"),),
    )
    with open_store(parse_reference("docker://registry.invalid:81/app"), options=options) as store:
        assert store.read(digest, 8, 9) == b"the proxy"
    (request,) = proxy.seen
    assert request.target == f"http://registry.invalid:81/v2/app/blobs/{digest}"
    assert request.headers["x-dragonfly-tag"] == "lazyfs"
    assert request.headers["proxy-authorization"] == "Basic bWU6d29yZA=="


def test_a_proxy_that_gives_no_way(proxy: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.script = lambda _: Reply(403)
    reference = parse_reference("docker://registry.invalid/app")
    with open_store(reference) as store:
        with pytest.raises(StoreError, match="answered '403'") as caught:
            store.tags()
        assert "HTTPS_PROXY" in caught.value.hint
        assert "p:w" not in caught.value.message
        assert {seen.target for seen in proxy.seen} == {"registry.invalid:443"}
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with open_store(reference) as store, pytest.raises(StoreError, match="its name is not known"):
        store.tags()
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with open_store(reference) as store, pytest.raises(StoreError, match="its proxy is not http"):
        store.tags()
