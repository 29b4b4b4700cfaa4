"""Images whose layers are whole in the cache: the kernel reads the cache's own files, and no daemon is needed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.leftovers import find_leftovers
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import NodeError
from lazyfs.mount import images, syscalls
from lazyfs.mount.images import find_image_mounts, is_shown, mount_view, mount_writable, unmount_image
from lazyfs.mount.syscalls import unmount
from lazyfs.node.cache_hold import is_open
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

from .conftest import LOWER
from .processes import MakePaths, daemons, end, kill

pytestmark = pytest.mark.root


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> Path:
    """A copy that can go away."""
    return Path(shutil.copytree(made, tmp_path / "layout"))


def open_whole(paths: NodePaths, layout: Path, tag: str = "lazy") -> dict[str, Any]:
    """The image, when the daemon has all of it and has said so."""
    reference = f"oci:{layout}:{tag}"
    client = ensure_daemon(paths)
    client.ask("POST /v1/cache/warm", {"reference": reference, "directory": "/", "after": 0, "seconds": 30})
    wait_until(lambda: all(client.open_image(reference)["direct"]), "all layers to be whole and synced")
    return client.open_image(reference)


def is_right(target: Path) -> bool:
    for path in (target / "big", target / "text"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return (target / "big").read_bytes() == LOWER[0].content and (target / "text").read_text() == "upper"


def data_files(paths: NodePaths) -> list[Path]:
    return sorted(paths.cache.glob("*/data"))


def mounted_directly(paths: NodePaths) -> list[bool]:
    return [layer["mounted_directly"] for layer in DaemonClient(paths).ask("GET /v1/cache", {})["layers"]]


def test_read_and_mounted_again_with_the_node_dead(
    paths: NodePaths, layout: Path, target: Path, tmp_path: Path
) -> None:
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    assert [path.name for path in find_image_mounts(paths, image["key"])] == [f"{image['key']}-direct"]
    shutil.rmtree(layout)
    kill(paths)
    unmount(paths.fuse, detach=True)
    assert is_right(target)
    assert is_shown(paths, target)
    assert find_leftovers(paths) != [], "sockets that nobody listens on"
    assert not any(str(target) in left.what or "/m/" in left.what for left in find_leftovers(paths))
    other = tmp_path / "other"
    other.mkdir()
    mount_writable(paths, image, other, paths.mounts / "rw-0123456789ab")
    (other / "new").write_text("written")
    assert is_right(other)
    unmount_image(paths, other)
    unmount_image(paths, target)
    # Also where nobody has it mounted any more.
    mount_view(paths, image, target)
    assert is_right(target)
    unmount_image(paths, target)


def test_what_is_not_whole_goes_through_the_daemon(
    paths: NodePaths, layout: Path, target: Path, tmp_path: Path
) -> None:
    """And is not mounted anew while somebody has it mounted; the next mount needs no daemon."""
    image = ensure_daemon(paths).open_image(f"oci:{layout}:lazy", fill=False)
    assert image["direct"] == ["", ""]
    mount_view(paths, image, target)
    assert is_right(target)
    other = tmp_path / "other"
    other.mkdir()
    whole = open_whole(paths, layout)
    mount_view(paths, whole, other)
    assert len(find_image_mounts(paths, image["key"])) == 1
    unmount_image(paths, other)
    unmount_image(paths, target)
    mount_view(paths, whole, target)
    kill(paths)
    assert is_right(target)
    unmount_image(paths, target)


def test_some_layers_of_an_image(paths: NodePaths, layout: Path, target: Path) -> None:
    image = open_whole(paths, layout)
    image["direct"][1] = ""
    mount_view(paths, image, target)
    assert is_right(target)
    names = [name for name in image["direct"] if name]
    assert [is_open(str(path)) for path in data_files(paths) if path.parent.name in names] == [True]
    assert not find_image_mounts(paths, image["key"])[0].name.endswith("direct")
    unmount_image(paths, target)


def test_nothing_of_it_is_dropped_also_by_the_next_daemon(
    paths: NodePaths, layout: Path, target: Path
) -> None:
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    for _ in range(2):
        client = ensure_daemon(paths)
        dropped = client.ask("POST /v1/cache/prune", {"size": 0})
        assert (dropped["chunks"], dropped["layers"]) == (0, [])
        assert sorted(dropped["mounted"]) == sorted(image["direct"])
        client.ask("POST /v1/cache/settings", {"limit": "64K"})
        assert mounted_directly(paths) == [True, True]
        assert is_right(target)
        end(daemons(paths))
    ensure_daemon(paths)
    unmount_image(paths, target)
    wait_until(lambda: mounted_directly(paths) == [False, False], "the daemon to find it unmounted")
    assert DaemonClient(paths).ask("POST /v1/cache/prune", {"size": 0})["chunks"]


def test_a_mount_that_was_detached_and_is_in_use_counts(paths: NodePaths, layout: Path, target: Path) -> None:
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    with (target / "big").open("rb") as file:
        for mount in (target, *find_image_mounts(paths, image["key"])):
            unmount(mount, detach=True)
        end(daemons(paths))
        ensure_daemon(paths).ask("POST /v1/cache/prune", {"size": 0})
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == LOWER[0].content


def test_damage_on_the_disk_is_found_and_written_over(paths: NodePaths, layout: Path, target: Path) -> None:
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    damaged = max(data_files(paths), key=lambda path: path.stat().st_size)
    right = damaged.read_bytes()
    with damaged.open("r+b") as file:
        file.seek(right.index(LOWER[0].content[:100]) + 1000)
        file.write(b"damage")
    client = DaemonClient(paths)
    found = client.ask("POST /v1/cache/verify", {"layer": damaged.parent.name})
    assert found["mounted_directly"]
    assert len(found["damaged"]) == 1
    wait_until(lambda: damaged.read_bytes() == right, "the chunk to be fetched again")
    wait_until(lambda: all(client.open_image(f"oci:{layout}:lazy")["direct"]), "all layers to be whole")
    assert is_right(target)
    unmount_image(paths, target)


@pytest.mark.parametrize("what", ["dropped", "a link", "writable", "gone", "no name"])
def test_a_file_that_is_not_to_be_trusted_is_not_mounted(
    paths: NodePaths, layout: Path, target: Path, tmp_path: Path, what: str
) -> None:
    """Devices are mounted instead."""
    image = open_whole(paths, layout)
    data = paths.cache / image["direct"][0] / "data"
    match what:
        case "dropped":
            (data.parent / "held").unlink()
        case "a link":
            data.rename(tmp_path / "elsewhere")
            data.symlink_to(tmp_path / "elsewhere")
        case "writable":
            data.chmod(0o666)
        case "gone":
            shutil.rmtree(data.parent)
        case _:
            image["direct"][0] = "../../etc"
    mount_view(paths, image, target)
    assert is_right(target)
    assert not find_image_mounts(paths, image["key"])[0].name.endswith("direct")
    unmount_image(paths, target)


def test_a_cache_on_tmpfs(node_at: MakePaths, layout: Path, target: Path, tmp_path: Path) -> None:
    paths, fast = node_at(tmp_path / "node"), tmp_path / "fast"
    paths.root.mkdir()
    fast.mkdir()
    paths.settings.write_text(f'[[cache.directory]]\npath = "{fast}"\n')
    syscalls.mount("tmpfs", fast, "tmpfs", 0, b"size=64m", what="tmpfs")
    try:
        image = open_whole(paths, layout)
        mount_view(paths, image, target)
        assert find_image_mounts(paths, image["key"])[0].name.endswith("direct")
        assert DaemonClient(paths).ask("POST /v1/cache/prune", {"size": 0})["chunks"] == 0
        assert is_right(target)
        unmount_image(paths, target)
        DaemonClient(paths).shutdown()
    finally:
        unmount(fast, detach=True)


def test_a_cache_in_several_directories(
    node_at: MakePaths, layout: Path, target: Path, tmp_path: Path
) -> None:
    paths, places = node_at(tmp_path / "node"), [tmp_path / "one", tmp_path / "two"]
    paths.root.mkdir()
    for place in places:
        place.mkdir()
    paths.settings.write_text("".join(f'[[cache.directory]]\npath = "{place}"\n' for place in places))
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    assert find_image_mounts(paths, image["key"])[0].name.endswith("direct")
    assert is_right(target)
    unmount_image(paths, target)


def test_a_file_of_somebody_else(paths: NodePaths, layout: Path, target: Path) -> None:
    image = open_whole(paths, layout)
    os.chown(paths.cache / image["direct"][1] / "data", 12345, -1)
    kill(paths)
    unmount(paths.fuse, detach=True)
    with pytest.raises(NodeError, match="has ended"):
        mount_view(paths, image, target)


def test_whoever_is_paranoid_reads_through_the_daemon(paths: NodePaths, layout: Path) -> None:
    open_whole(paths, layout)
    client = DaemonClient(paths)
    client.ask("POST /v1/cache/settings", {"paranoid": True})
    assert client.open_image(f"oci:{layout}:lazy")["direct"] == ["", ""]


def test_layers_without_data(paths: NodePaths, target: Path, tmp_path: Path) -> None:
    layout = tmp_path / "empty"
    tars = [layer_tar([Entry(b"a", content=b"some")]), layer_tar([Entry(b"b", content=b"")]), layer_tar([])]
    convert(put_image(layout, tars, "app"), f"oci:{layout}:lazy")
    image = open_whole(paths, layout)
    mount_view(paths, image, target)
    kill(paths)
    unmount(paths.fuse, detach=True)
    assert (target / "a").read_bytes() == b"some"
    assert (target / "b").read_bytes() == b""
    unmount_image(paths, target)


@pytest.mark.parametrize("what", ["is let go", "is refused"])
def test_while_it_is_being_mounted(
    paths: NodePaths, layout: Path, target: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whoever mounts it looks after the mount, and takes the devices."""
    image = open_whole(paths, layout)
    mount, mounted = syscalls.mount_erofs, []

    def late(bootstrap: Path, devices: list[Path], directory: Path) -> None:
        mounted.append(directory.name)
        if what == "is refused" and len(mounted) == 1:
            raise NodeError("a file system that EROFS cannot read")
        for held in paths.cache.glob("*/held"):
            held.unlink()
        mount(bootstrap, devices, directory)

    monkeypatch.setattr(images, "mount_erofs", late)
    mount_view(paths, image, target)
    assert is_right(target)
    assert [name.endswith("direct") for name in mounted] == [True, False]
    assert [path.name for path in find_image_mounts(paths, image["key"])] == mounted[1:]
    unmount_image(paths, target)
