"""The keeper's loop with daemons that are scripts: what it does when everything happens at once."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.config import NodePaths
from lazyfs.keeper import keeper as keeper_module
from lazyfs.keeper import link
from lazyfs.keeper.child import SERVING, Daemon, adopted
from lazyfs.keeper.keeper import MAX_HEARD, Keeper
from lazyfs.keeper.pauses import LONGEST_PAUSE, LONGEST_PAUSE_INNOCENT, pause_after
from tests.daemon.processes import end


@pytest.fixture
def started() -> list[Daemon]:
    return []


@pytest.fixture
def keeper(tmp_path: Path, started: list[Daemon], monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    def spawn(paths: NodePaths, user: str) -> Daemon:
        ours, theirs = link.pair()
        os.set_inheritable(theirs.fileno(), True)
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        theirs.close()
        started.append(adopted(pid, ours, ours=True, stage=SERVING))
        return started[-1]

    monkeypatch.setattr(keeper_module, "spawn", spawn)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    made = Keeper(NodePaths(tmp_path), "root", link.listen(tmp_path / "sock", socket.SOCK_SEQPACKET), -1)
    for number, handler in before.items():
        signal.signal(number, handler)
    yield made
    made.close()
    made._control.close()


def test_end_and_end_of_the_link_come_together(keeper: Keeper, started: list[Daemon]) -> None:
    """The first closes what the second was about."""
    keeper.start()
    end([started[0].pid])
    daemon = started[0]
    gone = [key for key in keeper._selector.get_map().values() if key.fileobj == daemon.process]
    listening = [key for key in keeper._selector.get_map().values() if key.fileobj is daemon.link]
    for key in (*gone, *listening):
        keeper._handle(key)
    assert daemon.link.fileno() == -1
    assert keeper.status()["last_end"] == f"daemon {daemon.pid} was killed by SIGKILL"


def test_pauses_grow_for_who_fails_alone() -> None:
    failing = [pause_after(count, innocent=False) for count in range(12)]
    assert failing[0] == 0.0
    assert failing == sorted(failing)
    assert failing[-1] == LONGEST_PAUSE
    killed = [pause_after(count, innocent=True) for count in range(12)]
    assert killed[0] == 0.0
    assert max(killed) == LONGEST_PAUSE_INNOCENT


def descriptors_of(end: socket.socket) -> list[int]:
    """Of this process, for that one socket: others come and go with threads and with what is collected."""
    found = []
    for number in (int(path.name) for path in Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if os.path.sameopenfile(number, end.fileno()):
                found.append(number)
    return found


def test_a_daemon_cannot_fill_the_keeper_with_descriptors(keeper: Keeper) -> None:
    """It may be anybody's by now."""
    ours, theirs = link.pair()
    daemon = adopted(os.getpid(), ours, ours=False, stage=SERVING)
    for _ in range(3):
        link.send(theirs, {"say": "pong"}, [theirs.fileno()])
    daemon.unanswered = 1
    keeper._listen(daemon)
    assert daemon.unanswered == 0
    assert descriptors_of(theirs) == [theirs.fileno()]
    theirs.close()
    daemon.reap()


def test_a_daemon_that_talks_without_end_keeps_the_keeper_from_nothing(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = link.pair()
    daemon = adopted(os.getpid(), ours, ours=False, stage=SERVING)
    heard = []

    def hear(_: socket.socket) -> dict[str, object]:
        heard.append(1)
        assert len(heard) <= MAX_HEARD, "it listens to nobody else"
        return {"say": "pong"}

    monkeypatch.setattr(link, "hear", hear)
    keeper._listen(daemon)
    assert len(heard) == MAX_HEARD
    theirs.close()
    daemon.reap()


def test_a_link_holds_less_than_is_heard_in_a_row(keeper: Keeper) -> None:
    """So a daemon's last words are heard when it has ended, whatever it said before."""
    ours, theirs = link.pair()
    daemon = adopted(os.getpid(), ours, ours=False, stage=SERVING)
    ours.setblocking(False)
    theirs.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            link.send(theirs, {"say": "failed", "error": {"message": "why"}})
    theirs.close()
    keeper._listen(daemon)
    assert daemon.error == {"message": "why"}
    with pytest.raises(EOFError):
        link.hear(ours)
    daemon.reap()
