"""How much a container may write: its own label, the node's default, at the limit, after a reboot."""

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lazyfs.config import NodePaths
from lazyfs.errors import UsageError
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import MS_BIND, mount, unmount
from snapshotter import quota
from snapshotter.labels import TARGET
from snapshotter.limits import LIMIT, ImageLimiter, ProjectLimiter, choose_limiter, wanted_limit
from snapshotter.settings import SnapshotSettings
from tests.layouts import put_image
from tests.waiting import wait_until

from .client import Client, Service, code_of, perform
from .engine import CONFIG_OF_IMAGE, busybox_layer, running_engine

MIB = 1 << 20
LIMITED = {LIMIT: "16M"}


@pytest.fixture
def own(service: Service) -> Iterator[Client]:
    client = service.start().client()
    yield client
    client.close()
    for entry in list_mounts(service.root):
        unmount(entry.target, detach=True)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "target"
    while unmount(tmp_path / "target", detach=True):
        pass


def fill(file: Path) -> int:
    """Write until there is no space; how much there was."""
    with file.open("wb", buffering=0) as opened:
        try:
            while True:
                opened.write(bytes(MIB))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return file.stat().st_size


def loops(directory: Path) -> list[str]:
    said = subprocess.check_output(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], text=True)
    return [line for line in said.splitlines() if line.startswith(str(directory))]


@pytest.mark.parametrize(
    ("labels", "default", "limit"),
    [
        ({}, None, None),
        ({}, 7 * MIB, 7 * MIB),
        ({LIMIT: "1G"}, None, 1 << 30),
        ({LIMIT: "1G"}, 7 * MIB, 1 << 30),
        ({LIMIT: "none"}, 7 * MIB, None),
        ({TARGET: "sha256:x"}, 7 * MIB, None),
        ({TARGET: "sha256:x", LIMIT: "8MiB"}, 7 * MIB, 8 * MIB),
    ],
)
def test_which_limit(labels: dict[str, str], default: int | None, limit: int | None) -> None:
    assert wanted_limit(labels, default) == limit


@pytest.mark.parametrize("text", ["", "much", "80%", "-1G", "3M", "0"])
def test_what_can_be_no_limit(own: Client, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        own.prepare("a", labels={LIMIT: text})
    assert code_of(caught.value) == "INVALID_ARGUMENT"
    assert own.names() == []


def test_the_default_is_the_nodes(tmp_path: Path) -> None:
    paths = NodePaths.choose(tmp_path)
    assert SnapshotSettings.read(paths).limit is None
    paths.settings.write_text('[snapshots]\nlimit = "10G"\n')
    assert SnapshotSettings.read(paths).limit == 10 << 30
    paths.settings.write_text('[snapshots]\nlimits = "10G"\n')
    with pytest.raises(UsageError, match="there is no 'limits'"):
        SnapshotSettings.read(paths)


def test_who_writes_more_has_no_space_and_nobody_else(own: Client, target: Path, tmp_path: Path) -> None:
    perform(own.prepare("limited", labels=LIMITED), target)
    assert 12 * MIB < fill(target / "file") < 16 * MIB
    size, inodes = own.usage("limited")
    assert 12 * MIB < size < 16 * MIB
    assert inodes == 2
    other = perform(own.prepare("free"), tmp_path / "other")
    (other / "file").write_bytes(bytes(20 * MIB))
    unmount(other)
    (target / "file").unlink()
    assert fill(target / "again") > 12 * MIB


def test_it_takes_on_disk_what_is_written(
    own: Client, service: Service, target: Path, tmp_path: Path
) -> None:
    perform(own.prepare("limited", labels={LIMIT: "100G"}), target)
    [image] = loops(service.root)
    (target / "file").write_bytes(os.urandom(4 * MIB))
    assert image.endswith("limited.img")
    os.sync()
    # It lies below what is mounted of it.
    beneath = tmp_path / "beneath"
    beneath.mkdir()
    mount(service.root / "snapshots", beneath, None, MS_BIND, b"", what=str(beneath))
    [file] = beneath.glob("*/limited.img")
    assert 4 * MIB < file.stat().st_blocks * 512 < 64 * MIB
    assert file.stat().st_size == 100 << 30
    unmount(beneath)


def test_committed_and_built_upon(own: Client, service: Service, target: Path) -> None:
    """The limit is of what was written, and not of who builds upon it."""
    perform(own.prepare("first", labels=LIMITED), target)
    (target / "file").write_text("below")
    os.chown(target, 1000, 1001)
    own.commit("lower", "first")
    assert own.usage("lower")[1] == 2
    unmount(target)
    perform(own.prepare("second", "lower"), target)
    assert (target / "file").read_text() == "below"
    assert (target.stat().st_uid, target.stat().st_gid) == (1000, 1001)
    (target / "big").write_bytes(bytes(20 * MIB))
    unmount(target)
    perform(own.prepare("third", "lower", LIMITED), target)
    assert (target.stat().st_uid, target.stat().st_gid) == (1000, 1001)
    (target / "file").write_text("changed")
    fill(target / "big")
    assert (target / "file").read_text() == "changed"


def test_removed_it_leaves_nothing(own: Client, service: Service, target: Path) -> None:
    perform(own.prepare("limited", labels=LIMITED), target)
    unmount(target)
    own.remove("limited")
    own.cleanup()
    assert list_mounts(service.root / "snapshots") == []
    wait_until(lambda: not loops(service.root), "the end of the loop device")
    assert list((service.root / "snapshots").iterdir()) == []


def test_a_restart_is_not_noticed(own: Client, service: Service, target: Path) -> None:
    perform(own.prepare("limited", labels=LIMITED), target)
    (target / "file").write_text("before")
    service.stop()
    (target / "during").write_text("the restart")
    service.start()
    client = service.client()
    assert client.usage("limited")[1] == 3
    client.mounts("limited")
    assert len(loops(service.root)) == 1
    fill(target / "big")
    client.close()


def test_after_a_reboot_it_is_as_it_was(own: Client, service: Service, target: Path) -> None:
    perform(own.prepare("below", labels=LIMITED), target)
    (target / "lower").write_text("lower")
    unmount(target)
    own.commit("lower", "below")
    perform(own.prepare("limited", "lower", LIMITED), target)
    (target / "file").write_text("written")
    unmount(target)
    service.stop()
    for entry in list_mounts(service.root):
        unmount(entry.target)
    service.start()
    client = service.client()
    assert client.usage("limited")[1] == 2
    perform(client.mounts("limited"), target)
    assert (target / "lower").read_text() == "lower"
    assert (target / "file").read_text() == "written"
    assert 8 * MIB < fill(target / "big") < 16 * MIB
    client.close()


def test_a_container_by_the_nodes_default(
    service: Service, short_directory: Callable[[], Path], tmp_path: Path
) -> None:
    """Its image is unpacked, whatever its size; the container has no space."""
    service.node.root.mkdir(parents=True)
    service.node.settings.write_text('[snapshots]\nlimit = "4M"\n')
    service.start()
    put_image(tmp_path / "layout", [busybox_layer()], "v1", CONFIG_OF_IMAGE)
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", tmp_path / "layout", "-cf", archive, "."], check=True)
    with running_engine(short_directory(), service) as engine:
        engine.ctr("images", "import", "--snapshotter", "lazyfs", "--base-name", "app", archive)
        [name] = engine.ctr("images", "list", "--quiet").split()
        script = "dd if=/dev/zero of=/big bs=64k count=100 2>/dev/null || echo full; cat /etc/message"
        said = engine.run(name, "c", "sh", "-c", script)
        assert said == "full\nfrom below\n"


def _name(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


class Calls:
    """A kernel that knows project quota, and what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: int = 0) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._answer = answer
        monkeypatch.setattr(quota._libc, "syscall", self._syscall, raising=False)
        monkeypatch.setattr("snapshotter.quota.fcntl.ioctl", self._ioctl)

    def _syscall(self, number: int, descriptor: int, command: int, project: int, argument: Any) -> int:
        name, limits = _name(descriptor), argument._obj
        if isinstance(limits, quota._Limits):
            self.told.append((number, name, command, project, limits.hard, limits.soft, limits.valid))
        else:
            self.told.append((number, name, command, project))
        ctypes.set_errno(self._answer)
        return -1 if self._answer else 0

    def _ioctl(self, descriptor: int, request: int, argument: Any) -> int:
        name = _name(descriptor)
        if request == quota._GET_XATTR:
            argument.flags = 0x40  # what a file has already stays
        else:
            self.told.append((request, name, argument.flags, argument.project))
        return 0


def test_what_project_quota_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    for name in ("base", "base/fs", "base/work"):
        (tmp_path / name).mkdir()
    limiter = choose_limiter(tmp_path / "base")
    assert isinstance(limiter, ProjectLimiter)
    # Q_GETINFO, Q_SETQUOTA of PRJQUOTA; FS_IOC_FSSETXATTR with FS_XFLAG_PROJINHERIT
    assert calls.told == [(443, "base", 0x80000502, 0)]
    calls.told.clear()
    limiter.limit(tmp_path / "base", 7, 10 * MIB + 1)
    project = (1 << 30) + 7
    blocks = 10 * 1024 + 1
    assert calls.told[0] == (443, "base", 0x80000802, project, blocks, blocks, 1)
    assert sorted(calls.told[1:]) == [(0x401C5820, name, 0x240, project) for name in ("base", "fs", "work")]
    calls.told.clear()
    limiter.show(tmp_path / "base")
    limiter.forget(tmp_path / "base", 7)
    assert calls.told == [(443, "base", 0x80000802, project, 0, 0, 1)]


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ESRCH, errno.ENOTSUP])
def test_where_there_is_no_project_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    Calls(monkeypatch, answer)
    assert isinstance(choose_limiter(tmp_path), ImageLimiter)
