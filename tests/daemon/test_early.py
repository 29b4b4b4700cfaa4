"""A request that is sent before it is due: answered to who asks just that, and lost on everybody else."""

import fcntl
import json
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.cli.early import ask_early
from lazyfs.config import NodePaths
from lazyfs.daemon import request
from lazyfs.daemon.client import DaemonClient, DaemonGoneError, NoDaemonError, locked
from lazyfs.errors import BusyError, UnsupportedError
from tests.waiting import wait_until

REFERENCE = "docker://registry/app:v1"


class Listener:
    """Answers each connection with how many there were before it and what it asked for."""

    def __init__(self, paths: NodePaths) -> None:
        self.asked: list[bytes] = []
        self.answering = True
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(paths.socket))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection = self._socket.accept()[0]
            with connection:
                head, _, content = connection.recv(1 << 16).partition(b"\r\n\r\n")
                if not head:
                    return
                self.asked.append(content)
                if self.answering:
                    answer = json.dumps({"number": len(self.asked), **json.loads(content)}).encode()
                    with suppress(BrokenPipeError):
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + answer)

    def close(self, paths: NodePaths) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(paths.socket))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodePaths]:
    paths = NodePaths(tmp_path)
    paths.use_lock.touch()
    monkeypatch.setattr("lazyfs.daemon.request.choose_mode", lambda paths, wanted: wanted or "file")
    yield paths
    request.take(paths.socket, b"")


@pytest.fixture
def listener(paths: NodePaths) -> Iterator[Listener]:
    listener = Listener(paths)
    yield listener
    request.take(paths.socket, b"")
    listener.close(paths)


def words_of(paths: NodePaths, *words: str) -> list[str]:
    return ["--root", str(paths.root), "run", *words]


def test_the_answer_is_for_who_asks_the_same(paths: NodePaths, listener: Listener) -> None:
    ask_early(words_of(paths, "-e", "A=1", REFERENCE, "sh", "-c", "oci:x"))
    meant: list[int] = []
    answer = DaemonClient(paths).open_image(REFERENCE, command="", meanwhile=lambda: meant.append(1))
    assert answer["reference"] == REFERENCE
    assert (answer["number"], meant) == (1, [1])
    assert DaemonClient(paths).open_image(REFERENCE, command="")["number"] == 2
    assert len(listener.asked) == 2


@pytest.mark.parametrize("fill", [True, False])
def test_fill(paths: NodePaths, listener: Listener, fill: bool) -> None:
    ask_early(words_of(paths, *([] if fill else ["--no-fill"]), REFERENCE))
    assert DaemonClient(paths).open_image(REFERENCE, fill=fill, command="")["number"] == 1


def test_a_wrong_guess_is_dropped(paths: NodePaths, listener: Listener) -> None:
    # A volume that looks like an image.
    ask_early(words_of(paths, "-v", "oci:/data", REFERENCE))
    answer = DaemonClient(paths).open_image(REFERENCE, command="")
    assert (answer["number"], answer["reference"]) == (2, REFERENCE)


def test_a_daemon_that_ends_meanwhile_is_asked_again(paths: NodePaths, listener: Listener) -> None:
    listener.answering = False
    ask_early(words_of(paths, REFERENCE))
    wait_until(lambda: listener.asked, "the request")
    client = DaemonClient(paths)
    with pytest.raises(DaemonGoneError):
        client.ask("POST /v1/images", json.loads(listener.asked[0]))
    listener.answering = True
    assert client.open_image(REFERENCE, command="")["number"] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["status", "run", REFERENCE],
        ["run"],
        ["run", "--cache-limit", "5G", REFERENCE],
        ["run", "--paranoid", REFERENCE],
        ["run", "--mount-mode", "tree", REFERENCE],
        ["run", "--root=/elsewhere", REFERENCE],
        ["run", "--help", REFERENCE],
        ["run", "--entrypoint", "sh", REFERENCE],
        ["run", "just-a-name"],
        ["--unknown", "run", REFERENCE],
        ["--root"],
    ],
)
def test_nothing_is_asked(
    paths: NodePaths, listener: Listener, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("LAZYFS_ROOT", str(paths.root))
    ask_early(words)
    assert DaemonClient(paths).open_image(REFERENCE, command="")["number"] == 1


def test_no_daemon(paths: NodePaths) -> None:
    ask_early(words_of(paths, REFERENCE))
    with pytest.raises(NoDaemonError):
        DaemonClient(paths).status()
    ask_early(["--root", str(paths.root / "nowhere"), "run", REFERENCE])
    assert not (paths.root / "nowhere").exists()


def test_what_was_opened_stays_until_it_is_taken(paths: NodePaths, listener: Listener) -> None:
    ask_early(words_of(paths, REFERENCE))
    with pytest.raises(BusyError), locked(paths.use_lock, fcntl.LOCK_EX, 0.0):
        pass
    DaemonClient(paths).open_image(REFERENCE, command="")
    with locked(paths.use_lock, fcntl.LOCK_EX, 0.0):
        pass
    with locked(paths.use_lock, fcntl.LOCK_EX, 0.0):  # a node that is about to end
        ask_early(words_of(paths, REFERENCE))
    assert DaemonClient(paths).open_image(REFERENCE, command="")["number"] == 2


def test_a_machine_that_can_show_no_image(
    paths: NodePaths, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said when the command line is understood; until then nothing stays open."""

    def no_mode(*_: object) -> str:
        raise UnsupportedError("this machine can show no image")

    with monkeypatch.context() as lacking:
        lacking.setattr("lazyfs.daemon.request.choose_mode", no_mode)
        with warnings.catch_warnings(record=True) as left:
            warnings.simplefilter("always", ResourceWarning)
            ask_early(words_of(paths, REFERENCE))
        with pytest.raises(UnsupportedError), locked(paths.use_lock, fcntl.LOCK_EX, 0.0):
            DaemonClient(paths).open_image(REFERENCE, command="")
    assert left == []
