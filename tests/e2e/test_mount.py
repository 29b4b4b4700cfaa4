"""`lazyfs mount` and `umount`: views, overlays, and what happens to them when the node is killed."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.mount.mountinfo import list_mounts
from tests.referees import snapshot
from tests.waiting import wait_until

from .conftest import PATIENCE, Node, assert_error, lazyfs, succeed

RANDOM = "srv/app/random"


def proc_mounts(target: Path) -> list[list[str]]:
    """The lines of /proc/mounts for it, as words."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [words for words in lines if words[1] == str(target)]


def test_a_view_is_read_only(node: Node, small: str, tmp_path: Path) -> None:
    view = node.mount(small, tmp_path / "view")
    ((_, _, kind, options, _, _),) = proc_mounts(view)
    assert kind == "erofs"
    assert {"ro", "nodev", "nosuid"} <= set(options.split(","))
    with pytest.raises(OSError, match="Read-only"):
        (view / "new").touch()
    node.umount(view)
    assert list_mounts(tmp_path / "view") == []
    assert view.is_dir()


def test_an_overlay_is_an_ordinary_one(node: Node, small: str, tmp_path: Path) -> None:
    target = node.mount(small, tmp_path / "rw", "--rw")
    ((_, _, kind, options, _, _),) = proc_mounts(target)
    assert kind == "overlay"
    words = dict(word.partition("=")[::2] for word in options.split(","))
    assert "rw" in words
    assert [Path(words[name]).is_dir() for name in ("lowerdir", "upperdir", "workdir")] == [True] * 3
    assert [options.count(f"{name}=") for name in ("lowerdir", "upperdir", "workdir")] == [1] * 3
    assert ":" not in words["lowerdir"]
    node.umount(target)
    assert not Path(words["upperdir"]).exists()


def test_an_overlay_shows_the_same_tree(node: Node, small: str, tmp_path: Path) -> None:
    """To the root directory's times. Link counts and inode numbers of an overlay are its own affair."""
    view, target = node.mount(small, tmp_path / "view"), node.mount(small, tmp_path / "rw", "--rw")

    def comparable(root: Path) -> dict[bytes, tuple[object, ...]]:
        return {
            path: (
                each.mode,
                each.owner,
                each.mtime,
                each.size,
                each.rdev,
                each.target,
                each.xattrs,
                each.sha256,
            )
            for path, each in snapshot(root).items()
        }

    assert comparable(view) == comparable(target)
    node.umount(view)
    node.umount(target)


def test_an_overlay_can_be_written(node: Node, small: str, tmp_path: Path) -> None:
    target = node.mount(small, tmp_path / "rw", "--rw")
    app = target / "srv/app"
    size = (app / "random").stat().st_size
    with (app / "random").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"written")
    data = (app / "random").read_bytes()
    assert (len(data), data[1_000_000:1_000_007]) == (size, b"written")
    (app / "zeros").rename(app / "renamed")
    assert not (app / "zeros").exists()
    assert (app / "renamed").read_bytes() == bytes(3_000_000)
    # What every overlay says of its lower directories: EXDEV; mv copies then.
    subprocess.run(["mv", app / "many", target / "moved"], check=True)
    assert len(list((target / "moved").iterdir())) == 599
    (app / "linked").hardlink_to(app / "renamed")
    assert (app / "linked").stat().st_nlink == 2
    (app / "linked").unlink()
    subprocess.run(["rm", "-r", target / "bin"], check=True)
    assert not (target / "bin").exists()
    (target / "bin").mkdir()
    assert list((target / "bin").iterdir()) == []
    os.chown(app / "entry.sh", 5, 6)
    (app / "entry.sh").chmod(0o4700)
    os.setxattr(app / "entry.sh", "user.note", b"mine")
    assert os.getxattr(app / "entry.sh", "user.note") == b"mine"
    os.symlink("nowhere", target / "link")  # noqa: PTH211
    os.mkfifo(target / "fifo")
    os.mknod(target / "null", 0o20666, os.makedev(1, 3))
    assert (target / "null").read_bytes() == b""
    node.umount(target)
    # All of it has gone.
    again = node.mount(small, tmp_path / "rw", "--rw")
    assert (again / "srv/app/zeros").exists()
    node.umount(again)


def test_errors(node: Node, small: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert_error(node("mount", small, target), 3, "is not a directory", "mkdir")
    (tmp_path / "file").touch()
    assert_error(node("mount", small, tmp_path / "file"), 3, "is not a directory")
    assert_error(node("mount", small, tmp_path), 2, "is not empty")
    target.mkdir()
    assert_error(node("mount", f"{small}-other", target), 3, "small-other")
    assert_error(node("umount", target), 3, "is not an image mounted by this node", "lazyfs status")
    node.mount(small, target)
    assert_error(node("mount", small, target), 8, "something is mounted")
    with (target / RANDOM).open("rb"):
        assert_error(node("umount", target), 8, "in use")
    assert_error(node("shutdown"), 8, "1 image of", "umount")
    node.umount(target)
    assert_error(node("umount", target), 3)
    assert_error(node("mount", small), 2, "DIR")


def test_relative_names_and_symlinks(node: Node, small: str, tmp_path: Path) -> None:
    layout, tag = small.removeprefix("oci:").rsplit(":", 1)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    reference = f"oci:{os.path.relpath(layout, tmp_path)}:{tag}"
    succeed(lazyfs("mount", "--root", "node", reference, "link", cwd=tmp_path))
    assert (tmp_path / "real" / RANDOM).exists()
    succeed(lazyfs("umount", "--root", "node", "link/../real/", cwd=tmp_path))
    assert list_mounts(tmp_path / "real") == []


def test_one_image_at_many_places(node: Node, small: str, tmp_path: Path) -> None:
    """There is one EROFS mount below; it goes with its last user."""
    targets = [node.mount(small, tmp_path / f"target{number}") for number in range(3)]
    targets.append(node.mount(small, tmp_path / "rw", "--rw"))
    assert len([target for target in node.mounts() if target.startswith("m/")]) == 1
    status = node.status()
    assert sorted(each["target"] for each in status["mounts"]) == sorted(map(str, targets))
    for target in targets:
        assert (target / RANDOM).stat().st_size == 3145728
        node.umount(target)
    assert node.mounts() == ["fuse"]


def test_two_nodes_show_one_image(make_node: Callable[..., Node], small: str, tmp_path: Path) -> None:
    one, two = make_node("one"), make_node("two")
    first, second = one.mount(small, tmp_path / "first"), two.mount(small, tmp_path / "second")
    assert_error(two("umount", first), 3)
    one.umount(first)
    succeed(one("shutdown"))
    assert (second / RANDOM).read_bytes()
    two.umount(second)


def test_the_daemon_is_killed_while_nothing_is_mounted(node: Node, small: str, tmp_path: Path) -> None:
    for _ in range(3):
        view = node.mount(small, tmp_path / "view")
        node.umount(view)
        node.kill()
        assert_error(node("status"), 3, "no daemon runs")
    assert succeed(node.run(small)).stdout == "ready small\n"


def test_daemon_and_keeper_are_killed_while_something_is_mounted(
    node: Node, small: str, tmp_path: Path
) -> None:
    view, overlay = node.mount(small, tmp_path / "view"), node.mount(small, tmp_path / "rw", "--rw")
    node.kill()
    for target in (view, overlay):
        with pytest.raises(OSError, match="Input/output error"):
            (target / RANDOM).read_bytes()
        assert len(list((target / "srv/app").iterdir())) > 10, "what the bootstrap says is still known"
        node.umount(target)
    assert node.mounts() == ["fuse"]
    again = node.mount(small, tmp_path / "view")
    assert len((again / RANDOM).read_bytes()) == 3145728
    node.umount(again)


def test_a_reader_that_waits_when_the_daemon_is_killed(node: Node, small: str, tmp_path: Path) -> None:
    """The daemon is stopped first, so that the read is certainly on its way."""
    view = node.mount(small, tmp_path / "view")
    with ThreadPoolExecutor(1) as pool:
        with node.frozen() as pid:
            reader = pool.submit((view / RANDOM).read_bytes)
            waiting = Path(f"/sys/fs/fuse/connections/{fuse_connection(node)}/waiting")
            if waiting.exists():
                wait_until(lambda: int(waiting.read_text()) > 0, "a read that waits")
            os.kill(pid, signal.SIGKILL)
        assert len(reader.result(PATIENCE)) == 3145728
    node.umount(view)


def fuse_connection(node: Node) -> str:
    (entry,) = list_mounts(node.root / "fuse")
    return entry.device.partition(":")[2]


def test_status(node: Node, small: str, tmp_path: Path) -> None:
    assert_error(node("status"), 3, "no daemon runs")
    view = node.mount(small, tmp_path / "view", "--no-fill")
    (view / RANDOM).read_bytes()
    status = node.status()
    assert status["pid"] == node.pid()
    assert status["root"] == str(node.root)
    assert [image["reference"] for image in status["images"]] == [small]
    assert status["mounts"] == [{"target": str(view), "kind": "erofs", "direct": False}]
    assert 3 << 20 <= sum(layer["present_bytes"] for layer in status["layers"]) < 5 << 20
    said = succeed(node("status")).stdout
    for words in (small, f"mount {view}", f"daemon {node.pid()}"):
        assert words in said
    node.umount(view)
    assert json.loads(succeed(node("status", "--json")).stdout)["mounts"] == []
