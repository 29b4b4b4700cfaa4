"""Passwords that engines used for pulls: kept for the node, found first, renewed."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.errors import NodeError
from lazyfs.stores import StoreOptions
from lazyfs.stores.registry import learned
from lazyfs.stores.registry.credentials import Credentials, find_credentials
from lazyfs.stores.registry.learned import keep_credentials, take_back
from lazyfs.stores.registry.names import parse_repository
from tests.registry import write_auth

APP, OTHER = parse_repository("r.example/team/app"), parse_repository("r.example/team/other")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(
        "REGISTRY_AUTH_FILE", str(write_auth(tmp_path / "auth.json", "r.example", "logged-in"))
    )
    return tmp_path / "node" / "credentials" / "auth.json"


def found(path: Path, repository: object = APP) -> Credentials:
    return find_credentials(parse_repository(str(repository)), StoreOptions(learned_file=path))


def test_kept_for_one_repository_and_found_first(path: Path) -> None:
    assert found(path).user == "logged-in"
    keep_credentials(path, APP, Credentials("puller", "first"))
    assert (found(path).user, found(path).password) == ("puller", "first")
    assert found(path).source == str(path)
    assert found(path, OTHER).user == "logged-in"


def test_a_later_pull_renews(path: Path) -> None:
    keep_credentials(path, APP, Credentials("puller", "first"))
    keep_credentials(path, APP, Credentials(identity_token="a token"))
    assert (found(path).user, found(path).identity_token) == ("", "a token")
    keep_credentials(path, OTHER, Credentials(registry_token="another"))
    assert (found(path).identity_token, found(path, OTHER).registry_token) == ("a token", "another")


def test_for_root_alone_from_the_first_byte_on(path: Path) -> None:
    keep_credentials(path, APP, Credentials("puller", "secret"))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_oldest_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MAX_ENTRIES", 2)
    for name in ("a", "b", "a", "c"):
        keep_credentials(path, parse_repository(f"r.example/{name}"), Credentials(name, "x"))
    assert list(json.loads(path.read_text())["auths"]) == ["r.example/a", "r.example/c"]


def test_many_at_once(path: Path) -> None:
    names = [f"r.example/app{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda name: keep_credentials(path, parse_repository(name), Credentials(name, "x")), names
            )
        )
    assert sorted(json.loads(path.read_text())["auths"]) == sorted(names)


def test_what_did_not_open_it_is_taken_back(path: Path) -> None:
    wrong, right = Credentials("puller", "wrong"), Credentials("puller", "right")
    before = keep_credentials(path, APP, wrong)
    take_back(path, APP, wrong, before)
    assert found(path).user == "logged-in"
    keep_credentials(path, APP, right)
    before = keep_credentials(path, APP, wrong)
    take_back(path, APP, wrong, before)
    assert found(path).password == "right"
    before = keep_credentials(path, APP, wrong)
    keep_credentials(path, APP, Credentials("somebody", "else"))
    take_back(path, APP, wrong, before)
    assert found(path).user == "somebody"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"auths": 1}', "\xff" * 9])
def test_a_damaged_file_is_written_anew(path: Path, damage: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(damage, encoding="latin-1")
    keep_credentials(path, APP, Credentials("puller", "first"))
    assert found(path).user == "puller"


def test_where_it_cannot_be_written_the_file_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(NodeError, match=r"auth\.json: "):
        keep_credentials(path, APP, Credentials("puller", "first"))
