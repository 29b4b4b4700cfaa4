"""Where a node can live, and where it cannot: names, lengths, rights, room."""

import os
import shutil
import signal
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest

from lazyfs.config import MAX_ROOT, NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use, ensure_daemon
from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.mount.images import mount_view, mount_writable, targets, unmount_image
from lazyfs.mount.mountinfo import list_mounts
from tests.waiting import wait_until

from .processes import REPOSITORY, MakePaths, daemons, keepers, open_made

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "name", ["a,b", "a:b", "a b", "a\\b", "a\nb", "lower,upperdir=x", "\udcff\udcfe", "é" * 120, "n" * 250]
)
def test_roots_of_any_name(node_at: MakePaths, tmp_path: Path, made: Path, target: Path, name: str) -> None:
    paths = node_at(tmp_path / name)
    (target / name).mkdir()
    image = open_made(paths, made)
    mount_writable(paths, image, target / name, paths.mounts / "rw")
    (target / name / "text").write_text("written")
    assert [entry.target for entry in targets(paths)] == [target / name]
    with pytest.raises(BusyError):
        DaemonClient(paths).shutdown()
    unmount_image(paths, target / name)
    assert list(paths.mounts.iterdir()) == []
    mount_view(paths, image, target / name)
    assert (target / name / "text").read_text() == "upper"
    unmount_image(paths, target / name)


def test_a_long_root(node_at: MakePaths, tmp_path: Path, made: Path, target: Path) -> None:
    paths = node_at(tmp_path / ("d" * 200) / ("e" * (MAX_ROOT - 202 - len(str(tmp_path)))))
    mount_writable(paths, open_made(paths, made), target, paths.mounts / "rw-0123456789ab")
    assert (target / "text").read_text() == "upper"
    unmount_image(paths, target)
    with pytest.raises(UsageError, match="more than 480"):
        NodePaths.choose(paths.root / ("h" * 200))


def test_a_root_behind_a_symlink(node_at: MakePaths, tmp_path: Path, made: Path, target: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    paths = node_at(tmp_path / "link" / "node")
    assert paths.root == tmp_path / "real" / "node"
    mount_view(paths, open_made(paths, made), target)
    with pytest.raises(BusyError):
        DaemonClient(paths).shutdown()
    unmount_image(paths, target)


def test_a_package_is_missing(paths: NodePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyfuse3.py").write_text("raise ModuleNotFoundError(name='pyfuse3')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/broken:{REPOSITORY}")
    with pytest.raises(NodeError, match="needs the package pyfuse3") as caught:
        ensure_daemon(paths)
    assert "lazyfs[node]" in caught.value.hint


def test_a_root_that_cannot_be(node_at: MakePaths, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for paths in (node_at(tmp_path / "file"), node_at(tmp_path / "file" / "below")):
        with pytest.raises(NodeError, match="file"):
            ensure_daemon(paths)


def test_a_root_in_which_something_stands_in_the_way(node_at: MakePaths, tmp_path: Path) -> None:
    for name in ("fuse", "toc", "bootstrap", "cache"):
        paths = node_at(tmp_path / f"node-{name}")
        paths.root.mkdir()
        (paths.root / name).touch()
        with pytest.raises(NodeError, match=name):
            ensure_daemon(paths)
        assert list_mounts(paths.root) == []


def test_a_full_disk_at_the_start(node_at: MakePaths, tmp_path: Path) -> None:
    mounted = tmp_path / "tmpfs"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=8", "tmpfs", mounted], check=True)
    try:
        with pytest.raises(NodeError, match="No space left") as caught:
            ensure_daemon(node_at(mounted / "node"))
        assert caught.value.hint
        assert list_mounts(mounted / "node") == []
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_others_than_root(paths: NodePaths, tmp_path: Path) -> None:
    ensure_daemon(paths)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        parent.chmod(parent.stat().st_mode | 0o111)
    os.seteuid(65534)
    try:
        with pytest.raises(NodeError, match="Permission denied") as caught:
            DaemonClient(paths).status()
        assert "root" in caught.value.hint
        with pytest.raises(NodeError, match="Permission denied"), daemon_in_use(paths):
            pass
        with pytest.raises(NodeError, match="Permission denied"):
            ensure_daemon(NodePaths(Path("/nowhere")))
    finally:
        os.seteuid(0)


def test_the_working_directory_is_gone(paths: NodePaths, made: Path, tmp_path: Path) -> None:
    client = ensure_daemon(paths)
    (tmp_path / "gone").mkdir()
    with chdir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        with pytest.raises(UsageError, match="working directory"):
            client.open_image(f"oci:{made}:lazy")


@pytest.mark.parametrize("level", ["debug", "nonsense", ""])
def test_log_levels(paths: NodePaths, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFS_LOG", level)
    ensure_daemon(paths)
    assert " INFO " in paths.log.read_text()


def test_cleaned_away_while_it_runs(paths: NodePaths, made: Path) -> None:
    """Somebody removes the node's directory; then the daemon ends all the same."""
    open_made(paths, made)
    pid = keepers(paths)[0]
    for path in paths.root.iterdir():
        if path != paths.fuse:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not daemons(paths), "the daemon's end")
