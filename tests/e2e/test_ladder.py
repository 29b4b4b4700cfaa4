"""Each way to show an image: containers run in it, it is cleaned up, and what this kernel cannot do is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.ladder import LOOP, TREE
from tests.layouts import put_image
from tests.trees import DIRECTORY, SYMLINK, Entry, layer_tar
from tests.waiting import wait_until

from .conftest import PATIENCE, RUNGS, Node, assert_error, drop_page_cache, lazyfs, succeed

pytestmark = pytest.mark.root
MIB = 1 << 20


def convert(tmp_path: Path, *layers: list[Entry]) -> str:
    put_image(tmp_path / "layout", [layer_tar(layer) for layer in layers])
    succeed(lazyfs("convert", f"oci:{tmp_path}/layout:made", f"oci:{tmp_path}/lazy:made"))
    return f"oci:{tmp_path}/lazy:made"


def loop_devices(below: Path) -> list[str]:
    listed = subprocess.run(
        ["losetup", "--list", "--json", "--output", "NAME,BACK-FILE"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    devices = json.loads(listed or '{"loopdevices": []}')["loopdevices"]
    return [device["name"] for device in devices if str(device["back-file"]).startswith(str(below))]


@pytest.mark.parametrize("mode", RUNGS)
def test_containers_run(node: Node, small: str, mode: str) -> None:
    script = "cd /srv/app; ls | wc -l; echo new > new; rm -r many; ls | wc -l; cksum *; cat /etc/passwd"
    words = ["--mount-mode", mode, "--entrypoint", "sh", small, "-c", script]
    first = succeed(node.run(*words)).stdout
    assert succeed(node.run(*words)).stdout == first
    assert succeed(node.run("--mount-mode", RUNGS[0], *words[2:])).stdout == first
    wait_until(lambda: not loop_devices(node.root), "the end of the loop device")


@pytest.mark.parametrize("mode", RUNGS)
def test_in_use(node: Node, small: str, tmp_path: Path, mode: str) -> None:
    view = node.mount(small, tmp_path / "view", "--mount-mode", mode)
    writable = node.mount(small, tmp_path / "rw", "--rw", "--mount-mode", mode)
    assert len(loop_devices(node.root)) == (mode == LOOP)
    assert {mount["target"] for mount in node.status()["mounts"]} == {str(view), str(writable)}
    with (view / "srv/app/random").open("rb"):
        assert_error(node("umount", view), 8, "in use")
    assert_error(node("shutdown"), 8, "1 image of")
    node.umount(view)
    assert (writable / "srv/app/random").read_bytes()
    assert_error(node("shutdown"), 8, "1 image of")
    node.umount(writable)
    wait_until(lambda: not loop_devices(node.root), "the end of the loop device")
    assert node.mounts() == ["fuse"]


def test_the_settings_say_which(node: Node, small: str, tmp_path: Path) -> None:
    node.root.mkdir()
    (node.root / "config.toml").write_text('[mount]\nmode = "tree"\n')
    view = node.mount(small, tmp_path / "view")
    assert node.status()["mounts"] == [{"target": str(view), "kind": "fuse.lazyfs", "direct": False}]
    node.umount(view)
    said = json.loads(node("doctor", "--json").stdout)
    (found,) = (each["found"] for each in said if each["name"] == "mount mode")
    assert found.startswith("tree: there is /dev/fuse")
    (node.root / "config.toml").write_text('[mount]\nmode = "best"\n')
    assert_error(node("mount", small, view), 2, "no mount mode 'best'", "auto, ")
    (node.root / "config.toml").write_text("[mount]\nmodes = 1\n")
    assert_error(node("mount", small, view), 2, "[mount]")
    assert_error(node("mount", "--mount-mode", "best", small, view), 2, "best")


def test_what_was_found_is_remembered_for_this_boot(node: Node, small: str, tmp_path: Path) -> None:
    node.umount(node.mount(small, tmp_path / "view"))
    record = json.loads((node.root / "ladder.json").read_bytes())
    assert [rung["mode"] for rung in record["rungs"]] == list(RUNGS)
    for rung in record["rungs"]:
        if rung["mode"] != TREE:
            rung |= {"works": False, "reason": "as on an old kernel"}
    (node.root / "ladder.json").write_text(json.dumps(record))
    node.mount(small, tmp_path / "view")
    assert node.status()["mounts"][0]["kind"] == "fuse.lazyfs"
    node.umount(tmp_path / "view")
    assert_error(
        node("mount", "--mount-mode", LOOP, small, tmp_path / "view"), 10, "as on an old kernel", "doctor"
    )
    for stale in (json.dumps(record | {"boot": "another"}), json.dumps(record | {"rungs": [1]}), "no JSON"):
        (node.root / "ladder.json").write_text(stale)
        node.mount(small, tmp_path / "view")
        assert node.status()["mounts"][0]["kind"] == "erofs"
        node.umount(tmp_path / "view")


def test_a_root_on_tmpfs(small: str, tmp_path: Path) -> None:
    """Whose files EROFS does not mount."""
    target = tmp_path / "tmpfs"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    node = Node(target / "node")
    try:
        assert succeed(node.run(small)).stdout == "ready small\n"
        assert "loop: a test image was mounted and read" in node("doctor").stdout
        succeed(node("shutdown"))
        wait_until(lambda: not loop_devices(node.root), "the end of the loop device")
    finally:
        node.close()
        subprocess.run(["umount", "--lazy", target], check=True)


def test_a_tree_of_50000_entries(node: Node, tmp_path: Path) -> None:
    """Listed to the last one."""
    names = [b"%x" % (number * 2654435761 % 2**32) for number in range(50_000)]
    few = [b"%x" % number for number in range(5_000)]
    reference = convert(
        tmp_path, [Entry(b"many/" + name) for name in names] + [Entry(b"few/" + name) for name in few]
    )
    view = node.mount(reference, tmp_path / "view", "--mount-mode", TREE)

    for directory, expected in (("many", names), ("few", few)):
        found = os.listdir(os.fsencode(view / directory))  # noqa: PTH208 - names as bytes
        assert sorted(found) == sorted(expected)
    assert all((view / "many" / name.decode()).stat().st_size == 0 for name in names[::100])
    assert not (view / "many/nothing").exists()
    node.umount(view)


def test_a_tree_stays_in_the_kernel(node: Node, tmp_path: Path) -> None:
    """What one listing has brought is known without the daemon: names, attributes, targets, and what is not there."""
    reference = convert(
        tmp_path, [*(Entry(b"d/%d" % number) for number in range(2_000)), Entry(b"d/l", SYMLINK, target=b"0")]
    )
    view = node.mount(reference, tmp_path / "view", "--mount-mode", TREE)
    listed = os.listdir(view / "d")  # noqa: PTH208 - it is many
    assert os.readlink(view / "d" / "l") == "0"  # noqa: PTH115
    assert not (view / "d/nothing").exists()
    script = (
        "import os, sys; d = sys.argv[1]; print('ready', flush=True)\n"
        "for name in sys.stdin.read().split(): os.lstat(f'{d}/{name}')\n"
        "assert os.readlink(f'{d}/l') == '0' and not os.path.exists(f'{d}/nothing')"
    )
    command = [sys.executable, "-c", script, str(view / "d")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as looker:
        assert looker.stdout is not None
        looker.stdout.readline()
        with node.frozen():  # who asked it would wait for ever
            looker.communicate("\n".join(listed), timeout=PATIENCE)
    assert looker.returncode == 0
    node.umount(view)


@pytest.mark.parametrize("mode", RUNGS)
def test_sequential_reading_comes_in_large_requests(node: Node, tmp_path: Path, mode: str) -> None:
    content = Random(1).randbytes(32 * MIB)
    view = node.mount(
        convert(tmp_path, [Entry(b"f", content=content)]), tmp_path / "view", "--mount-mode", mode
    )
    assert (view / "f").read_bytes() == content
    drop_page_cache()
    before = node.status()["device_reads"]
    assert (view / "f").read_bytes() == content
    assert node.status()["device_reads"] - before < 32 * 5
    node.umount(view)


@pytest.mark.parametrize("mode", RUNGS)
def test_a_killed_daemon_is_not_noticed(node: Node, tmp_path: Path, mode: str) -> None:
    """Neither by who has a file open nor by who looks for one that nobody has looked at."""
    contents = [Random(seed).randbytes(MIB + seed) for seed in range(3)]
    layers = [[Entry(b"d/%d" % number, content=content)] for number, content in enumerate(contents)]
    view = node.mount(convert(tmp_path, *layers), tmp_path / "view", "--mount-mode", mode)
    with (view / "d/0").open("rb") as file:
        first = file.read(4096)
        for _ in range(2):
            node.kill_daemon()
            drop_page_cache()
            file.seek(4096)
            assert first + file.read() == contents[0]
        assert (view / "d/1").read_bytes() == contents[1]
        assert sorted(path.name for path in (view / "d").iterdir()) == ["0", "1", "2"]
    drop_page_cache()
    node.kill_daemon()
    again = node.mount(f"oci:{tmp_path}/lazy:made", tmp_path / "again", "--mount-mode", mode)
    assert [(again / "d" / str(number)).read_bytes() for number in range(3)] == contents
    node.umount(view)
    node.umount(again)
    wait_until(lambda: not loop_devices(node.root), "the end of the loop device")


@pytest.mark.parametrize("mode", RUNGS)
def test_layers_that_were_let_go_come_again(node: Node, small: str, tmp_path: Path, mode: str) -> None:
    client = DaemonClient(NodePaths.choose(node.root))
    for _ in range(2):
        view = node.mount(small, tmp_path / "view", "--mount-mode", mode)
        client.release()
        assert len((view / "srv/app/random").read_bytes()) > MIB
        node.umount(view)
        client.release()
        assert node.status()["layers"] == []
        assert [path.name for path in (node.root / "fuse").iterdir()] == []


@pytest.mark.parametrize("mode", RUNGS)
def test_attributes_that_are_easily_lost(node: Node, tmp_path: Path, mode: str) -> None:
    acl = bytes.fromhex(
        "0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000000ffffffff"
    )
    reference = convert(
        tmp_path,
        [
            Entry(b"d", DIRECTORY, mode=0o2755, uid=7, gid=8, xattrs={b"trusted.mark": b"of root"}),
            Entry(b"d/f", content=b"secret", mode=0o640, xattrs={b"system.posix_acl_access": acl}),
            Entry(b"l", SYMLINK, target=b"x" * 4095),
            Entry(b"sparse", content=bytes(5 * MIB) + b"end", sparse=((5 * MIB, 3),)),
        ],
    )
    view = node.mount(reference, tmp_path / "view", "--mount-mode", mode)
    assert os.getxattr(view / "d", "trusted.mark") == b"of root"
    assert os.readlink(view / "l") == "x" * 4095  # noqa: PTH115 - as it is
    assert (view / "sparse").read_bytes() == bytes(5 * MIB) + b"end"
    # The ACL is enforced: it lets user 1000 read.
    for uid, code in ((1000, 0), (1001, 1)):
        drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        (tmp_path / "view").parent.chmod(0o755)
        reader = subprocess.run([*drop, "cat", "d/f"], cwd=view, check=False, capture_output=True)
        assert reader.returncode == code, reader.stderr
    node.umount(view)
