"""Section `[stores]` of a node's configuration: names for engines, and mirrors."""

from pathlib import Path

import pytest

from lazyfs.config import NodePaths
from lazyfs.errors import UsageError
from lazyfs.stores.node_stores import DEFAULT_LISTEN, NodeStores, engine_name
from lazyfs.stores.reference import parse_reference

DIGEST = f"sha256:{'a' * 64}"


def read(root: Path, text: str) -> NodeStores:
    (root / "config.toml").write_text(text)
    return NodeStores.read(NodePaths.choose(root))


def test_nothing_is_served_where_nothing_is_said(tmp_path: Path) -> None:
    assert NodeStores.read(NodePaths.choose(tmp_path)) == NodeStores()
    assert read(tmp_path, "[stores]\n") == NodeStores(DEFAULT_LISTEN)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("s3.lazyfs/models/app:v1", "s3://models/app:v1"),
        ("s3.lazyfs/models/a/b/app", "s3://models/a/b/app"),
        (f"s3.lazyfs/ci/team/app@{DIGEST}", f"s3://ci/team/app@{DIGEST}"),
        ("oci.lazyfs/srv/images:v1", "oci:/srv/images:v1"),
        ("oci.lazyfs/srv/images/below:v1", "oci:/srv/images/below:v1"),
        ("127.0.0.1:7957/s3.lazyfs/models/app:v1", "s3://models/app:v1"),
        ("registry.example/models/app:v1", "docker://registry.example/models/app:v1"),
    ],
)
def test_a_name_of_an_engine_leads_to_a_store(tmp_path: Path, name: str, found: str) -> None:
    stores = read(tmp_path, '[stores]\nserve = ["s3://models", "s3://ci/team/", "oci:/srv/images"]')
    reference = stores.locate(parse_reference(f"docker://{name}"))
    assert str(reference) == found
    if reference.transport != "docker":
        assert engine_name(reference) == name.removeprefix("127.0.0.1:7957/")


@pytest.mark.parametrize("name", ["s3.lazyfs/other/app", "s3.lazyfs/ci/teams/app", "oci.lazyfs/srv/imagesx"])
def test_what_is_not_served_is_refused(tmp_path: Path, name: str) -> None:
    stores = read(tmp_path, '[stores]\nserve = ["s3://ci/team", "oci:/srv/images"]')
    with pytest.raises(UsageError, match="in no store that this node serves"):
        stores.locate(parse_reference(f"docker://{name}"))


def test_an_engine_has_no_name_for_capital_letters_or_a_registry() -> None:
    assert engine_name(parse_reference("s3://bucket/Team/app:v1")) is None
    assert engine_name(parse_reference("docker://registry.example/app")) is None


def test_mirrors_are_those_of_the_repository_in_order(tmp_path: Path) -> None:
    stores = read(
        tmp_path,
        """
        [[stores.mirror]]
        of = "docker://registry.example/team/"
        by = ["s3://near/app", "oci:/mnt/images"]
        [[stores.mirror]]
        of = "docker://registry.example"
        by = ["docker://mirror.example/app"]
        """,
    )

    def mirrors(name: str) -> list[str]:
        return [str(each) for each in stores.mirrors_of(parse_reference(name))]

    all_three = ["s3://near/app", "oci:/mnt/images", "docker://mirror.example/app"]
    assert mirrors("docker://registry.example/team/app:v1") == all_three
    assert mirrors(f"docker://registry.example/team/app@{DIGEST}") == all_three
    assert mirrors("docker://registry.example/teams/app") == ["docker://mirror.example/app"]
    assert mirrors("docker://registry.example.org/team/app") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stores = 1", "no section"),
        ("[stores]\nservr = []", "there is no"),
        ("[stores]\nserve = 's3://b'", "serve is no list"),
        ("[stores]\nserve = ['docker://registry.example']", "no bucket or directory"),
        ("[stores]\nserve = ['oci:images']", "no bucket or directory"),
        ("[stores]\nserve = ['oci:/srv/../etc']", "no bucket or directory"),
        ("[stores]\nserve = ['s3://Bucket']", "no bucket or directory"),
        ("[stores]\nserve = [1]", "no bucket or directory"),
        ("[stores]\nlisten = '0.0.0.0:80'", "no loopback address"),
        ("[stores]\nlisten = '127.0.0.1'", "no loopback address"),
        ("[stores]\nlisten = 80", "no loopback address"),
        ("[stores]\nmirror = [1]", "mirror is no table"),
        ("[[stores.mirror]]\nby = []", "`of` is missing"),
        ("[[stores.mirror]]\nof = 'docker://r'\nby = ['nonsense']", "names no transport"),
        ("[[stores.mirror]]\nof = 'docker://r'\nby = [1]", "is no text"),
        ("[[stores.mirror]]\nof = 'docker://r'\nby = ['oci:here']", "not absolute"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert "config.toml" in caught.value.message
