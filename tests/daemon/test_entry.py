"""Without a launch pack: what the entry point needs comes ahead, nothing else, and never in anybody's way."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lazyfs.daemon.node import Node
from lazyfs.errors import NodeError
from lazyfs.formats.elf import elf_needs
from lazyfs.formats.image_paths import Lookup, extents
from lazyfs.formats.image_tree import ImageTree, merge
from lazyfs.node.fetch import Fetcher
from tests.layouts import convert, put_image
from tests.trees import SYMLINK, Entry, layer_tar
from tests.waiting import wait_until

from .open_node import PATIENCE, OpenNode

PROGRAM = Path(sys.executable).resolve().read_bytes()
BULK = 3 << 20


def noise(seed: int, size: int = 300_000) -> bytes:
    return Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def needed() -> dict[bytes, bytes]:
    """The files that a start of `tool` needs: a script, its interpreter, and what that one asks for."""
    needs = elf_needs(PROGRAM)
    assert needs is not None and needs.interpreter is not None
    files = {b"usr/bin/tool": b"#!/usr/bin/inter -x\n", b"usr/lib/inter-1": PROGRAM}
    files[needs.interpreter.lstrip(b"/")] = noise(1)
    return files | {b"usr/lib/" + name: noise(2 + n) for n, name in enumerate(needs.libraries)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, needed: dict[bytes, bytes]) -> Path:
    directory = tmp_path_factory.mktemp("entry")
    lower = [Entry(path, content=content) for path, content in needed.items()]
    upper = [
        Entry(b"usr/bin/inter", SYMLINK, target=b"../lib/./inter-1"),
        Entry(b"srv/bulk", content=noise(0, BULK)),
        Entry(b"usr/bin/loop", SYMLINK, target=b"loop"),
        Entry(b"usr/bin/broken", content=b"#!/no/such/thing\n"),
    ]
    put_image(directory, [layer_tar(lower), layer_tar(upper)])
    convert(f"oci:{directory}:made", f"oci:{directory}:lazy")
    return directory


def tree_of(node: Node) -> ImageTree:
    layers = sorted(node._layers.all(), key=lambda layer: layer.inode)
    return merge([layer.toc.tree for layer in layers])


def content(each: OpenNode, opened: list[int], path: bytes) -> bytes | None:
    """What is here of a file, without a fetch."""
    layers = {layer.inode: layer for layer in each.node._layers.all()}
    tree = merge([layers[inode].toc.tree for inode in opened])
    inode = Lookup(tree).regular_file(path)
    assert inode is not None
    pieces = [layers[opened[part.layer]].cache.read(part.start, part.length) for part in extents(tree, inode)]
    return None if None in pieces else b"".join(piece for piece in pieces if piece is not None)


def open_to_run(each: OpenNode, image: Path, command: str) -> list[int]:
    answer = each.node.open_image(f"oci:{image}:lazy", Path("/"), fill=False, command=command)
    return list(answer["layers"])


def test_what_the_entry_point_needs_comes_ahead_and_nothing_else(
    make: Callable[[], OpenNode], image: Path, needed: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfs.node.entry.SLOW", 0.0)
    each = make()
    opened = open_to_run(each, image, "tool")
    for path, right in needed.items():
        wait_until(lambda path=path: content(each, opened, path) is not None)  # type: ignore[misc]
        assert content(each, opened, path) == right
    assert content(each, opened, b"srv/bulk") is None
    assert each.node.status()["failed_fetches"] == 0


def test_across_a_slow_link_no_library_comes(
    make: Callable[[], OpenNode], image: Path, needed: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("lazyfs.node.entry.SLOW", 1e15)
    monkeypatch.setattr("lazyfs.node.entry.MIN_STORED", 0)
    monkeypatch.setattr("lazyfs.node.entry.log.debug", lambda *_: ended.set())
    each = make()
    opened = open_to_run(each, image, "tool")
    assert ended.wait(PATIENCE)
    wait_until(lambda: content(each, opened, b"usr/bin/tool") is not None)
    libraries = needed.keys() - {b"usr/bin/tool", b"usr/lib/inter-1"}
    assert {content(each, opened, path) for path in libraries} == {None}


def test_what_ran_before_fetches_nothing(
    make: Callable[[], OpenNode], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("lazyfs.node.entry.EntryPoints._fetch", lambda *given: started.append(given[-1]))
    each = make()
    for command in ("tool", "tool", "other", "tool"):
        open_to_run(each, image, command)
    wait_until(lambda: len(started) == 2)
    assert len(started) == 2


@pytest.mark.parametrize("command", ["absent", "/usr/bin/loop", "broken", "/srv", "../" * 2000, "\udcff/x"])
def test_what_cannot_be_found_is_no_error(make: Callable[[], OpenNode], image: Path, command: str) -> None:
    each = make()
    opened = open_to_run(each, image, command)
    assert content(each, opened, b"srv/bulk") is None


def test_who_does_not_run_it_fetches_nothing(make: Callable[[], OpenNode], image: Path) -> None:
    each = make()
    each.node.open_image(f"oci:{image}:lazy", Path("/"), fill=False)
    assert each.node.status()["fetched_bytes"] == 0


def test_a_fetch_that_fails_leaves_the_image_open(
    make: Callable[[], OpenNode], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NodeError("no")

    monkeypatch.setattr(Fetcher, "ahead", fail)
    each = make()
    opened = open_to_run(each, image, "tool")
    assert each.devices({"layers": opened})


def test_paths_stay_inside_and_links_end(make: Callable[[], OpenNode], image: Path) -> None:
    each = make()
    open_to_run(each, image, "absent")
    lookup = Lookup(tree_of(each.node))
    right = lookup.regular_file(b"/usr/lib/inter-1")
    assert right is not None
    assert lookup.regular_file(b"../../usr/bin/../bin//inter") == right
    for path in (b"", b"/", b"usr", b"usr/bin/loop", b"usr/bin/tool/x", b"usr/bin/none", b"\0"):
        assert lookup.regular_file(path) is None
