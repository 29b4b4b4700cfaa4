"""Root is not led out of the directories of the daemon's account, whatever that has put there, nor made to wait."""

import base64
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs import beneath
from lazyfs.beneath import open_beneath, read_beneath
from lazyfs.cli.leftovers import mend_leftovers
from lazyfs.config import NodePaths
from lazyfs.daemon.verdicts import Verdicts
from lazyfs.errors import IntegrityError, NodeError
from lazyfs.keeper.account import Account, give
from lazyfs.mount import images, ladder
from lazyfs.mount.images import mount_view
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.stores.registry.credentials import Credentials
from lazyfs.stores.registry.learned import keep_credentials
from lazyfs.stores.registry.names import RepositoryName

pytestmark = pytest.mark.usefixtures("time_limit")
SECRET = "root's own words"
KEY = "ab" * 12


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "outside" / "secret"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    root = tmp_path / "root"
    for directory in ("proofs/wrong", "credentials", "bootstrap", "fuse", "m", "toc", "target"):
        (root / directory).mkdir(parents=True)
    return NodePaths(root)


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "step by step":
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 100_000)  # ENOSYS, as before Linux 5.6
    yield


@pytest.mark.usefixtures("way")
def test_nothing_leads_out(tmp_path: Path, secret: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_text("right")
    (inside / "link").symlink_to(secret)
    (inside / "a" / "up").symlink_to(secret.parent)
    (inside / "a" / "here").symlink_to("b")
    assert read_beneath(inside, "a/b/file", 5) == b"right"
    assert read_beneath(inside, "./a/./b/file", 5) == b"right"
    for name in (
        "link",
        "a/up/secret",
        "a/here/file",
        "../outside/secret",
        str(secret),
        "a/../link",
        "",
        "x\0",
    ):
        for flags in (os.O_RDONLY, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY):
            with pytest.raises(OSError):
                os.close(open_beneath(inside, name, flags))


@pytest.mark.usefixtures("way")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(11))
    for name in ("fifo", "large", "."):
        with pytest.raises(OSError):
            read_beneath(tmp_path, name, 10)


def test_a_verdict_is_no_way_to_read_other_files(paths: NodePaths, secret: Path) -> None:
    verdicts = Verdicts(paths.proofs)
    verdicts.keep_wrong("ab", "a reason\nof two lines")
    with pytest.raises(IntegrityError, match="a reason of two lines"):
        verdicts.refuse_wrong(["ab"])
    (paths.proofs / "wrong" / "cd").symlink_to(secret)
    os.mkfifo(paths.proofs / "wrong" / "ef")
    for toc in ("cd", "ef"):
        with pytest.raises(IntegrityError) as caught:
            verdicts.refuse_wrong([toc])
        assert SECRET not in caught.value.message


def test_verdicts_that_lie_elsewhere_are_none(paths: NodePaths, secret: Path) -> None:
    (paths.proofs / "wrong").rmdir()
    (paths.proofs / "wrong").symlink_to(secret.parent)
    with pytest.raises(NodeError):
        Verdicts(paths.proofs).refuse_wrong(["secret"])


def test_passwords_of_another_file_are_not_taken_over(paths: NodePaths, secret: Path) -> None:
    secret.write_text(json.dumps({"auths": {"r.example": {"auth": base64.b64encode(b"root:word").decode()}}}))
    paths.credentials.symlink_to(secret)
    keep_credentials(paths.credentials, RepositoryName("other.example", "a"), Credentials("a", "b"))
    assert not paths.credentials.is_symlink()
    assert list(json.loads(paths.credentials.read_bytes())["auths"]) == ["other.example/a"]
    assert "r.example" in secret.read_text()


def test_passwords_are_not_written_into_another_file(paths: NodePaths, secret: Path) -> None:
    for planted in (os.symlink, os.link):
        planted(secret, paths.credentials.with_name(f".{paths.credentials.name}.new"))
        keep_credentials(paths.credentials, RepositoryName("r.example", "a"), Credentials("a", "b"))
        assert secret.read_text() == SECRET
        assert "r.example/a" in paths.credentials.read_text()


@pytest.mark.root
def test_another_file_is_not_given_to_the_daemon(paths: NodePaths, secret: Path) -> None:
    daemon = pwd.getpwnam("nobody")
    os.chown(paths.credentials.parent, daemon.pw_uid, daemon.pw_gid)
    lock = paths.credentials.with_name(f".{paths.credentials.name}.lock")
    os.link(secret, lock)
    with pytest.raises(NodeError):
        keep_credentials(paths.credentials, RepositoryName("r.example", "a"), Credentials("a", "b"))
    assert secret.stat().st_uid == 0
    (paths.tocs / "link").symlink_to(secret)
    os.link(secret, paths.tocs / "hard")
    (paths.tocs / "own").touch()
    give(paths, Account("nobody", daemon.pw_uid, daemon.pw_gid))
    assert (paths.tocs / "own").stat().st_uid == daemon.pw_uid
    assert secret.stat().st_uid == 0


def answer(paths: NodePaths, **changes: Any) -> dict[str, Any]:
    """As a daemon answers that is somebody else's by now."""
    return {
        "key": KEY,
        "mode": ladder.FILE,
        "reference": "oci:x:y",
        "bootstrap": str(paths.bootstraps / KEY),
        "devices": [str(paths.fuse / "2")],
        "view": str(paths.fuse / "view"),
        **changes,
    }


@pytest.mark.parametrize("mode", [ladder.FILE, ladder.LOOP, ladder.TREE])
def test_no_mount_of_what_lies_elsewhere(paths: NodePaths, secret: Path, mode: str) -> None:
    (paths.fuse / "2").touch()
    (paths.fuse / "link").symlink_to(secret.parent)
    (paths.bootstraps / "link").symlink_to(secret.parent)
    hostile = [str(secret), "secret", f"{paths.fuse}/../../outside", f"{paths.fuse}/link"]
    names = {ladder.FILE: ["bootstrap", "devices"]}.get(mode, ["view"])
    for name in names:
        for value in [*hostile, f"{paths.bootstraps}/link/secret", ""]:
            image = answer(paths, mode=mode, **{name: [value] if name == "devices" else value})
            with pytest.raises(NodeError):
                images._mount_image(paths, image, (), paths.root / "target")
    assert list_mounts(paths.root) == []


@pytest.mark.parametrize("key", ["../../outside/x", "", "a/b", "a\0b", "x" * 300])
def test_no_mount_point_elsewhere(paths: NodePaths, secret: Path, key: str) -> None:
    with pytest.raises(NodeError):
        mount_view(paths, answer(paths, key=key), paths.root / "target")
    with pytest.raises(NodeError):
        mount_view(paths, answer(paths, mode="/../x"), paths.root / "target")
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_only_own_leftovers_are_removed(paths: NodePaths, secret: Path) -> None:
    torn = secret.with_name(".new-x")
    torn.touch()
    os.utime(torn, (0, 0))
    (paths.bootstraps / "link").symlink_to(secret.parent)
    own = paths.tocs / ".new-y"
    own.touch()
    os.utime(own, (0, 0))
    list(mend_leftovers(paths))
    assert torn.exists()
    assert not own.exists()
