"""Certificates and mirrors: the files of certs.d, at docker-registry behind TLS and at servers that fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import StoreError, UsageError
from lazyfs.stores import StoreOptions, write_blob
from lazyfs.stores.registry import connection as connection_module
from lazyfs.stores.registry.hosts import Host, Tls, find_hosts
from tests.faults import FaultServer, Tunnel, ranged
from tests.registry import (
    HTPASSWD,
    Certificate,
    Registry,
    issue,
    make_authority,
    needs_registry,
    openssl,
    run_registry,
    skopeo,
    write_auth,
)

from .memory_registry import BLOB, DIGEST, opened_by_certs
from .samples import make_sample, put_sample

pytestmark = pytest.mark.usefixtures("impatient")


# TLS, at docker-registry


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(authority: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with TLS that wants a password."""
    directory = tmp_path_factory.mktemp("secure")
    own = issue(authority, directory, "server")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    tls = {"certificate": str(own.path), "key": str(own.key)}
    with run_registry(directory, auth=auth, tls=tls) as registry:
        yield registry


@pytest.fixture(scope="module")
def mutual(authority: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that knows its clients by their certificates."""
    directory = tmp_path_factory.mktemp("mutual")
    own = issue(authority, directory, "server")
    tls = {"certificate": str(own.path), "key": str(own.key), "clientcas": [str(authority.path)]}
    with run_registry(directory, tls=tls) as registry:
        yield registry


@pytest.fixture
def password(secure: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_auth(tmp_path / "auth.json", secure.host)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    return path


def trust(certs: Path, host: str, authority: Certificate, client: Certificate | None = None) -> Path:
    directory = certs / host
    directory.mkdir()
    (directory / "ca.crt").write_bytes(authority.path.read_bytes())
    if client is not None:
        (directory / "client.cert").write_bytes(client.path.read_bytes())
        (directory / "client.key").write_bytes(client.key.read_bytes())
    return directory


@needs_registry
def test_an_own_authority_is_trusted(
    secure: Registry, authority: Certificate, certs: Path, password: Path
) -> None:
    trust(certs, secure.host, authority)
    with opened_by_certs(secure.host, certs, create=True) as store:
        put_sample(store, make_sample("a"), "v1")
        digest, size = write_blob(store, bytes(100_000))
        assert store.read(digest, 5, size - 5) == bytes(size - 5)
    options = [f"--cert-dir={certs / secure.host}", f"--authfile={password}"]
    shown = skopeo("inspect", "--raw", *options, f"docker://{secure.host}/app:v1")
    assert shown == make_sample("a").manifest


@needs_registry
@pytest.mark.usefixtures("password")
def test_a_stranger_is_not_trusted_and_hears_no_password(secure: Registry, certs: Path) -> None:
    with opened_by_certs(secure.host, certs) as store, pytest.raises(StoreError) as caught:
        store.tags()
    assert f"https://{secure.host}: its certificate is not trusted: unable to get local issuer" in str(
        caught.value
    )
    assert f"/etc/docker/certs.d/{secure.host}/ca.crt" in caught.value.hint


@needs_registry
@pytest.mark.usefixtures("password")
def test_insecure_trusts_anybody(secure: Registry, certs: Path) -> None:
    with opened_by_certs(secure.host, certs, insecure=True) as store:
        store.tags()


@needs_registry
@pytest.mark.usefixtures("password")
def test_hosts_toml_names_authority_and_path(secure: Registry, authority: Certificate, certs: Path) -> None:
    directory = trust(certs, secure.host, authority)
    (directory / "hosts.toml").write_text(f'server = "https://{secure.host}"\nca = "ca.crt"\n')
    with opened_by_certs(secure.host, certs, create=True) as store:
        assert put_sample(store, make_sample("b"), "v2") == make_sample("b").descriptor
    (directory / "hosts.toml").write_text("skip_verify = true\n")
    with opened_by_certs(secure.host, certs) as store:
        assert "v2" in store.tags()
    (directory / "hosts.toml").write_text("")
    with opened_by_certs(secure.host, certs) as store, pytest.raises(StoreError, match="not trusted"):
        store.tags()


@needs_registry
def test_a_client_certificate_opens_a_registry(
    mutual: Registry, authority: Certificate, certs: Path, tmp_path: Path
) -> None:
    trust(certs, mutual.host, authority, issue(authority, tmp_path, "client"))
    with opened_by_certs(mutual.host, certs, create=True) as store:
        put_sample(store, make_sample("a"), "v1")


@needs_registry
def test_without_a_client_certificate_the_remedy_is_named(
    mutual: Registry, authority: Certificate, certs: Path
) -> None:
    trust(certs, mutual.host, authority)
    with (
        opened_by_certs(mutual.host, certs) as store,
        pytest.raises(StoreError, match="TLS failed") as caught,
    ):
        store.tags()
    assert f"/etc/docker/certs.d/{mutual.host}/client.cert" in caught.value.hint


@needs_registry
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ca.crt", "no certificate"),
        ("client.cert", "no certificate"),
        ("client.key", ""),
        ("client.key", None),
    ],
)
def test_a_file_that_is_no_certificate_is_named(
    secure: Registry, authority: Certificate, certs: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    directory = trust(certs, secure.host, authority, issue(authority, tmp_path, "client"))
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(content)
    with (
        opened_by_certs(secure.host, certs) as store,
        pytest.raises(UsageError, match=str(directory)) as caught,
    ):
        store.tags()
    assert "PEM" in caught.value.hint


@needs_registry
def test_a_key_with_a_password_is_not_asked_for(
    mutual: Registry, authority: Certificate, certs: Path, tmp_path: Path
) -> None:
    client = issue(authority, tmp_path, "client")
    directory = trust(certs, mutual.host, authority, client)
    openssl("ec", "-aes128", "-passout", "pass:x", "-in", client.key, "-out", directory / "client.key")
    with opened_by_certs(mutual.host, certs) as store, pytest.raises(UsageError, match=r"client\.cert"):
        store.tags()


@needs_registry
@pytest.mark.usefixtures("password")
def test_tls_through_a_proxy(
    secure: Registry, authority: Certificate, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(certs, secure.host, authority)
    monkeypatch.setattr(connection_module, "is_loopback", lambda _: False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Tunnel() as proxy:
        monkeypatch.setenv("https_proxy", proxy.host)
        with opened_by_certs(secure.host, certs, create=True) as store:
            digest, size = write_blob(store, bytes(100_000))
            assert store.read(digest, 0, size) == bytes(size)
        assert proxy.targets == [secure.host]


# Plain HTTP


def test_what_has_a_certificate_set_up_is_never_spoken_to_without(
    authority: Certificate, certs: Path
) -> None:
    with FaultServer(lambda request: ranged(request, BLOB)) as server:
        trust(certs, server.host, authority)
        with opened_by_certs(server.host, certs) as store, pytest.raises(StoreError, match="TLS failed"):
            store.read(DIGEST, 0, 10)
        assert server.seen == []


# Which hosts


def hosts(registry: str, certs: Path, **options: bool) -> list[Host]:
    return find_hosts(registry, StoreOptions(certs_dirs=(certs,), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("registry", "scheme", "name", "port"),
    [
        ("docker.io", "https", "registry-1.docker.io", None),
        ("r.example", "https", "r.example", None),
        ("r.example:5000", "https", "r.example", 5000),
        ("localhost:5000", "", "localhost", 5000),
        ("127.3.2.1", "", "127.3.2.1", None),
        ("[::1]:5000", "", "::1", 5000),
        ("[2001:db8::1]", "https", "2001:db8::1", None),
    ],
)
def test_a_registry_without_files(certs: Path, registry: str, scheme: str, name: str, port: int) -> None:
    assert hosts(registry, certs) == [Host(scheme, name, port)]
    [insecure] = hosts(registry, certs, insecure=True)
    assert (insecure.scheme, insecure.tls.verify) == ("", False)


def test_a_hosts_toml_as_containerd_describes_it(certs: Path) -> None:
    directory = certs / "r.example_5000_"
    directory.mkdir()
    (directory / "hosts.toml").write_text(
        """
        server = "https://r.example:5000"
        ca = ["/etc/ca.pem", "own.pem"]

        [host."https://mirror.example:8443/cache"]
          capabilities = ["pull", "resolve"]
          client = [["client.cert", "client.key"], ["both.pem", ""]]
          [host."https://mirror.example:8443/cache".header]
            X-Custom = ["one", "two"]

        [host."http://plain.example/v2/sub"]
          override_path = true
          capabilities = ["pull"]
          client = "both.pem"

        [host."second.example"]
          skip_verify = true
        """
    )
    both = directory / "both.pem"
    own_tls = Tls((Path("/etc/ca.pem"), directory / "own.pem"))
    client = ((directory / "client.cert", directory / "client.key"), (both, both))
    mirror, plain, second, own = hosts("r.example:5000", certs)
    assert (str(mirror), mirror.prefix, mirror.is_mirror) == ("mirror.example:8443", "/cache/v2", True)
    assert mirror.capabilities == {"pull", "resolve"}
    assert (mirror.tls, mirror.headers) == (Tls(client=client), {"X-Custom": "one, two"})
    assert (plain.scheme, plain.prefix, plain.tls.client) == ("http", "/v2/sub", ((both, both),))
    assert (second.scheme, second.prefix, second.tls.verify) == ("https", "/v2", False)
    assert own == Host("https", "r.example", 5000, tls=own_tls)


def test_a_default_for_all_registries(certs: Path) -> None:
    (certs / "_default").mkdir()
    (certs / "_default/hosts.toml").write_text('[host."https://cache.example"]\n')
    assert [str(host) for host in hosts("docker.io", certs)] == ["cache.example", "registry-1.docker.io"]
    (certs / "own.example").mkdir()
    assert [str(host) for host in hosts("own.example", certs)] == ["own.example"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = [", "is not TOML"),
        ("server = 1", "server must be a text"),
        ('server = "ftp://r.example"', "must be https://HOST"),
        ('server = "https://r.example:x"', "must be https://HOST"),
        ('[host."https://"]', "must be https://HOST"),
        ("host = 1", "host must be a table"),
        ("[host]\nx = 1", "must be a table"),
        ('[host."r.example"]\ncapabilities = ["fly"]', "capabilities must be of pull, push, resolve"),
        ('[host."r.example"]\ncapabilities = 1', "must be a text or a list"),
        ('[host."r.example"]\nskip_verify = "yes"', "skip_verify must be true or false"),
        ('[host."r.example"]\nclient = 1', "client must be a file"),
        ('[host."r.example"]\nclient = [["a", "b", "c"]]', "client must be a file"),
        ('[host."r.example".header]\nx = 1', "x must be a text"),
        ("ca = [1]", "ca must be a text"),
        ("#" * (1 << 20) + "#", "has 1048577 bytes"),
    ],
)
def test_a_hosts_toml_that_is_wrong_is_named(certs: Path, content: str, message: str) -> None:
    path = certs / "r.example/hosts.toml"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        hosts("r.example", certs)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_the_home_directory_comes_before_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "containers/certs.d/r.example"
    directory.mkdir(parents=True)
    (directory / "a.crt").touch()
    [host] = find_hosts("r.example", StoreOptions())
    assert host.tls.authorities == (directory / "a.crt",)
