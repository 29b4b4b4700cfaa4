"""A root file system of busybox, and a node that runs containers on it."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.containers import GROUP, PASSWD, PATIENCE, Node
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """What hangs fails, and its processes are ended by the other fixtures."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the test took too long")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(2 * PATIENCE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "root", "home/app"):
        (root / name).mkdir(parents=True)
    busybox = Path("/bin/busybox")
    assert busybox.exists(), "these tests need a static busybox: apt-get install busybox-static"
    (root / "bin/busybox").write_bytes(busybox.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


@pytest.fixture(params=["crun", "runc"])
def node(request: pytest.FixtureRequest, deadline: None, rootfs: Path, tmp_path: Path) -> Iterator[Node]:
    """Fails a test that leaves a process, a mount or a file behind."""
    node = Node(request.param, rootfs, tmp_path / "containers")
    try:
        yield node
        wait_until(lambda: not node.leftovers(), "an end without leftovers")
    finally:
        node.close()
