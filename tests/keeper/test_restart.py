"""Daemons that end in every way, under readers; and keepers that do."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.kill_daemon import Pair, torment
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import NodeError
from lazyfs.keeper import child, link
from lazyfs.keeper.client import KeeperClient, NoKeeperError
from lazyfs.keeper.early import spawn_daemon
from lazyfs.mount.mountinfo import list_mounts
from tests.daemon.processes import PATIENCE, daemons, end, keepers
from tests.waiting import wait_until

from .conftest import CONTENT, Mounted

pytestmark = pytest.mark.root


def waiting_reads(mounted: Mounted) -> int:
    (entry,) = list_mounts(mounted.paths.fuse)
    path = Path("/sys/fs/fuse/connections", entry.device.partition(":")[2], "waiting")
    return int(path.read_text()) if path.exists() else 1


def test_killed_again_and_again(mounted: Mounted, tmp_path: Path) -> None:
    """A short run of `benchmarks.kill_daemon`, which counts a thousand."""
    expected = tmp_path / "expected"
    expected.write_bytes(CONTENT)
    device = Path(str(mounted.image["devices"][0]))  # type: ignore[index]
    copy = tmp_path / "device"
    copy.write_bytes(device.read_bytes())
    pairs = [Pair(mounted.target / "big", expected), Pair(device, copy, direct=True)]
    outcome = torment(mounted.paths, pairs, kills=10, readers=16)
    assert (outcome.errors, outcome.wrong) == ([], 0)
    assert outcome.kills == 10
    assert outcome.reads > 100
    assert KeeperClient(mounted.paths).status()["restarts"] >= 10


def test_a_read_that_a_killed_daemon_had_taken_is_answered(mounted: Mounted) -> None:
    pid = mounted.pid()
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(mounted.read)
        wait_until(lambda: waiting_reads(mounted), "a read on its way")
        end([pid])  # unless the keeper has found it stopped
        assert reading.result(PATIENCE) == CONTENT
    assert mounted.pid() != pid


def test_a_daemon_that_answers_nothing_is_replaced(mounted: Mounted) -> None:
    pid = mounted.pid()
    os.kill(pid, signal.SIGSTOP)
    assert mounted.read() == CONTENT
    assert mounted.pid() != pid
    assert "is stopped; killing it" in mounted.paths.log.read_text()


def test_files_that_were_open_stay_open(mounted: Mounted) -> None:
    device = Path(str(mounted.image["devices"][0]))  # type: ignore[index]
    with (mounted.target / "big").open("rb") as file, device.open("rb") as raw:
        for _ in range(2):
            end([mounted.pid()])
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 8192, 1 << 20) == CONTENT[1 << 20 : (1 << 20) + 8192]
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(os.pread(raw.fileno(), 4096, 2 << 20)) == 4096
            mounted.pid()


def test_what_was_open_is_known_to_the_next_daemon(mounted: Mounted) -> None:
    before = DaemonClient(mounted.paths).status()
    end([mounted.pid()])
    after = DaemonClient(mounted.paths).status()
    assert after["pid"] != before["pid"]
    assert after["images"] == before["images"]
    assert [each["device"] for each in after["layers"]] == [each["device"] for each in before["layers"]]
    assert KeeperClient(mounted.paths).status()["restarts"] == 1


def test_the_store_is_gone_when_the_next_daemon_comes(
    paths: NodePaths, layout: Path, tmp_path: Path, mounted: Mounted
) -> None:
    """What is cached is served without it; what is not is an error, until it is back."""
    with (mounted.target / "big").open("rb") as file:
        assert os.pread(file.fileno(), 4096, 0) == CONTENT[:4096]
        hidden = layout.rename(layout.with_name("hidden"))
        try:
            end([mounted.pid()])
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 4096, 0) == CONTENT[:4096]
            with pytest.raises(OSError, match=r"Input/output|No such file"):
                os.pread(file.fileno(), 4096, 5 << 20)
            assert any("sha256:" in each for each in DaemonClient(paths).status()["recent_failures"])
        finally:
            hidden.rename(layout)
        assert mounted.read() == CONTENT


def test_the_keeper_is_killed(mounted: Mounted) -> None:
    """The daemon serves on; the next command starts a keeper, which takes over, and restarts as ever."""
    pid, (keeper,) = mounted.pid(), keepers(mounted.paths)
    end([keeper])
    assert mounted.read() == CONTENT
    with pytest.raises(NoKeeperError):
        KeeperClient(mounted.paths).status()
    assert DaemonClient(mounted.paths).status()["pid"] == pid
    ensure_daemon(mounted.paths)
    assert (mounted.pid(), len(daemons(mounted.paths))) == (pid, 1)
    assert keepers(mounted.paths) != [keeper]
    end([pid])
    assert mounted.pid() != pid
    with (mounted.target / "big").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == CONTENT


def test_keepers_and_daemons_are_killed_in_turn(mounted: Mounted) -> None:
    for _ in range(3):
        end(keepers(mounted.paths))
        ensure_daemon(mounted.paths)
        end([mounted.pid()])
        mounted.pid()
        DaemonClient(mounted.paths).status()  # serves, so the connection is not the keeper's alone
    assert mounted.read() == CONTENT
    assert len(keepers(mounted.paths)) == len(daemons(mounted.paths)) == 1


def test_a_node_shuts_down_although_its_keeper_was_killed(paths: NodePaths) -> None:
    ensure_daemon(paths)
    end(keepers(paths))
    DaemonClient(paths).shutdown()
    assert keepers(paths) == daemons(paths) == []
    assert list_mounts(paths.root) == []


def test_a_daemon_that_does_not_start_again(mounted: Mounted) -> None:
    """Growing pauses, and a clear word for who asks; once it can start, all is well."""
    settings = mounted.paths.settings
    settings.write_text("[cache]\nlimit = 'nonsense'\n")
    end([mounted.pid()])
    wait_until(lambda: KeeperClient(mounted.paths).status()["failures"] >= 4, "some attempts")
    status = KeeperClient(mounted.paths).status()
    assert "is not a size" in status["last_error"]["message"]
    with pytest.raises(NodeError, match="does not start: 'nonsense' is not a size") as caught:
        DaemonClient(mounted.paths).status()
    assert "tried again" in caught.value.hint
    settings.unlink()
    assert mounted.read() == CONTENT


def test_a_daemon_goes_first_until_it_serves(mounted: Mounted) -> None:
    pid, usual = mounted.pid(), os.getpriority(os.PRIO_PROCESS, 0)
    wait_until(lambda: set(_priorities(pid)) == {usual}, "the usual priority of all threads")
    pid, end_of_link = spawn_daemon({"--root": str(mounted.paths.root)})
    try:
        assert os.getpriority(os.PRIO_PROCESS, pid) < usual
    finally:
        end_of_link.close()
        os.waitpid(pid, 0)


def _priorities(pid: int) -> list[int]:
    with suppress(OSError):
        return [
            os.getpriority(os.PRIO_PROCESS, int(each.name)) for each in Path(f"/proc/{pid}/task").iterdir()
        ]
    return []  # a thread ended just now


def test_nothing_is_left_of_daemons_that_ended(mounted: Mounted) -> None:
    (keeper,) = keepers(mounted.paths)
    for _ in range(3):
        end([mounted.pid()])
    mounted.pid()
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    assert len(children) == 1
    # Its own, the two sockets, the node's descriptors, the selector: no more with every daemon.
    assert len(list(Path(f"/proc/{keeper}/fd").iterdir())) < 20


def test_out_of_memory(mounted: Mounted, tmp_path: Path) -> None:
    """The kernel kills the daemon, and not the keeper in the same group; the next one serves."""
    group = Path("/sys/fs/cgroup/memory", f"test-{os.urandom(6).hex()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup v1 memory controller that can be written to")
    try:
        pid = mounted.pid()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "memory.limit_in_bytes").write_text(str(4 << 20))
        assert mounted.read() == CONTENT
        wait_until(lambda: mounted.serving() not in (None, pid), "the next daemon")
        assert "was killed by SIGKILL" in mounted.paths.log.read_text()
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()


def test_a_busy_daemon_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that uses the processor has much longer than one that does nothing."""
    ours, theirs = link.pair()
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "while :; do :; done"], {})
    try:
        busy = child.adopted(pid, ours, ours=True, stage=child.SERVING)
        work = iter(range(1000))
        monkeypatch.setattr(child, "_work", lambda _: next(work))
        assert {busy.ping() for _ in range(child.BUSY_PINGS)} == {""}
        assert "has answered nothing" in busy.ping()
        busy.answered()
        monkeypatch.setattr(child, "_work", lambda _: 0)
        assert {busy.ping() for _ in range(child.HUNG_PINGS)} == {""}
        wait_until(busy.ping, "its being given up")
    finally:
        os.kill(pid, signal.SIGKILL)
        assert busy.reap() == "was killed by SIGKILL"
        theirs.close()


def test_a_dead_process_that_the_kernel_still_holds_is_known() -> None:
    process = subprocess.Popen(["sleep", "60"])
    ours, theirs = link.pair()
    daemon = child.adopted(process.pid, ours, ours=False, stage=child.SERVING)
    assert not daemon.dies()
    process.kill()
    wait_until(daemon.dies, "a zombie")
    process.wait()
    daemon.reap()
    theirs.close()


def test_who_starts_keepers_keeps_no_zombies(paths: NodePaths) -> None:
    for _ in range(2):
        client = ensure_daemon(paths)
        (keeper,) = keepers(paths)
        client.shutdown()
        assert not Path("/proc", str(keeper)).exists()
    ensure_daemon(paths)
    (keeper,) = keepers(paths)
    os.kill(keeper, signal.SIGKILL)
    gone = Path("/proc", str(keeper))
    wait_until(lambda: ensure_daemon(paths) and not gone.exists(), "its being waited for")
