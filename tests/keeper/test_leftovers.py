"""What an unclean stop leaves is found and taken away; and after a reboot all goes on from what is cached."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import copy_tree
from lazyfs.cli.leftovers import find_leftovers
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use, ensure_daemon
from lazyfs.mount.images import mount_view, mount_writable, unmount_image
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import open_store, parse_reference
from tests.daemon.processes import PATIENCE, daemons, end, keepers, kill
from tests.registry import needs_registry, run_registry

from .conftest import CONTENT, Mounted

pytestmark = pytest.mark.root


def _ignore(blob: object, copied: bool) -> None:
    pass


def doctor(paths: NodePaths, *options: str) -> str:
    command = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(paths.root), "doctor", *options]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    return said.stdout + said.stderr


def test_a_living_node_leaves_nothing(mounted: Mounted) -> None:
    assert mounted.read() == CONTENT
    assert find_leftovers(mounted.paths) == []
    said = doctor(mounted.paths)
    assert "leftovers: nothing is left behind" in said
    assert "daemon: runs as root; restarts: 0" in said


def test_a_node_that_was_killed_as_a_whole(mounted: Mounted, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    mount_writable(mounted.paths, mounted.image, overlay, mounted.paths.mounts / "rw-0123456789ab")
    kill(mounted.paths)
    torn = mounted.paths.tocs / ".new-abc.1"
    torn.touch()
    os.utime(torn, (0, 0))
    said = doctor(mounted.paths)
    for words in (f"mount {mounted.target}", f"mount {overlay}", "socket", "half written"):
        assert words in said
    repaired = doctor(mounted.paths, "--repair")
    assert f"mended: mount {mounted.target}, whose node has ended" in repaired
    assert "leftovers: nothing is left behind" in repaired
    for place in (mounted.paths.root, mounted.target, overlay):
        assert list_mounts(place) == []
    assert list(mounted.paths.mounts.iterdir()) == []
    assert not torn.exists()
    assert not mounted.paths.socket.exists()


def _kill_daemon(mounted: Mounted) -> None:
    end([mounted.pid()])


def _kill_keeper(mounted: Mounted) -> None:
    end(keepers(mounted.paths))


def _kill_node(mounted: Mounted) -> None:
    kill(mounted.paths)


def _reboot(mounted: Mounted) -> None:
    """It leaves the files, and nothing else."""
    kill(mounted.paths)
    for place in (mounted.target, mounted.target.with_name("overlay"), mounted.paths.root):
        for entry in reversed(list_mounts(place)):
            unmount(entry.target, detach=True)


@pytest.mark.parametrize("stop", [_kill_daemon, _kill_keeper, _kill_node, _reboot])
def test_nothing_is_left_of_any_unclean_stop(
    mounted: Mounted, tmp_path: Path, stop: Callable[[Mounted], None]
) -> None:
    paths, overlay = mounted.paths, tmp_path / "overlay"
    overlay.mkdir()
    mount_writable(paths, mounted.image, overlay, paths.mounts / "rw-0123456789ab")
    stop(mounted)
    torn = [
        directory / ".new-abc.1"
        for directory in (paths.root, paths.tocs, paths.seen, paths.signatures, paths.proofs / "right")
    ]
    for file in torn:
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (0, 0))
    doctor(paths, "--repair")
    assert find_leftovers(paths) == []
    assert not any(file.exists() for file in torn)
    serves = stop in (_kill_daemon, _kill_keeper)
    assert len(keepers(paths)) == len(daemons(paths)) == int(serves)
    if serves:
        assert mounted.read() == CONTENT
        unmount_image(paths, overlay)
    else:
        assert [list_mounts(place) for place in (paths.root, mounted.target, overlay)] == [[], [], []]
        assert list(paths.mounts.iterdir()) == []
    # And all works again.
    again = tmp_path / "again"
    again.mkdir()
    with daemon_in_use(paths) as client:
        mount_view(paths, client.open_image(str(mounted.image["reference"])), again)
    assert (again / "big").read_bytes() == CONTENT
    unmount_image(paths, again)


def test_a_daemon_without_keeper(mounted: Mounted) -> None:
    end(keepers(mounted.paths))
    assert "runs without keeper" in doctor(mounted.paths)
    assert "mended: a daemon without keeper" in doctor(mounted.paths, "--repair")
    assert len(keepers(mounted.paths)) == len(daemons(mounted.paths)) == 1
    assert mounted.read() == CONTENT


def test_a_daemon_that_does_not_come_up(mounted: Mounted) -> None:
    mounted.paths.settings.write_text("[cache]\nlimit = 'nonsense'\n")
    pid = mounted.pid()
    end([pid])
    said = doctor(mounted.paths)
    assert f"FAIL  daemon: does not serve: daemon {pid}" in said or "ended with code" in said
    mounted.paths.settings.unlink()
    assert mounted.read() == CONTENT


def test_a_damaged_state_is_put_aside(mounted: Mounted) -> None:
    """What is mounted is lost then; numbers are not given twice, and what is mounted anew works."""
    database = mounted.paths.state / "node.db"
    (pid,) = daemons(mounted.paths)
    numbers = mounted.image["layers"]
    assert isinstance(numbers, list)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(b"not a database, " * 1000)
    end([pid])
    mounted.pid()
    assert "put aside" in mounted.paths.log.read_text()
    image = ensure_daemon(mounted.paths).open_image(str(mounted.image["reference"]))
    assert min(image["layers"]) > max(numbers) + 1_000_000
    assert "node.db.damaged, put aside" in doctor(mounted.paths)
    assert "leftovers: nothing is left behind" in doctor(mounted.paths, "--repair")
    unmount_image(mounted.paths, mounted.target)
    mount_view(mounted.paths, image, mounted.target)
    assert mounted.read() == CONTENT


@needs_registry
def test_after_a_reboot_without_network(paths: NodePaths, layout: Path, tmp_path: Path) -> None:
    """The registry is away; what was opened by its tag is opened as it was, and read from the cache."""
    target = tmp_path / "mounted"
    target.mkdir()
    with run_registry(tmp_path / "registry") as registry:
        reference = f"docker://{registry.host}/app:lazy"
        source, destination = parse_reference(f"oci:{layout}:lazy"), parse_reference(reference)
        with open_store(source) as from_store, open_store(destination, create=True) as to_store:
            to_store.put_tag("lazy", copy_tree(from_store, from_store.resolve("lazy"), to_store, _ignore))
        with daemon_in_use(paths) as client:
            mount_view(paths, client.open_image(reference), target)
        assert (target / "big").read_bytes() == CONTENT
        unmount_image(paths, target)
        DaemonClient(paths).shutdown()
    # What a reboot takes away: no process, no mount, and bootstraps of an earlier boot are not used.
    shutil.rmtree(paths.bootstraps)
    with daemon_in_use(paths) as client:
        mount_view(paths, client.open_image(reference), target)
    assert (target / "big").read_bytes() == CONTENT
    assert "is opened as it was last" in paths.log.read_text()
    unmount_image(paths, target)
