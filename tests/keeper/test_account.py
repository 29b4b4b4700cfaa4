"""The daemon as its own user, with nothing that it does not need."""

import os
import pwd
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use
from lazyfs.errors import UsageError
from lazyfs.keeper import account
from lazyfs.keeper.client import KeeperClient, NoKeeperError
from lazyfs.mount.images import find_image_mounts, mount_view, unmount_image
from tests.daemon.processes import PATIENCE, REPOSITORY, end
from tests.waiting import wait_until

from .conftest import CONTENT, Mounted

pytestmark = pytest.mark.root

USER = "nobody"


@pytest.fixture
def reachable(layout: Path, tmp_path: Path) -> Path:
    """The images where another user can read them."""
    for directory in (*layout.parents, *tmp_path.parents, tmp_path):
        directory.chmod(directory.stat().st_mode | 0o111)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    return layout


@pytest.fixture(scope="session")
def interpreter() -> str:
    """A Python that another user may read; that of the tests may lie in root's home."""
    for program in (sys.executable, "/usr/bin/python3"):
        script = "from lazyfs.daemon.privileges import drop; drop(sys.argv[1]); import lazyfs.daemon.service"
        command = [program, "-c", f"import sys; {script}", USER]
        if not subprocess.run(
            command, env=environment(), check=False, capture_output=True, cwd="/"
        ).returncode:
            return program
    pytest.skip("no Python with the packages of the daemon that another user may read")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *site.getsitepackages()])}


@contextmanager
def node_of(user: str, paths: NodePaths, python: str) -> Iterator[None]:
    """A node in the foreground, as a service starts it."""
    paths.root.mkdir(exist_ok=True)
    with paths.log.open("ab") as log:
        command = [python, "-m", "lazyfs.keeper", "--root", str(paths.root), "--user", user]
        process = subprocess.Popen(command, env=environment(), stderr=log, cwd="/")
    try:
        wait_until(lambda: process.poll() is not None or serves(paths), "a daemon that serves")
        yield
        DaemonClient(paths).shutdown()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def serves(paths: NodePaths) -> bool:
    try:
        daemons = KeeperClient(paths).status()["daemons"]
    except NoKeeperError:
        return False
    return any(each["stage"] == "serving" for each in daemons)


@pytest.fixture
def as_nobody(paths: NodePaths, reachable: Path, tmp_path: Path, interpreter: str) -> Iterator[Mounted]:
    target = tmp_path / "mounted"
    target.mkdir()
    with node_of(USER, paths, interpreter):
        with daemon_in_use(paths) as client:
            image = client.open_image(f"oci:{reachable}:lazy")
            mount_view(paths, image, target)
        yield Mounted(paths, image, target)
        unmount_image(paths, target)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_may_nothing(as_nobody: Mounted) -> None:
    entry = pwd.getpwnam(USER)
    for _ in range(2):
        status = status_of(as_nobody.pid())
        assert set(status["Uid"].split()) == {str(entry.pw_uid)}
        assert set(status["Gid"].split()) == {str(entry.pw_gid)}
        assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert as_nobody.read() == CONTENT
        end([as_nobody.pid()])
        wait_until(as_nobody.serving, "the next daemon")


def test_pages_are_given_to_the_kernel_without_rights(as_nobody: Mounted) -> None:
    with (as_nobody.target / "big").open("rb") as file:
        assert file.read() == CONTENT
    # The cache has what was read a moment after its reader.
    wait_until(lambda: all(each["present_bytes"] == each["bytes"] for each in layers_of(as_nobody)))


def layers_of(mounted: Mounted) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = DaemonClient(mounted.paths).status()["layers"]
    assert layers
    return layers


def test_what_it_writes_is_its_own_and_nobody_elses(as_nobody: Mounted) -> None:
    assert as_nobody.read() == CONTENT
    entry = pwd.getpwnam(USER)
    paths = as_nobody.paths
    for directory in (paths.cache, paths.tocs, paths.documents, paths.state, paths.bootstraps):
        assert directory.stat().st_uid == entry.pw_uid
        assert directory.stat().st_mode & 0o077 == 0
    for kept in (paths.root, paths.images, paths.fuse.parent, paths.socket, paths.keeper_socket, paths.lock):
        assert kept.stat().st_uid == 0


def test_what_root_had_cached_changes_hands(
    paths: NodePaths, reachable: Path, tmp_path: Path, interpreter: str
) -> None:
    """And back; a symbolic link among it is not followed."""
    target, outside = tmp_path / "mounted", tmp_path / "outside"
    target.mkdir()
    outside.touch()
    for user in ("root", USER, "root"):
        with node_of(user, paths, interpreter):
            with daemon_in_use(paths) as client:
                mount_view(paths, client.open_image(f"oci:{reachable}:lazy"), target)
            assert (target / "big").read_bytes() == CONTENT
            unmount_image(paths, target)
        assert {path.lstat().st_uid for path in paths.cache.rglob("*")} == {pwd.getpwnam(user).pw_uid}
        if not (paths.cache / "link").is_symlink():
            (paths.cache / "link").symlink_to(outside)
    assert outside.stat().st_uid == 0


def test_code_that_its_user_cannot_read(paths: NodePaths, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copytree(REPOSITORY / "lazyfs", hidden / "lazyfs")
    script = "import sys; from lazyfs.daemon.privileges import drop; drop(sys.argv[1])"
    said = subprocess.run(
        [sys.executable, "-c", script, USER],
        env=os.environ | {"PYTHONPATH": str(hidden)},
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert "which the daemon is made of" in said.stderr


def test_root_keeps_only_reading(mounted: Mounted) -> None:
    status = status_of(mounted.pid())
    assert int(status["CapEff"], 16) == 1 << 2
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(account.VARIABLE, raising=False)
    monkeypatch.setattr(account, "DEFAULT_ACCOUNT", "no-such-user")
    assert account.choose(None).name == "root"
    monkeypatch.setattr(account, "DEFAULT_ACCOUNT", USER)
    assert account.choose(None).name == USER
    assert account.choose("root").uid == 0
    with pytest.raises(UsageError, match="no user ghost"):
        account.choose("ghost")


def test_a_group_may_use_the_control_socket(paths: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp

    from lazyfs.daemon.client import ensure_daemon

    name = grp.getgrgid(pwd.getpwnam(USER).pw_gid).gr_name
    monkeypatch.setenv("LAZYFS_GROUP", name)
    ensure_daemon(paths)
    status = paths.socket.stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o660, grp.getgrnam(name).gr_gid)
    assert paths.keeper_socket.stat().st_mode & 0o777 == 0o600


def test_what_it_has_whole_is_mounted_from_its_cache(as_nobody: Mounted, tmp_path: Path) -> None:
    """And stays there while it is: who may nothing else may ask for a lease on a file of its own."""
    paths, client, target = as_nobody.paths, DaemonClient(as_nobody.paths), as_nobody.target
    reference = as_nobody.image["reference"]
    client.ask("POST /v1/cache/warm", {"reference": reference, "directory": "/", "after": 0, "seconds": 30})
    unmount_image(paths, target)
    with daemon_in_use(paths):
        mount_view(paths, client.open_image(str(reference)), target)
    (mount,) = find_image_mounts(paths, str(as_nobody.image["key"]))
    assert mount.name.endswith("-direct")
    end([as_nobody.pid()])
    assert as_nobody.pid()
    assert client.ask("POST /v1/cache/prune", {"size": 0})["chunks"] == 0
    assert as_nobody.read() == CONTENT
    unmount_image(paths, target)
    assert client.ask("POST /v1/cache/prune", {"size": 0})["chunks"] > 0
    mount_view(paths, client.open_image(str(reference)), target)
