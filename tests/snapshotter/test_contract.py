"""What containerd asks of a snapshotter, in the order in which its documentation tells it."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from lazyfs.mount.syscalls import mount_overlay, unmount
from snapshotter.proto import snapshots_pb2 as pb

from .client import PATIENCE, Client, Service, code_of
from .conftest import Show


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as info:
        yield
    assert code_of(info.value) == code
    for word in words:
        assert word in (info.value.details() or "")


def commit_layer(client: Client, show: Show, name: str, parent: str = "", **files: str) -> str:
    """A committed snapshot with these files."""
    target = show(client.prepare(f"{name}-active", parent))
    for file, content in files.items():
        (target / file).write_text(content)
    client.commit(name, f"{name}-active")
    return name


# Records


def test_ids_rise_and_name_the_directories(client: Client, shared_service: Service) -> None:
    client.prepare("one")
    client.prepare("two")
    ids = sorted(int(each.name) for each in (shared_service.root / "snapshots").iterdir())
    assert len(ids) == 2
    client.remove("two")
    client.cleanup()
    client.prepare("three")
    assert max(int(each.name) for each in (shared_service.root / "snapshots").iterdir()) == ids[1] + 1


def test_modes_of_the_directories(client: Client, shared_service: Service) -> None:
    directory = Path(client.prepare("active")[0].source).parent
    assert directory.parent == shared_service.root / "snapshots"
    assert (directory / "fs").stat().st_mode & 0o7777 == 0o755
    assert (directory / "work").stat().st_mode & 0o7777 == 0o711
    client.view("view")
    views = [each for each in directory.parent.iterdir() if not (each / "work").exists()]
    assert len(views) == 1


def test_a_key_is_taken_once(client: Client) -> None:
    client.prepare("key")
    for call in (client.prepare, client.view):
        with refused("ALREADY_EXISTS", "key"):
            call("key")
    client.commit("name", "key")
    with refused("ALREADY_EXISTS", "name"):
        client.view("name")
    assert [info.kind for info in client.batches()[0]] == [pb.COMMITTED]


def test_a_parent_is_committed(client: Client) -> None:
    client.prepare("active")
    client.view("view")
    for parent in ("active", "view"):
        with refused("INVALID_ARGUMENT", parent):
            client.prepare("child", parent)
    with refused("NOT_FOUND", "nobody"):
        client.prepare("child", "nobody")
    with refused("INVALID_ARGUMENT"):
        client.prepare("")
    assert client.names() == ["active", "view"]


def test_a_root_belongs_to_who_owns_the_one_below(client: Client, show: Show) -> None:
    os.chown(show(client.prepare("a")), 1001, 1002)
    client.commit("below", "a")
    status = show(client.prepare("b", "below")).stat()
    assert (status.st_uid, status.st_gid) == (1001, 1002)


def test_commit_takes_active_ones_alone(client: Client) -> None:
    client.view("view")
    with refused("FAILED_PRECONDITION", "view"):
        client.commit("name", "view")
    with refused("NOT_FOUND", "nobody"):
        client.commit("name", "nobody")
    client.prepare("a")
    client.commit("name", "a")
    with refused("FAILED_PRECONDITION", "name"):
        client.commit("again", "name")
    client.prepare("b")
    with refused("ALREADY_EXISTS", "name"):
        client.commit("name", "b")
    with refused("NOT_FOUND"):
        client.commit("name", "a")


def test_commit_replaces_labels(client: Client) -> None:
    client.prepare("a", labels={"kept": "no"})
    client.commit("name", "a", {"given": "again"})
    assert dict(client.stat("name").labels) == {"given": "again"}


def test_commit_may_give_a_parent(client: Client) -> None:
    for name in ("below", "other"):
        client.prepare("a")
        client.commit(name, "a")
    client.prepare("b")
    client.commit("name", "b", parent="below")
    assert client.stat("name").parent == "below"
    client.prepare("c", "below")
    with refused("INVALID_ARGUMENT"):
        client.commit("third", "c", parent="other")


def test_times(client: Client) -> None:
    client.prepare("a")
    before = client.stat("a")
    assert before.created_at.ToNanoseconds() == before.updated_at.ToNanoseconds() > 0
    after = client.update("a", {"x": "y"})
    assert after.created_at == before.created_at
    assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()


# Labels


def test_update_with_masks(client: Client) -> None:
    client.prepare("a", labels={"one": "1", "two": "2"})
    assert dict(client.update("a", {"one": "new", "two": "no"}, "labels.one").labels) == {
        "one": "new",
        "two": "2",
    }
    assert dict(client.update("a", {}, "labels.two").labels) == {"one": "new"}
    assert dict(client.update("a", {"a.b/c": "3"}, "labels.a.b/c").labels) == {"one": "new", "a.b/c": "3"}
    assert dict(client.update("a", {"only": "this"}, "labels").labels) == {"only": "this"}
    assert dict(client.update("a", {"or": "this"}).labels) == {"or": "this"}
    assert dict(client.stat("a").labels) == {"or": "this"}
    for field in ("parent", "kind", "name", "label", "labels_x"):
        with refused("INVALID_ARGUMENT", field):
            client.update("a", {}, field)
    with refused("NOT_FOUND"):
        client.update("nobody", {})


def test_labels_have_a_limit(client: Client) -> None:
    client.prepare("a", labels={"x" * 96: "y" * 4000})
    with refused("INVALID_ARGUMENT", "4096"):
        client.update("a", {"x" * 97: "y" * 4000})
    with refused("INVALID_ARGUMENT"):
        client.prepare("b", labels={"x": "y" * 4096})
    assert client.names() == ["a"]


# Mounts


def test_mounts_without_a_parent(client: Client, shared_service: Service) -> None:
    for call, access in ((client.prepare, "rw"), (client.view, "ro")):
        (mount,) = call(access)
        assert (mount.type, mount.target, list(mount.options)) == ("bind", "", [access, "rbind"])
        assert Path(mount.source).parent.parent == shared_service.root / "snapshots"
        assert client.mounts(access) == [mount]


def test_mounts_with_parents(client: Client, show: Show) -> None:
    first = commit_layer(client, show, "first", lower="1", both="1")
    second = commit_layer(client, show, "second", first, both="2")
    (mount,) = client.prepare("active", second)
    options = dict(option.partition("=")[::2] for option in mount.options)
    lower = options["lowerdir"].split(":")
    assert (mount.type, mount.source) == ("overlay", "overlay")
    assert [sorted(file.name for file in Path(each).iterdir()) for each in lower] == [
        ["both"],
        ["both", "lower"],
    ]
    assert Path(options["upperdir"]).parent == Path(options["workdir"]).parent
    assert client.mounts("active") == [mount]
    target = show([mount])
    assert (target / "both").read_text() + (target / "lower").read_text() == "21"


def test_views(client: Client, show: Show) -> None:
    first = commit_layer(client, show, "first", lower="1")
    (mount,) = client.view("one", first)
    assert (mount.type, list(mount.options)) == ("bind", ["ro", "rbind"])
    second = commit_layer(client, show, "second", first, upper="2")
    (overlay,) = client.view("two", second)
    assert overlay.type == "overlay"
    assert not [option for option in overlay.options if option.startswith(("upperdir", "workdir"))]
    for target in (show([mount]), show([overlay])):
        assert (target / "lower").read_text() == "1"
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()


def test_a_committed_snapshot_has_no_mounts(client: Client) -> None:
    client.prepare("a")
    client.commit("name", "a")
    with refused("FAILED_PRECONDITION", "name"):
        client.mounts("name")
    with refused("NOT_FOUND"):
        client.mounts("a")


def test_128_layers(client: Client, temp_root: Path) -> None:
    parent = ""
    for number in range(128):
        client.prepare("active", parent)
        parent = f"layer{number}"
        client.commit(parent, "active")
    (mount,) = client.prepare("top", parent)
    options = dict(option.partition("=")[::2] for option in mount.options)
    lower = [Path(each) for each in options["lowerdir"].split(":")]
    assert len(lower) == 128
    # containerd shortens what is longer than a page by changing into the directory that all have in common.
    common = Path(os.path.commonpath(lower))
    assert sum(len(str(each.relative_to(common))) + 1 for each in lower) < 2000
    mount_overlay(temp_root, lower, Path(options["upperdir"]), Path(options["workdir"]))
    (temp_root / "file").write_text("written")
    unmount(temp_root)


def test_renaming_a_directory_that_lies_below(client: Client, show: Show) -> None:
    target = show(client.prepare("a"))
    (target / "old").mkdir()
    (target / "old" / "file").write_text("kept")
    client.commit("below", "a")
    target = show(client.prepare("b", "below"))
    (target / "old").rename(target / "new")
    client.commit("above", "b")
    seen = show(client.view("c", "above"))
    assert (seen / "new" / "file").read_text() == "kept"
    assert not (seen / "old").exists()


# Usage


def test_usage(client: Client, show: Show) -> None:
    target = show(client.prepare("a"))
    assert client.usage("a")[1] == 1
    (target / "file").write_bytes(os.urandom(100_000))
    (target / "link").hardlink_to(target / "file")
    with (target / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    (target / "directory").mkdir()
    (target / "symlink").symlink_to("file")
    size, inodes = client.usage("a")
    assert inodes == 5
    assert 100_000 < size < 200_000
    client.commit("name", "a")
    (target / "later").write_bytes(bytes(100_000))
    assert client.usage("name") == (size, inodes)
    client.view("view", "name")
    assert client.usage("view") == (0, 0)


# Remove and Cleanup


def test_remove_and_cleanup(client: Client, shared_service: Service) -> None:
    client.prepare("a")
    client.commit("below", "a")
    directory = Path(client.prepare("b", "below")[0].options[0].partition("=")[2]).parent
    with refused("FAILED_PRECONDITION", "cannot remove", "below"):
        client.remove("below")
    client.remove("b")
    assert directory.is_dir()
    client.cleanup()
    assert not directory.exists()
    client.remove("below")
    with refused("NOT_FOUND"):
        client.remove("below")
    client.cleanup()
    client.cleanup()
    assert list((shared_service.root / "snapshots").iterdir()) == []


# List


def test_list_in_batches(client: Client) -> None:
    for number in range(205):
        client.view(f"{number:03}")
    assert [len(batch) for batch in client.batches()] == [100, 100, 5]
    assert sorted(client.names()) == [f"{number:03}" for number in range(205)]


def test_list_as_containerd_asks_for_a_remote_snapshot(client: Client) -> None:
    client.prepare("a")
    client.commit("below", "a", {"containerd.io/snapshot.ref": "sha256:0"})
    client.prepare("b", "below")
    client.commit("above", "b", {"containerd.io/snapshot.ref": "sha256:1"})
    assert client.names('labels."containerd.io/snapshot.ref"==sha256:1,parent=="below"') == ["above"]
    assert client.names('labels."containerd.io/snapshot.ref"==sha256:1,parent==""') == []
    assert client.names("kind==committed") == ["above", "below"]
    assert client.names("name==below", "name==above", "name==none") == ["above", "below"]
    with refused("INVALID_ARGUMENT", "filter"):
        client.names("name=below")


def test_list_is_not_disturbed(client: Client) -> None:
    """Other calls may come between its messages."""
    for number in range(150):
        client.view(str(number))
    for batch in client.batches():
        for info in batch:
            assert client.stat(info.name).name == info.name


# Many callers


def test_64_callers_at_once(client: Client, shared_service: Service) -> None:
    client.prepare("a")
    client.commit("base", "a")
    barrier = threading.Barrier(64, timeout=PATIENCE)

    def live(number: int) -> None:
        barrier.wait()
        client.prepare(f"active{number}", "base")
        client.mounts(f"active{number}")
        client.commit(f"done{number}", f"active{number}")
        client.view(f"view{number}", f"done{number}")
        client.remove(f"view{number}")
        client.cleanup()
        if number % 2:
            client.remove(f"done{number}")

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(live, range(64)))
    client.cleanup()
    assert len(client.names()) == 33
    assert len(list((shared_service.root / "snapshots").iterdir())) == 33


def test_64_callers_of_the_same(client: Client) -> None:
    def attempt(number: int) -> str:
        try:
            client.prepare("one")
        except grpc.RpcError as error:
            return code_of(error)
        return "made"

    with ThreadPoolExecutor(64) as pool:
        said = list(pool.map(attempt, range(64)))
    assert sorted(set(said)) == ["ALREADY_EXISTS", "made"]
    assert said.count("made") == 1
