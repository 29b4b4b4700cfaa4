"""Where passwords are found: files in their order, keys from the most specific on, helper programs."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import LazyfsError, StoreError, UsageError
from lazyfs.stores import StoreOptions
from lazyfs.stores.registry import credentials as credentials_module
from lazyfs.stores.registry.credentials import Credentials, find_credentials
from lazyfs.stores.registry.names import parse_repository

OPTIONS = StoreOptions()


def entry(user: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, auths: dict[str, Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": auths, **more}))
    return path


def find(repository: str, options: StoreOptions = OPTIONS) -> Credentials:
    return find_credentials(parse_repository(repository), options)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory with nothing in it."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def test_files_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not find("r.example/app")
    write(home / ".docker/config.json", {"r.example": entry("docker")})
    assert find("r.example/app").user == "docker"
    write(home / "elsewhere/config.json", {"r.example": entry("elsewhere")})
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    assert find("r.example/app").user == "elsewhere"
    write(home / ".config/containers/auth.json", {"r.example": entry("home")})
    assert find("r.example/app").user == "home"
    write(home / "run/containers/auth.json", {"r.example": entry("runtime"), "other.example": {}})
    assert find("r.example/app").user == "runtime"
    chosen = write(home / "chosen.json", {"r.example": entry("chosen")})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(chosen))
    assert find("r.example/app").user == "chosen"
    given = write(home / "given.json", {"r.example": entry("given", "p:w")})
    found = find("r.example/app", StoreOptions(auth_file=given))
    assert (found.user, found.password, found.source) == ("given", "p:w", str(given))


def test_a_file_that_knows_another_registry_is_passed_over(home: Path) -> None:
    write(home / "run/containers/auth.json", {"other.example": entry("other")})
    write(home / ".docker/config.json", {"r.example": entry("docker")})
    assert find("r.example/app").user == "docker"


@pytest.mark.parametrize(
    ("repository", "user"),
    [
        ("r.example/team/app", "app"),
        ("r.example/team/app/part", "app"),
        ("r.example/team/app2", "team"),
        ("r.example/team2", "host"),
        ("r.example:5000/app", "port"),
        ("r.example:5001/app", ""),
        ("busybox", "hub"),
        ("docker.io/team/app", "hub-team"),
        ("old.example/app", "old"),
    ],
)
def test_the_most_specific_key_decides(home: Path, repository: str, user: str) -> None:
    auths = {
        "r.example": entry("host"),
        "r.example/team": entry("team"),
        "r.example/team/app": entry("app"),
        "r.example:5000": entry("port"),
        "https://index.docker.io/v1/": entry("hub"),
        "docker.io/team": entry("hub-team"),
        "https://old.example/v1/": entry("old"),
    }
    write(home / ".docker/config.json", auths)
    assert find(repository).user == user


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[]",
        '{"auths": []}',
        '{"auths": {"r.example": {"auth": "***"}}}',
        '{"auths": {"r.example": {"auth": "c2VjcmV0"}}}',
        '{"auths": {"r.example": {"auth": 7}}}',
        '{"auths": {"r.example": "secret"}}',
        '{"credHelpers": {"r.example": "../../bin/sh"}}',
        '{"credHelpers": ["secret"]}',
    ],
)
def test_a_file_that_cannot_be_read_is_named(home: Path, content: str) -> None:
    path = home / "auth.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=str(path)) as caught:
        find("r.example/app", StoreOptions(auth_file=path))
    assert caught.value.hint
    assert "secret" not in caught.value.message


def test_a_file_that_was_named_must_be_there(home: Path) -> None:
    for path in (home / "absent", home):
        with pytest.raises(UsageError, match=str(path)) as caught:
            find("r.example/app", StoreOptions(auth_file=path))
        assert "skopeo login r.example" in caught.value.hint


def test_credentials_show_nothing(home: Path) -> None:
    write(
        home / ".docker/config.json", {"r.example": entry("somebody", "secret") | {"identitytoken": "secret"}}
    )
    assert "secret" not in repr(find("r.example/app"))


# Helpers


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program docker-credential-tests, to be written."""
    path = home / "bin/docker-credential-tests"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


def answer(helper: Path, script: str) -> None:
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)


KNOWS = 'read -r name; echo "$1 $name" >>"$0.log"; echo \'{"ServerURL":"x","Username":"somebody","Secret":"s3cret"}\''


@pytest.mark.parametrize("settings", [{"credsStore": "tests"}, {"credHelpers": {"r.example": "tests"}}])
def test_a_helper_is_asked(home: Path, helper: Path, settings: dict[str, Any]) -> None:
    answer(helper, KNOWS)
    write(home / ".docker/config.json", {"r.example": {}}, **settings)
    found = find("r.example/app")
    assert (found.user, found.password, found.source) == ("somebody", "s3cret", "docker-credential-tests")
    assert Path(f"{helper}.log").read_text() == "get r.example\n"


def test_a_helper_knows_docker_io_by_another_name(home: Path, helper: Path) -> None:
    answer(helper, KNOWS)
    write(home / ".docker/config.json", {}, credHelpers={"https://index.docker.io/v1/": "tests"})
    assert find("busybox").user == "somebody"
    assert Path(f"{helper}.log").read_text() == "get https://index.docker.io/v1/\n"


def test_a_helper_gives_an_identity_token(home: Path, helper: Path) -> None:
    answer(helper, 'echo \'{"Username":"<token>","Secret":"s3cret"}\'')
    write(home / ".docker/config.json", {}, credsStore="tests")
    found = find("r.example/app")
    assert (found.user, found.identity_token) == ("", "s3cret")


def test_a_helper_that_knows_nothing(home: Path, helper: Path) -> None:
    answer(helper, "echo credentials not found in native keychain; exit 1")
    write(home / ".docker/config.json", {"r.example": entry("file")}, credsStore="tests")
    assert find("r.example/app").user == "file"
    assert not find("other.example/app")


@pytest.mark.parametrize(
    ("script", "message", "seconds"),
    [
        ("echo 'the keyring\n is locked'; exit 7", "exit code 7", 30.0),
        ("echo s3cret", "did not answer as it must", 30.0),
        ('echo \'{"Username": 1, "Secret": "s3cret"}\'', "did not answer as it must", 30.0),
        ("sleep 1000 & sleep 1000", "did not answer within", 0.3),
    ],
)
def test_a_helper_that_fails(
    home: Path, helper: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str, seconds: float
) -> None:
    monkeypatch.setattr(credentials_module, "_HELPER_SECONDS", seconds)
    answer(helper, script)
    write(home / ".docker/config.json", {}, credsStore="tests")
    with pytest.raises(StoreError, match=message) as caught:
        find("r.example/app")
    assert "docker-credential-tests" in caught.value.message
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert "\n" not in caught.value.message


def test_a_helper_that_is_not_installed(home: Path) -> None:
    write(home / ".docker/config.json", {}, credsStore="absent-one")
    with pytest.raises(LazyfsError, match="docker-credential-absent-one") as caught:
        find("r.example/app")
    assert "install it" in caught.value.hint
