"""Machines whose cgroups are laid out otherwise, shown to lazyfs in a mount namespace of its own."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.errors import NodeError
from lazyfs.mount.mountinfo import all_mounts, parse_mountinfo
from lazyfs.mount.syscalls import mount_overlay, unmount
from lazyfs.run.cgroups import remove_cgroup, survey
from lazyfs.run.runtime import find_runtime
from tests.run.containers import PATIENCE, Node
from tests.waiting import wait_until

pytestmark = pytest.mark.root

V1 = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup/unified")
NO_CGROUPS = "umount -R /sys/fs/cgroup"
READ_ONLY = "for place in /sys/fs/cgroup/*; do mount -o remount,bind,ro $place; done 2>/dev/null"
LIMITED = ("sh", "-c", "mknod /tmp/made c 1 3 && rm /tmp/made && echo made")


def seeing(change: str) -> tuple[str, ...]:
    return ("unshare", "-m", "--propagation", "private", "sh", "-c", f'{change}; exec "$@"', "-")


@pytest.mark.parametrize("change", [NO_CGROUPS, READ_ONLY])
def test_without_cgroups_crun_goes_on(node: Node, change: str) -> None:
    result = node.run(*LIMITED, wrap=seeing(change))
    if node.runtime == "crun":
        # Nothing filters devices, so none can be made.
        assert (result.returncode, result.stdout) == (1, "")
        assert "Operation not permitted" in result.stderr
        assert node.run("true", wrap=seeing(change), runtime="").returncode == 0
    else:
        assert result.returncode == 125
        assert "crun" in json.loads(result.stderr)["hint"]


@pytest.mark.parametrize("change", [NO_CGROUPS, READ_ONLY])
def test_without_cgroups_memory_is_not_limited_silently(node: Node, change: str) -> None:
    result = node.run("true", memory="64m", runtime="crun", wrap=seeing(change))
    assert result.returncode == 125
    assert json.loads(result.stderr)["error"] == "NodeError"


def test_v1_alone(node: Node) -> None:
    if not survey().usable or not V1.is_mount():
        pytest.skip("this machine has cgroup v2 alone")
    result = node.run(*LIMITED, memory="64m", wrap=seeing(f"umount {UNIFIED}"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "made\n", "")


def test_v2_alone(node: Node) -> None:
    change = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
    result = node.run(*LIMITED, wrap=seeing(change))
    if "RLIM_MEMLOCK" in result.stderr:
        pytest.skip("crun needs CAP_SYS_RESOURCE for the device filter of cgroup v2")
    assert (result.returncode, result.stdout, result.stderr) == (0, "made\n", "")


def test_survey_sees_what_is_mounted() -> None:
    mounted = {entry.target for entry in all_mounts()}
    found = survey()
    assert found.usable
    if V1 in mounted:
        assert found.memory
        assert found.hide == (UNIFIED if UNIFIED.is_dir() else None)
    else:
        assert found.hide is None


def test_a_stuck_cgroup_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lazyfs-test-stuck-{os.urandom(6).hex()}"  # another run of the tests may have one as well
    place = Path("/sys/fs/cgroup/pids", name)
    if not place.parent.is_dir():
        place = Path("/sys/fs/cgroup", name)
    place.mkdir()
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        (place / "cgroup.procs").write_text(str(sleeper.pid))
        monkeypatch.setattr("lazyfs.run.cgroups._GONE_WITHIN", 0)
        monkeypatch.setattr("os.kill", lambda pid, number: None)
        with pytest.raises(NodeError, match="stuck"):
            remove_cgroup(f"/{name}")
        monkeypatch.undo()
        remove_cgroup(f"/{name}")
        assert sleeper.wait(PATIENCE) == -9
        assert not place.exists()
    finally:
        sleeper.kill()
        sleeper.wait()
        if place.exists():
            remove_cgroup(f"/{name}")


@pytest.fixture
def other_image(tmp_path: Path) -> Iterator[Path]:
    for name in ("a", "b", "other"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    target = tmp_path / "elsewhere/other"
    mount_overlay(target, [tmp_path / "elsewhere/a", tmp_path / "elsewhere/b"])
    yield target
    while unmount(target, detach=True):
        pass


def test_other_images_can_end_before_a_container_does(node: Node, other_image: Path) -> None:
    process = node.start("sleep", "1000", name="long")
    wait_until(node.processes, "the container's process")
    unmount(other_image)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*children, *node.processes()):
        with suppress(OSError):  # a runtime's helper has ended
            seen = parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_bytes())
            assert other_image not in [entry.target for entry in seen]
    assert node.processes()
    process.kill()


def test_runtime_by_path_and_by_name(tmp_path: Path) -> None:
    cgroups = survey()
    found = find_runtime("", cgroups)
    assert Path(found.program).name == "crun"
    assert find_runtime(found.program, cgroups) == found
    assert find_runtime("runc", cgroups).hide is None
    (tmp_path / "plain").write_text("")
    for wanted in (str(tmp_path / "plain"), str(tmp_path), "no-such", "./no-such"):
        with pytest.raises(NodeError) as caught:
            find_runtime(wanted, cgroups)
        assert caught.value.hint
