"""A command that runs a container, ended: also where the container does not heed signals."""

import io
import socket
import threading
from pathlib import Path

import pytest

from lazyfs.run import ready
from lazyfs.run.ready import Probe, Started, is_ready


def test_a_command_ends_as_by_a_terminal() -> None:
    said = io.BytesIO()
    with Started(["sh", "-c", "echo ready; exec sleep 1000"], Probe("log", "ready"), said) as started:
        assert started.wait_ready(60) < 60
    assert started.end() == -15
    assert said.getvalue() == b"ready\n"


def test_a_container_that_heeds_no_signal_is_killed_and_its_command_cleans_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ready, "_END_SECONDS", 1.0)
    container = tmp_path / "container"
    container.write_text("trap '' TERM; echo ready; exec sleep 1000")
    runtime = tmp_path / "runtime"
    runtime.write_text(f"trap '' TERM; sh {container}; true")
    command = f"trap '' TERM; sh {runtime}; touch {tmp_path}/clean"
    with Started(["sh", "-c", command], Probe("log", "ready"), io.BytesIO()) as started:
        started.wait_ready(60)
    assert started.process.returncode == 0
    assert (tmp_path / "clean").exists()


def test_what_is_ready_before_a_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=answer, args=(listener,))
        server.start()
        assert is_ready(Probe("http", f"{port}/"))
        server.join()
    assert not is_ready(Probe("http", f"{port}/"))
    assert is_ready(Probe("exec", "true"))
    assert not is_ready(Probe("exec", "false"))
    assert not is_ready(Probe("log", "word"))


def answer(listener: socket.socket) -> None:
    with listener.accept()[0] as client:
        client.recv(1000)
        client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
