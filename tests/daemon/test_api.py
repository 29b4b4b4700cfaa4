"""The control API: what it answers to what is no request, and that nothing a client does stops it."""

import json
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.config import NodePaths
from lazyfs.daemon import api
from lazyfs.daemon import client as client_module
from lazyfs.daemon.api import Call, ControlServer, Handover
from lazyfs.daemon.client import DaemonClient, DaemonGoneError, _read_all
from lazyfs.errors import BusyError, IntegrityError, LazyfsError, NodeError, NotFoundError
from lazyfs.keeper.link import listen, short_path
from lazyfs.keeper.refusal import refuse as refuse_one

PATIENCE = 20.0


def echo(body: dict[str, Any]) -> dict[str, Any]:
    return {"pid": 1, "said": body}


def refuse(body: dict[str, Any]) -> dict[str, Any]:
    raise BusyError("it is in use", hint="wait")


def break_down(body: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("secret words")


CALLS: dict[str, Call] = {
    "GET /v1/status": echo,
    "POST /v1/images": echo,
    "POST /v1/busy": refuse,
    "POST /v1/timeline": break_down,
}


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    return NodePaths(tmp_path)


@contextmanager
def serving(paths: NodePaths, calls: dict[str, Call] = CALLS) -> Iterator[ControlServer]:
    with listen(paths.socket, socket.SOCK_STREAM) as listener:
        server = ControlServer(listener, calls)
        yield server
        server.close()


@pytest.fixture
def server(paths: NodePaths) -> Iterator[ControlServer]:
    with serving(paths) as server:
        yield server


def connect(paths: NodePaths) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    with short_path(paths.socket) as path:
        connection.connect(path)
    return connection


def exchange(paths: NodePaths, raw: bytes) -> bytes:
    """Everything that is answered to these bytes."""
    with connect(paths) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


def parse(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    values: dict[str, Any] = json.loads(content)
    return int(head.split()[1]), values


def post(path: str, body: bytes, length: str | None = None) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode()
        + body
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"GET /v1/nothing HTTP/1.1\r\n\r\n", "no GET /v1/nothing"),
        (b"GET /v1/images HTTP/1.1\r\n\r\n", "no GET /v1/images"),
        (b"DELETE /v1/images HTTP/1.1\r\n\r\n", "not a request"),
        (b"nonsense\r\n\r\n", "not a request"),
        (b"GET /v1/status HTTP/9.9\r\n\r\n", "not a request"),
        (b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", "not a request"),
        (b"GET /v1/status HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", "not a request"),
        (b"GET /v1/status HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", "not a request"),
        (post("/v1/images", b"{"), "not JSON"),
        (post("/v1/images", b"\xff\xfe{}"), "not JSON"),
        (post("/v1/images", b"[" * 100_000), "not JSON"),
        (post("/v1/images", b"[]"), "not a JSON object"),
        (post("/v1/images", b"3"), "not a JSON object"),
        (post("/v1/images", b'{"a"', "12"), "not JSON"),
        (post("/v1/images", b"", "-1"), "too large, or of unknown length"),
        (post("/v1/images", b"", "x"), "too large, or of unknown length"),
        (post("/v1/images", b"", "9" * 5000), "too large, or of unknown length"),
        (post("/v1/images", b"", str(api.MAX_BODY + 1)), "too large, or of unknown length"),
    ],
)
def test_malformed_requests(paths: NodePaths, server: ControlServer, raw: bytes, words: str) -> None:
    status, values = parse(exchange(paths, raw))
    assert status == 400
    assert values["error"] in ("UsageError", "NotFoundError")
    assert words in values["message"]
    assert DaemonClient(paths).status()["pid"] == 1


@given(raw=st.binary(max_size=300) | st.binary(max_size=100).map(lambda body: post("/v1/images", body)))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(paths: NodePaths, server: ControlServer, raw: bytes) -> None:
    answer = exchange(paths, raw)
    if answer:
        assert parse(answer)[0] in (200, 400)


def test_a_body_that_never_comes(paths: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api._Handler, "timeout", 0.05)
    with listen(paths.socket, socket.SOCK_STREAM) as listener:
        answers = []
        for raw in (post("/v1/images", b"{", "100"), b"GET /v1/sta"):
            with connect(paths) as connection:
                connection.sendall(raw)  # before anybody waits for it
                server = ControlServer(listener, CALLS)
                answers.append(connection.makefile("rb").read())
                server.close()
    status, values = parse(answers[0])
    assert status == 400
    assert "ends too soon" in values["message"]
    assert answers[1] == b""


def test_answers(paths: NodePaths, server: ControlServer) -> None:
    status, values = parse(exchange(paths, post("/v1/images", b'{"reference": "\xc3\xa9"}')))
    assert (status, values["said"]) == (200, {"reference": "é"})
    status, values = parse(exchange(paths, b"GET /v1/status HTTP/1.1\r\n\r\n"))
    assert (status, values["said"]) == (200, {})


def test_errors_keep_their_class(paths: NodePaths, server: ControlServer) -> None:
    with pytest.raises(BusyError, match="it is in use") as caught:
        DaemonClient(paths)._call("POST", "/v1/busy")
    assert caught.value.hint == "wait"


def test_a_defect_is_an_error_of_the_daemon(paths: NodePaths, server: ControlServer) -> None:
    status, values = parse(exchange(paths, post("/v1/timeline", b"{}")))
    assert status == 500
    with pytest.raises(NodeError, match="ZeroDivisionError"):
        DaemonClient(paths).timeline(0)
    assert "Traceback" not in json.dumps(values)


def test_only_root_may_connect(paths: NodePaths, server: ControlServer) -> None:
    assert stat.S_IMODE(paths.socket.stat().st_mode) == 0o600


def test_many_at_once(paths: NodePaths, server: ControlServer) -> None:
    idle = [connect(paths) for _ in range(20)]
    with ThreadPoolExecutor(30) as pool:
        answers = pool.map(lambda _: DaemonClient(paths).status()["pid"], range(200))
        assert list(answers) == [1] * 200
    for connection in idle:
        connection.close()


def test_a_socket_that_was_left_is_replaced(paths: NodePaths) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(paths.socket))
    left.close()
    with pytest.raises(NotFoundError):
        DaemonClient(paths).status()
    with serving(paths):
        assert DaemonClient(paths).is_running()
    assert not DaemonClient(paths).is_running()


def test_who_comes_between_two_servers_waits_for_the_second(paths: NodePaths) -> None:
    with listen(paths.socket, socket.SOCK_STREAM) as listener, ThreadPoolExecutor(1) as pool:
        ControlServer(listener, CALLS).close()
        waiting = pool.submit(DaemonClient(paths).status)
        second = ControlServer(listener, CALLS)
        assert waiting.result(PATIENCE)["pid"] == 1
        second.close()


def test_descriptors_are_for_root_alone(paths: NodePaths) -> None:
    ours, theirs = socket.socketpair()
    handover = Handover({"pid": 7}, (theirs.fileno(),), theirs)
    with serving(paths, {"POST /v1/keeper": lambda _: handover}), connect(paths) as connection:
        connection.sendall(post("/v1/keeper", b""))
        raw, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
    assert json.loads(raw.partition(b"\r\n\r\n")[2]) == {"pid": 7}
    with ours, socket.socket(fileno=descriptors[0]) as received:
        ours.send(b"x")
        assert received.recv(1) == b"x"


def test_end_does_not_wait_for_who_asks_nothing(paths: NodePaths) -> None:
    """Half a request has 30 seconds to become a whole one; the end of the daemon does not wait for it."""
    listener = listen(paths.socket, socket.SOCK_STREAM)
    server = ControlServer(listener, CALLS)
    connections = [connect(paths) for _ in range(3)]
    connections[1].sendall(b"GET /v1/st")
    connections[2].sendall(post("/v1/images", b"{", "100"))
    assert DaemonClient(paths).status()["pid"] == 1
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    for connection in (*connections, listener):
        connection.close()


def test_end_waits_for_answers(paths: NodePaths) -> None:
    entered, proceed = threading.Event(), threading.Event()

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        proceed.wait(PATIENCE)
        return {"pid": 7}

    with ThreadPoolExecutor(2) as pool, listen(paths.socket, socket.SOCK_STREAM) as listener:
        server = ControlServer(listener, {"GET /v1/status": slow})
        answer = pool.submit(DaemonClient(paths).status)
        assert entered.wait(PATIENCE)
        closing = pool.submit(server.close)
        proceed.set()
        assert answer.result(PATIENCE) == {"pid": 7}
        closing.result(PATIENCE)


@pytest.mark.parametrize("length", [50, 107, 108, 300, 1000])
def test_roots_of_any_length(tmp_path: Path, length: int) -> None:
    """The address of a socket has room for 107 bytes; the node's directory may be longer."""
    root = tmp_path
    while (missing := length - len(str(root / "daemon.sock"))) > 1:
        root /= "r" * min(missing - 1, 200)
    paths = NodePaths(root)
    assert not DaemonClient(paths).is_running()
    root.mkdir(parents=True, exist_ok=True)
    assert not DaemonClient(paths).is_running()
    with serving(paths):
        assert DaemonClient(paths).status()["pid"] == 1


def answering(paths: NodePaths, answer: bytes) -> threading.Thread:
    """A daemon that gives this answer to whatever is asked, once."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.socket))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()
        listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (b"", DaemonGoneError, "ended before it answered"),
        (b"garbage", NodeError, "broke off its answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n", NodeError, "broke off its answer"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"pid": ', NodeError, "broke off its answer"),
        (b"HTTP/1.1 nothing OK\r\n\r\n{}", NodeError, "broke off its answer"),
        (b"HTTP/1.1 400 Bad\r\n\r\n{}", LazyfsError, "unknown error"),
        (
            b'HTTP/1.1 400 Bad\r\n\r\n{"error": "IntegrityError", "message": "torn"}',
            IntegrityError,
            "torn",
        ),
    ],
)
def test_answers_that_are_none(
    paths: NodePaths, answer: bytes, expected: type[LazyfsError], words: str
) -> None:
    thread = answering(paths, answer)
    with pytest.raises(expected, match=words):
        DaemonClient(paths).status()
    thread.join()


def test_who_is_slow_to_ask_hears_why_there_is_no_daemon(
    paths: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper without a daemon waits a moment for the request, then it has answered and is gone."""
    client = DaemonClient(paths)
    connect = client._connect
    with listen(paths.socket, socket.SOCK_STREAM) as listener:

        def answered() -> socket.socket:
            connection = connect()
            refuse_one(listener, NodeError("it does not start", hint="later"))
            return connection

        monkeypatch.setattr(client, "_connect", answered)
        for ask in (client.status, lambda: next(client.look_at("oci:/x:y"))):
            with pytest.raises(NodeError, match="it does not start") as caught:
                ask()
            assert caught.value.hint == "later"


def test_an_answer_before_a_reset_counts(paths: NodePaths) -> None:
    """Whoever ends a connection with a request in it that nobody has read resets it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a request")
        ours.sendall(b"an answer")
        ours.close()
        assert _read_all(theirs) == b"an answer"


def test_keepers_that_have_ended_are_waited_for_by_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may come to a process that another has just waited for."""
    monkeypatch.setattr(client_module, "_started", {1 << 30})
    both = threading.Barrier(2)

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        both.wait(PATIENCE)
        raise ChildProcessError

    monkeypatch.setattr("os.waitpid", waitpid)
    with ThreadPoolExecutor(2) as pool:
        for reaping in [pool.submit(client_module._reap) for _ in range(2)]:
            reaping.result(PATIENCE)
    assert client_module._started == set()


def test_a_daemon_that_does_not_answer(paths: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.daemon.request.TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.socket))
        listener.listen()
        with pytest.raises(NodeError, match="did not answer: timed out"):
            DaemonClient(paths).status()
