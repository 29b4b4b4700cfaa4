"""Daemons as processes: their start, their end, and whatever comes between."""

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use, ensure_daemon
from lazyfs.errors import BusyError, LazyfsError, NodeError, NotFoundError, UsageError
from lazyfs.mount import images
from lazyfs.mount.images import mount_view, mount_writable, targets, unmount_image
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

from .conftest import LOWER

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 40.0
ENSURE = "import sys, pathlib; from lazyfs.config import NodePaths; from lazyfs.daemon.client import ensure_daemon;"
ENSURE += "print(ensure_daemon(NodePaths(pathlib.Path(sys.argv[1]))).status()['pid'])"

MakePaths = Callable[[Path], NodePaths]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for: {what}"
        time.sleep(0.002)


def daemons(paths: NodePaths) -> list[int]:
    """The processes that are daemons of this root."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"lazyfs.daemon" in words and os.fsencode(paths.root) in words:
                found.append(int(process.name))
    return found


def kill(paths: NodePaths, number: signal.Signals = signal.SIGKILL) -> None:
    """All daemons of this root. A test that ends one this way does not want it back."""
    for pid in daemons(paths):
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            signal.pidfd_send_signal(process, number)
            # When all its threads have ended, that is.
            assert select.select([process], [], [], PATIENCE)[0]
            os.close(process)


@pytest.fixture
def node_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePaths]:
    """The paths of nodes. A node that is left with a mount or a traceback in its log fails the test."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    made: list[NodePaths] = []

    def make(root: Path) -> NodePaths:
        made.append(NodePaths.choose(root))
        return made[-1]

    try:
        yield make
        for paths in made:
            if DaemonClient(paths).is_running():
                DaemonClient(paths).shutdown()
                assert list_mounts(paths.root) == []
                assert "Traceback" not in paths.log.read_text()
    finally:
        for paths in made:
            kill(paths)
            for entry in list_mounts(paths.root):
                unmount(entry.target, detach=True)


@pytest.fixture
def paths(node_at: MakePaths, tmp_path: Path) -> NodePaths:
    return node_at(tmp_path / "node")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "target"
    directory.mkdir()
    yield directory
    while unmount(directory, detach=True):
        pass


def open_made(paths: NodePaths, made: Path) -> dict[str, Any]:
    return ensure_daemon(paths).open_image(f"oci:{made}:lazy")


def ensure_elsewhere(paths: NodePaths) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENSURE, str(paths.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_start_and_end(paths: NodePaths) -> None:
    client = ensure_daemon(paths)
    pid = client.status()["pid"]
    assert daemons(paths) == [pid]
    assert ensure_daemon(paths).status()["pid"] == pid
    assert [entry.target for entry in list_mounts(paths.root)] == [paths.fuse]
    client.shutdown()
    assert daemons(paths) == []
    assert list_mounts(paths.root) == []
    assert not paths.socket.exists()
    with pytest.raises(NotFoundError, match="no daemon runs"):
        client.shutdown()


def test_many_start_it_at_once(paths: NodePaths) -> None:
    commands = [ensure_elsewhere(paths) for _ in range(10)]
    said = [command.communicate(timeout=PATIENCE) for command in commands]
    assert {err for _, err in said} == {""}
    assert len({out for out, _ in said}) == 1
    assert daemons(paths) == [int(said[0][0])]


@pytest.mark.parametrize("moment", ["start_lock", "log", "lock", "socket"])
def test_who_starts_it_is_killed(paths: NodePaths, moment: str) -> None:
    """The next command takes the daemon that is about to start, or starts one; never is there a second."""
    command = ensure_elsewhere(paths)
    wait_until(getattr(paths, moment).exists, moment)
    command.kill()
    assert ensure_daemon(paths).status()["pid"] == daemons(paths)[0]
    assert len(daemons(paths)) == 1
    command.communicate()


@pytest.mark.parametrize("moment", ["start_lock", "lock", "socket"])
def test_it_is_killed_while_it_starts(paths: NodePaths, moment: str) -> None:
    command = ensure_elsewhere(paths)
    wait_until(lambda: getattr(paths, moment).exists() and daemons(paths), moment)
    kill(paths)
    out, err = command.communicate(timeout=PATIENCE)
    assert out or "NodeError" in err or "DaemonGoneError" in err
    assert ensure_daemon(paths).status()["pid"] == daemons(paths)[0]


def test_the_mount_of_a_killed_daemon_is_replaced(paths: NodePaths, made: Path) -> None:
    open_made(paths, made)
    kill(paths)
    assert [entry.target for entry in list_mounts(paths.root)] == [paths.fuse]
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        paths.fuse.stat()
    with pytest.raises(NotFoundError):
        DaemonClient(paths).status()
    open_made(paths, made)
    assert [entry.target for entry in list_mounts(paths.root)] == [paths.fuse]


def test_a_command_comes_just_when_it_is_killed(paths: NodePaths, made: Path) -> None:
    """For a moment a dying daemon still takes connections, which it will not answer."""
    for _ in range(3):
        client = ensure_daemon(paths)
        pid = daemons(paths)[0]
        os.kill(pid, signal.SIGKILL)
        assert client.open_image(f"oci:{made}:lazy")["key"]
        assert client.status()["pid"] != pid


def test_only_one_for_a_root(paths: NodePaths) -> None:
    pid = ensure_daemon(paths).status()["pid"]
    second = subprocess.run(
        [sys.executable, "-m", "lazyfs.daemon", "--root", paths.root],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert second.returncode == BusyError.exit_code
    assert "another daemon serves" in second.stderr
    assert ensure_daemon(paths).status()["pid"] == pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] * 3)
def test_signals_end_it(paths: NodePaths, number: signal.Signals) -> None:
    """From the moment on when it is ready."""
    ensure_daemon(paths)
    kill(paths, number)
    assert list_mounts(paths.root) == []
    assert not paths.socket.exists()
    assert paths.log.read_text().rstrip().endswith("ended")


def test_shutdown_is_refused_while_mounted(paths: NodePaths, made: Path, target: Path) -> None:
    mount_view(paths, open_made(paths, made), target)
    for _ in range(2):
        with pytest.raises(BusyError, match=r"1 images of .* are mounted"):
            DaemonClient(paths).shutdown()
    assert (target / "text").read_text() == "upper"
    unmount_image(paths, target)
    DaemonClient(paths).shutdown()


def test_what_nobody_uses_does_not_keep_it(paths: NodePaths, made: Path) -> None:
    """A command that was killed after it had mounted the image, before it showed it anywhere."""
    image = open_made(paths, made)
    with images._locked(paths):
        left = images._attach(paths, image)
    assert (left / "text").read_text() == "upper"
    DaemonClient(paths).shutdown()
    assert not left.exists()


def test_what_a_killed_daemon_left_and_nobody_uses_is_removed(paths: NodePaths, made: Path) -> None:
    image = open_made(paths, made)
    with images._locked(paths):
        left = images._attach(paths, image)
    kill(paths)
    ensure_daemon(paths)
    assert not left.exists()


def test_shutdown_waits_for_a_command_that_mounts(paths: NodePaths, made: Path, target: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with daemon_in_use(paths) as client:
            image = client.open_image(f"oci:{made}:lazy")
            answer = pool.submit(client.shutdown)
            mount_view(paths, image, target)
        with pytest.raises(BusyError, match="are mounted"):
            answer.result(PATIENCE)
    assert (target / "text").read_text() == "upper"
    unmount_image(paths, target)


def test_commands_while_it_is_shut_down_all_the_time(paths: NodePaths, made: Path, target: Path) -> None:
    """None of them fails: each finds the old daemon whole or starts the next."""
    over = threading.Event()

    def shut_down() -> int:
        count = 0
        while not over.is_set():
            with suppress(BusyError, NotFoundError):
                DaemonClient(paths).shutdown()
                count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(shut_down)
        try:
            for _ in range(8):
                with daemon_in_use(paths) as client:
                    mount_view(paths, client.open_image(f"oci:{made}:lazy"), target)
                assert (target / "text").read_text() == "upper"
                unmount_image(paths, target)
        finally:
            over.set()
        assert ended.result(PATIENCE) > 0


def test_one_shutdown_of_many_at_once(paths: NodePaths) -> None:
    ensure_daemon(paths)

    def shut_down() -> str:
        try:
            DaemonClient(paths).shutdown()
        except LazyfsError as error:
            return type(error).__name__
        return "ended"

    with ThreadPoolExecutor(8) as pool:
        ends = set(pool.map(lambda _: shut_down(), range(8)))
    # Who comes when it has just ended finds none, or is cut off.
    assert "ended" in ends
    assert ends <= {"ended", "NoDaemonError", "DaemonGoneError"}
    assert daemons(paths) == []


def test_a_dead_image_is_not_used_again(paths: NodePaths, made: Path, target: Path, tmp_path: Path) -> None:
    """While one is still mounted somewhere, the same image works through the next daemon."""
    mount_view(paths, open_made(paths, made), target)
    kill(paths)
    with pytest.raises(OSError, match="Input/output error"):
        (target / "big").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    mount_view(paths, open_made(paths, made), other)
    assert (other / "big").read_bytes() == LOWER[0].content
    assert {entry.target for entry in targets(paths)} == {target, other}
    unmount_image(paths, target)
    assert (other / "text").read_text() == "upper"
    unmount_image(paths, other)


def test_it_is_killed_between_opening_and_mounting(paths: NodePaths, made: Path, target: Path) -> None:
    image = open_made(paths, made)
    kill(paths)
    with pytest.raises(LazyfsError):
        mount_view(paths, image, target)
    unmount(paths.fuse, detach=True)
    with pytest.raises(NodeError, match="has ended"):
        mount_writable(paths, image, target, paths.mounts / "rw")
    assert list_mounts(target) == []
    assert [path.name for path in paths.images.iterdir()] == [".lock"]
    assert not (paths.mounts / "rw").exists()


def test_one_target_for_many_at_once(paths: NodePaths, made: Path, target: Path) -> None:
    image = open_made(paths, made)

    def mount() -> bool:
        try:
            mount_view(paths, image, target)
        except BusyError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: mount(), range(8))) == 1
    unmount_image(paths, target)
    assert list_mounts(target) == []


def test_mounting_and_unmounting_at_once(paths: NodePaths, made: Path, tmp_path: Path) -> None:
    """The image's own mount comes and goes; nobody finds it gone."""
    image = open_made(paths, made)
    directories = [tmp_path / f"target{number}" for number in range(4)]

    def use(directory: Path) -> None:
        directory.mkdir()
        for number in range(8):
            if number % 2:
                mount_view(paths, image, directory)
            else:
                mount_writable(paths, image, directory, paths.mounts / f"{directory.name}-{number}")
            assert (directory / "text").read_text() == "upper"
            unmount_image(paths, directory)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, directories))
        assert list(paths.mounts.iterdir()) == []
        assert [path.name for path in paths.images.iterdir()] == [".lock"]
    finally:
        for directory in directories:
            unmount(directory, detach=True)


def test_a_mount_that_fails_leaves_nothing(
    paths: NodePaths, made: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise NodeError("no")

    image = open_made(paths, made)
    monkeypatch.setattr(images, "mount_overlay", fail)
    with pytest.raises(NodeError, match="no"):
        mount_writable(paths, image, target, paths.mounts / "rw")
    monkeypatch.setattr(images, "bind", fail)
    with pytest.raises(NodeError, match="no"):
        mount_view(paths, image, target)
    assert list(paths.mounts.iterdir()) == []
    assert [path.name for path in paths.images.iterdir()] == [".lock"]


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
    paths = node_at(tmp_path / ("d" * 200) / ("e" * 200) / ("f" * 200) / ("g" * 200))
    mount_writable(paths, open_made(paths, made), target, paths.mounts / "rw-0123456789ab")
    assert (target / "text").read_text() == "upper"
    unmount_image(paths, target)
    with pytest.raises(UsageError, match="more than 1000"):
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
    pid = daemons(paths)[0]
    for path in paths.root.iterdir():
        if path != paths.fuse:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not daemons(paths), "the daemon's end")
