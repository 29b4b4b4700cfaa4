"""The process: start, end, and what it finds from before."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import UnsupportedError
from snapshotter.records import Records
from tests.daemon.processes import daemons, keepers, may_be_dumped
from tests.waiting import wait_until

from .client import PATIENCE, Client, Service, code_of


def test_records_outlive_the_process(service: Service) -> None:
    client = service.start().client()
    mounts = client.prepare("a", labels={"x": "y"})
    client.close()
    assert service.stop() == 0
    assert not service.socket.exists()
    client = service.start().client()
    assert client.mounts("a") == mounts
    assert dict(client.stat("a").labels) == {"x": "y"}
    client.close()
    assert service.stop(signal.SIGINT) == 0


def test_started_again_after_a_kill(service: Service) -> None:
    service.start().client().close()
    service.stop(signal.SIGKILL)
    assert service.socket.exists()
    client = service.start().client()
    assert client.names() == []
    client.close()


def test_ended_while_the_daemon_starts(service: Service) -> None:
    """Then that ends as well, when it has started."""
    service.start(wait=False)
    wait_until(service.socket.exists, "its socket")
    assert service.stop() == 0
    wait_until(lambda: keepers(service.node) == daemons(service.node) == [], "the end of the daemon")


def test_the_socket_is_roots_alone(service: Service) -> None:
    service.start()
    assert service.socket.stat().st_mode & 0o777 == 0o600


def test_its_memory_is_nobodys(service: Service) -> None:
    """Passwords of pulls come by there."""
    service.start()
    assert service.process is not None
    assert not may_be_dumped(service.process.pid)


def test_one_process_for_a_root_and_a_socket(service: Service, tmp_path: Path) -> None:
    service.start()
    for root, address in ((service.root, tmp_path / "s"), (tmp_path / "root", service.socket)):
        second = subprocess.run(
            [sys.executable, "-m", "snapshotter", "--root", root, "--address", address],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert second.returncode == 8
        assert second.stderr.startswith("lazyfs-snapshotter: another process serves")
    client = service.client()
    assert client.names() == []
    client.close()


def test_settings_from_a_file(service: Service, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    for text, code in ((None, 2), ("[snapshots]\nlimit = 'much'\n", 2), ("[snapshots]\nlimit = '10G'\n", 0)):
        if text is not None:
            config.write_text(text)
        service.start("--config", str(config), wait=code == 0)
        assert service.process is not None
        if code:
            assert service.process.wait(PATIENCE) == code
            service.process = None
    assert service.node.settings.readlink() == config
    assert service.stop() == 0
    service.start("--config", str(config), "--node", str(tmp_path), wait=False)
    assert service.process is not None
    assert service.process.wait(PATIENCE) == 2
    service.process = None
    assert "is another's" in service.log.read_text()


def test_what_it_does_not_know(service: Service) -> None:
    service.start()
    for method, request, code in (
        ("/containerd.services.snapshots.v1.Snapshots/Nothing", b"", "UNIMPLEMENTED"),
        ("/other.Service/Prepare", b"", "UNIMPLEMENTED"),
        ("/containerd.services.snapshots.v1.Snapshots/Prepare", b"\xff\xff", "INVALID_ARGUMENT"),
        ("/containerd.services.snapshots.v1.Snapshots/Stat", b"", "NOT_FOUND"),
    ):
        with (
            grpc.insecure_channel(f"unix:{service.socket}") as channel,
            pytest.raises(grpc.RpcError) as info,
        ):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            call(request, timeout=PATIENCE)
        assert code_of(info.value) == code


def test_records_of_a_later_version(tmp_path: Path) -> None:
    Records(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UnsupportedError, match="later version"):
        Records(tmp_path / "db")


def test_damaged_records(service: Service) -> None:
    service.root.mkdir()
    (service.root / "records.db").write_bytes(b"not a database" * 1000)
    service.start(wait=False)
    assert service.process is not None
    assert service.process.wait(PATIENCE) == 7
    service.process = None
    assert "records.db: file is not a database" in service.log.read_text()


def test_clients_that_go_away(service: Service) -> None:
    service.start()
    clients = [Client(service.socket) for _ in range(20)]
    for each in clients:
        each.prepare(f"by {id(each)}")
        each.close()
    client = service.client()
    assert len(client.names()) == 20
    client.close()


def test_the_daemon_of_a_node_that_others_use(service: Service, short_directory: Callable[[], Path]) -> None:
    """It is found, and goes on when the service ends."""
    node = NodePaths.choose(short_directory())
    before = ensure_daemon(node).status()["pid"]
    try:
        service.start("--node", str(node.root))
        assert service.stop() == 0
        assert DaemonClient(node).status()["pid"] == before
        assert not service.node.root.exists()
    finally:
        DaemonClient(node).shutdown()
