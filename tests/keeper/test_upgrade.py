"""Another version takes over in place; and what becomes of a node when its processes or its kernel are new."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.errors import BusyError, NodeError
from lazyfs.keeper.client import KeeperClient
from lazyfs.mount.mountinfo import list_mounts
from tests.daemon.processes import PATIENCE, REPOSITORY, daemons, end, keepers
from tests.waiting import wait_until

from .conftest import CONTENT, Mounted

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of lazyfs, to be found by PYTHONPATH."""
    directory = tmp_path_factory.mktemp("newer")
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("lazyfs", "converter", "snapshotter"):
        shutil.copytree(REPOSITORY / name, directory / name, ignore=skipped)
    text = (directory / "lazyfs" / "__init__.py").read_text()
    (directory / "lazyfs" / "__init__.py").write_text(text + '\n__version__ = "9.9"\n')
    return directory


def upgrade(paths: NodePaths, code: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lazyfs.cli.main", "--root", paths.root, "upgrade"],
        env=os.environ | {"PYTHONPATH": str(code)},
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_new_version_takes_over_under_readers(mounted: Mounted, newer: Path) -> None:
    device = Path(str(mounted.image["devices"][0]))  # type: ignore[index]
    over = threading.Event()

    def read() -> int:
        count = 0
        while not (over.is_set() and count):
            for path in (mounted.target / "big", device):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    data = file.read()
                assert path == device or data == CONTENT
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read) for _ in range(4)]
        pid, (keeper,) = mounted.pid(), keepers(mounted.paths)
        said = upgrade(mounted.paths, newer)
        over.set()
        assert all(each.result() > 0 for each in reading)
    assert said.returncode == 0, said.stderr
    assert "of lazyfs 9.9 serves" in said.stdout
    assert KeeperClient(mounted.paths).status()["version"] == "9.9"
    assert keepers(mounted.paths) == [keeper], "the same process"
    assert mounted.pid() != pid
    assert daemons(mounted.paths) == [mounted.pid()]
    assert DaemonClient(mounted.paths).status()["images"]
    end([mounted.pid()])
    assert mounted.read() == CONTENT


def test_a_new_version_that_does_not_start(mounted: Mounted, newer: Path, tmp_path: Path) -> None:
    """The old one goes on, whether the new keeper is at fault or the new daemon."""
    broken = Path(shutil.copytree(newer, tmp_path / "broken"))
    pid = mounted.pid()
    service = broken / "lazyfs" / "daemon" / "service.py"
    service.write_text("raise ModuleNotFoundError(name='something')")
    said = upgrade(mounted.paths, broken)
    assert said.returncode == NodeError.exit_code
    assert "needs the package something" in said.stderr
    assert mounted.pid() == pid
    (broken / "lazyfs" / "keeper" / "keeper.py").write_text("syntax error")
    said = upgrade(mounted.paths, broken)
    assert said.returncode == NodeError.exit_code
    assert "does not start: SyntaxError" in said.stderr
    assert mounted.pid() == pid
    assert mounted.read() == CONTENT


def test_a_program_that_is_none(mounted: Mounted) -> None:
    with pytest.raises(Exception, match="is not a program"):
        KeeperClient(mounted.paths).upgrade("/nowhere/python", None)
    assert mounted.read() == CONTENT


def test_no_upgrade_while_a_daemon_starts(mounted: Mounted) -> None:
    mounted.paths.settings.write_text("[cache]\nlimit = 'nonsense'\n")  # so it is at it until this goes
    end([mounted.pid()])
    with pytest.raises(BusyError, match="just starts or ends"):
        KeeperClient(mounted.paths).upgrade(sys.executable, None)
    mounted.paths.settings.unlink()
    assert mounted.read() == CONTENT


def test_state_of_a_later_version_is_refused(mounted: Mounted) -> None:
    import sqlite3

    pid = mounted.pid()
    database = sqlite3.connect(mounted.paths.state / "node.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    end([pid])
    wait_until(lambda: KeeperClient(mounted.paths).status()["last_error"], "its complaint")
    error = KeeperClient(mounted.paths).status()["last_error"]
    assert "is of version 99" in error["message"]
    assert "newer lazyfs" in error["hint"]
    database = sqlite3.connect(mounted.paths.state / "node.db")
    database.execute("PRAGMA user_version = 1")
    database.close()
    assert mounted.read() == CONTENT


class Systemd:
    """What systemd is to a service: hears it, keeps its descriptors, gives them to the next start."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.root = root
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.address = str(directory / "notify")
        self.socket.bind(self.address)
        self.kept: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The service, with what was kept; returns when it is ready."""
        environment = os.environ | {"NOTIFY_SOCKET": self.address}
        command = [sys.executable, "-m", "lazyfs.keeper", "--root", str(self.root)]
        passed: tuple[int, ...] = ()
        if self.kept is not None:
            script = f'[ {self.kept} = 3 ] || exec 3<&{self.kept}; LISTEN_PID=$$ exec "$@"'
            environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "fuse"}
            command = ["bash", "-c", script, "bash", *command]
            passed = (self.kept,)
        with (self.root.parent / "service.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, pass_fds=passed, stderr=log)
        while "READY=1" not in self._hear():
            pass

    def _hear(self) -> str:
        raw, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 4)
        if descriptors and self.kept is not None:
            os.close(self.kept)
        for descriptor in descriptors:
            self.kept = descriptor
        return raw.decode()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(PATIENCE) == 0

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)


def test_the_service_is_restarted(paths: NodePaths, layout: Path, tmp_path: Path) -> None:
    """Every process ends, and what is mounted goes on with the next: systemd has the connection."""
    paths.root.mkdir()
    systemd = Systemd(tmp_path, paths.root)
    target = tmp_path / "mounted"
    target.mkdir()
    systemd.start()
    try:
        mounted = _mount(paths, layout, target)
        with (target / "big").open("rb") as file:
            assert file.read(4096) == CONTENT[:4096]
            systemd.stop()
            assert keepers(paths) == daemons(paths) == []
            systemd.start()
            assert file.read() == CONTENT[4096:]
        systemd.kill()
        end(daemons(paths))
        systemd.start()
        with (target / "big").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == CONTENT
        assert mounted
    finally:
        subprocess.run(["umount", "--lazy", target], check=False)
        systemd.stop()
        systemd.socket.close()
        if systemd.kept is not None:
            os.close(systemd.kept)
    assert list_mounts(paths.root) == []


def _mount(paths: NodePaths, layout: Path, target: Path) -> dict[str, Any]:
    from lazyfs.daemon.client import daemon_in_use
    from lazyfs.mount.images import mount_view

    with daemon_in_use(paths) as client:
        image = client.open_image(f"oci:{layout}:lazy")
        mount_view(paths, image, target)
        return image
