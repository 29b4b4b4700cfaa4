"""Daemons as processes: their start, their end, and who comes between."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, NoDaemonError, daemon_in_use, ensure_daemon, locked
from lazyfs.errors import BusyError, LazyfsError, NotFoundError
from lazyfs.mount import images
from lazyfs.mount.images import mount_view, unmount_image
from lazyfs.mount.mountinfo import list_mounts
from tests.waiting import wait_until

from .processes import PATIENCE, daemons, end, ensure_elsewhere, keepers, kill, open_made, running

pytestmark = pytest.mark.root


def test_start_and_end(paths: NodePaths) -> None:
    client = ensure_daemon(paths)
    pid = client.status()["pid"]
    assert daemons(paths) == [pid]
    assert ensure_daemon(paths).status()["pid"] == pid
    assert [entry.target for entry in list_mounts(paths.root)] == [paths.fuse]
    client.shutdown()
    assert daemons(paths) == []
    assert keepers(paths) == []
    assert list_mounts(paths.root) == []
    assert not paths.socket.exists()
    with pytest.raises(NotFoundError, match="no daemon runs"):
        client.shutdown()


def test_a_child_that_is_no_program_yet_is_no_daemon(paths: NodePaths) -> None:
    """What the tests take for daemons: a child shows its parent's command line until it becomes another program."""
    # Not print: what it writes is two pieces, between which the other process writes its own.
    say = r"os.write(1, b'%d\n' % os.getpid())"
    fork = f"import os; child = os.fork(); {say}; os.read(0, 1); child and os.wait()"
    command = [sys.executable, "-c", fork, "lazyfs.daemon", str(paths.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        both = {int(parent.stdout.readline()), int(parent.stdout.readline())}
        assert parent.pid in both
        assert running(paths.root, "lazyfs.daemon") == [parent.pid]
        parent.communicate()


def test_many_start_it_at_once(paths: NodePaths) -> None:
    commands = [ensure_elsewhere(paths) for _ in range(10)]
    said = [command.communicate(timeout=PATIENCE) for command in commands]
    assert {err for _, err in said} == {""}
    assert len({out for out, _ in said}) == 1
    assert daemons(paths) == [int(said[0][0])]


def is_held(lock: Path) -> bool:
    try:
        with locked(lock, fcntl.LOCK_EX, 0.0):
            return False
    except BusyError:
        return True


@pytest.mark.parametrize("moment", ["it has its lock", "it can be asked"])
def test_a_command_comes_while_a_service_starts(paths: NodePaths, moment: str) -> None:
    """It finds the keeper of the service, which it does not know to be starting, and no second one."""
    paths.root.mkdir()
    with paths.log.open("ab") as log:
        service = subprocess.Popen([sys.executable, "-m", "lazyfs.keeper", "--root", paths.root], stderr=log)
    try:
        asked = paths.keeper_socket.exists if moment == "it can be asked" else lambda: True
        wait_until(lambda: asked() and is_held(paths.keeper_lock), moment)
        service.send_signal(signal.SIGSTOP)
        command = ensure_elsewhere(paths)
        wait_until(
            # The last: the service was so quick that the command needs no keeper.
            lambda: (
                len(keepers(paths)) == 2
                or "another daemon serves" in paths.log.read_text()
                or paths.socket.exists()
            ),
            "the command's own keeper",
        )
        service.send_signal(signal.SIGCONT)
        out, err = command.communicate(timeout=PATIENCE)
        assert err == ""
        assert daemons(paths) == [int(out)]
        assert keepers(paths) == [service.pid]
    finally:
        service.send_signal(signal.SIGCONT)
        service.terminate()
        service.wait(PATIENCE)


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
    assert out or any(f"{name}Error: " in err for name in ("Node", "NoDaemon", "DaemonGone")), err
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
        pid = client.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        assert client.open_image(f"oci:{made}:lazy")["key"]
        assert client.status()["pid"] != pid


def test_only_one_for_a_root(paths: NodePaths) -> None:
    pid = ensure_daemon(paths).status()["pid"]
    second = subprocess.run(
        [sys.executable, "-m", "lazyfs.keeper", "--root", paths.root],
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
    end(keepers(paths), number)
    assert daemons(paths) == []
    assert list_mounts(paths.root) == []
    assert not paths.socket.exists()
    assert paths.log.read_text().rstrip().endswith("ended")


def test_shutdown_is_refused_while_mounted(paths: NodePaths, made: Path, target: Path) -> None:
    mount_view(paths, open_made(paths, made), target)
    for _ in range(2):
        with pytest.raises(BusyError, match=r"1 image of .* is mounted"):
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
        with pytest.raises(BusyError, match="is mounted"):
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


def test_a_shutdown_that_another_is_ahead_of_starts_nothing(
    paths: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_daemon(paths)
    client, other = DaemonClient(paths), DaemonClient(paths)

    def is_running() -> bool:
        monkeypatch.setattr(client, "is_running", other.is_running)
        other.shutdown()
        return True  # as it was a moment ago

    monkeypatch.setattr(client, "is_running", is_running)
    with pytest.raises(NoDaemonError):
        client.shutdown()
    assert keepers(paths) == []


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
    # Who comes when it has just ended finds none, or is cut off; who has waited long for the others is told so.
    assert "ended" in ends
    assert ends <= {"ended", "NoDaemonError", "DaemonGoneError", "BusyError"}
    assert daemons(paths) == []
