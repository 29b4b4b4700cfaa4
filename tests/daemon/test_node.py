"""Images as the daemon opens them: without FUSE, in this process."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon import node as node_module
from lazyfs.daemon.node import Node
from lazyfs.daemon.state import State
from lazyfs.errors import BadInputError, IntegrityError, LazyfsError, NodeError, NotFoundError, UsageError
from lazyfs.formats.oci import OCI_MANIFEST
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache_map import boot_id
from lazyfs.node.cache_settings import CacheSettings
from lazyfs.node.fill import Filler
from lazyfs.stores import Image, LayoutStore, load_image, parse_reference
from tests.layouts import with_layers
from tests.node.conftest import until

PATIENCE = 20.0


class OpenNode:
    """A node whose devices are read here and not by FUSE."""

    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        self.table = DeviceTable()
        self.node = Node(self.paths, self.table, CacheSettings())
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self.node.close()
        self._closed = True

    def open(self, layout: Path, tag: str = "lazy") -> dict[str, Any]:
        return self.node.open_image(f"oci:{layout}:{tag}", Path("/"))

    def devices(self, image: dict[str, Any]) -> list[bytes]:
        return [self._read(inode) for inode in image["layers"]]

    def _read(self, inode: int) -> bytes:
        device = self.table.numbered(inode)
        assert device is not None
        return device.content.request(0, device.content.size).result(PATIENCE)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], OpenNode]]:
    opened: list[OpenNode] = []

    def make() -> OpenNode:
        opened.append(OpenNode(tmp_path / "node"))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "layout"))


def blobs(layout: Path) -> list[Path]:
    """The blobs of the converted layers, lowest first."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:lazy"))
    return [layout / "blobs" / layer.digest.replace(":", "/") for layer, _ in image.layers]


def damage(blob: Path) -> bytes:
    """Overwrite the whole blob; its bytes as they were."""
    right = blob.read_bytes()
    blob.write_bytes(bytes(byte ^ 0xFF for byte in right))
    return right


def retag(layout: Path, tag: str, change: Callable[[Image], Image]) -> None:
    """Another image in the layout, made from the lazy one."""
    with LayoutStore(layout) as store:
        image = change(load_image(store, parse_reference(f"oci:{layout}:lazy")))
        config = store.put_document(image.config.to_bytes(), image.manifest.config.media_type)
        manifest = replace(image.manifest, config=config)
        store.put_tag(tag, store.put_document(manifest.to_bytes(), OCI_MANIFEST))


def test_answer(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    image = each.open(made)
    assert json.loads(json.dumps(image)) == json.loads(json.dumps(each.open(made)))
    assert Path(image["bootstrap"]).is_file()
    assert image["devices"] == [str(each.paths.fuse / str(inode)) for inode in image["layers"]]
    assert image["config"]["cmd"] == ("sh",)
    status = json.loads(json.dumps(each.node.status()))
    assert [layer["device"] for layer in status["layers"]] == sorted(image["layers"])
    assert [known["reference"] for known in status["images"]] == [f"oci:{made}:lazy"]


def test_relative_references_count_from_the_callers_directory(
    make: Callable[[], OpenNode], made: Path
) -> None:
    each = make()
    answer = each.node.open_image(f"oci:{made.name}:lazy", made.parent)
    assert answer == each.open(made)


def test_one_image_opened_by_many_at_once(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: each.open(made), range(48)))
    assert all(answer == answers[0] for answer in answers)
    assert len(each.table.listing()) == 2
    assert [path.name for path in each.paths.tocs.iterdir() if path.name.startswith(".")] == []
    assert len(list(Path(answers[0]["bootstrap"]).parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("reference", "expected", "words"),
    [
        ("oci:/nowhere:lazy", NotFoundError, "/nowhere"),
        ("oci:{made}:nothing", NotFoundError, "nothing"),
        ("oci:{made}:app", UsageError, "is not a lazyfs layer"),
        ("nonsense", UsageError, "nonsense"),
        ("oci:{made}\0:lazy", UsageError, "NUL"),
        ("oci:", UsageError, "names no directory"),
    ],
)
def test_images_that_cannot_be_opened(
    make: Callable[[], OpenNode], made: Path, reference: str, expected: type[LazyfsError], words: str
) -> None:
    each = make()
    with pytest.raises(expected, match=words):
        each.node.open_image(reference.format(made=made), Path("/"))
    assert each.node.status()["images"] == []


def test_damage_is_named_and_mended_without_a_restart(make: Callable[[], OpenNode], layout: Path) -> None:
    each, blob = make(), blobs(layout)[0]
    image = each.open(layout)
    right = damage(blob)
    with pytest.raises(IntegrityError):
        each.devices(image)
    assert blob.name in each.node.status()["recent_failures"][-1]
    blob.write_bytes(right)
    assert each.devices(image)[0]


def test_damaged_toc(make: Callable[[], OpenNode], layout: Path) -> None:
    each, blob = make(), blobs(layout)[0]
    right = damage(blob)
    with pytest.raises(IntegrityError, match="TOC does not match"):
        each.open(layout)
    blob.write_bytes(right)
    image = each.open(layout)
    # A node that knows the TOC does not ask for it again; one that is damaged on the node's own disk is.
    each.close()
    damage(blob)
    assert make().open(layout)["key"] == image["key"]
    for toc in each.paths.tocs.iterdir():
        toc.write_bytes(b"damaged")
    blob.write_bytes(right)
    assert make().open(layout)["key"] == image["key"]
    assert all(toc.read_bytes() != b"damaged" for toc in each.paths.tocs.iterdir())


def test_a_layer_is_read_from_whichever_store_has_it(
    make: Callable[[], OpenNode], made: Path, layout: Path, tmp_path: Path
) -> None:
    each = make()
    image = each.open(layout)
    shutil.copytree(layout, tmp_path / "moved")
    shutil.rmtree(layout)
    with pytest.raises(NotFoundError):
        each.devices(image)
    assert each.open(tmp_path / "moved")["layers"] == image["layers"]
    right = make_right(make, made, tmp_path)
    assert each.devices(image) == right


def make_right(make: Callable[[], OpenNode], made: Path, tmp_path: Path) -> list[bytes]:
    """The devices of the image, by a node of their own."""
    other = OpenNode(tmp_path / "other")
    try:
        return other.devices(other.open(made))
    finally:
        other.close()


def test_a_config_that_claims_another_layer(make: Callable[[], OpenNode], layout: Path) -> None:
    """Whether or not the node has the layer's TOC already."""

    def swap(image: Image) -> Image:
        return replace(image, config=replace(image.config, diff_ids=image.config.diff_ids[::-1]))

    retag(layout, "swapped", swap)
    each = make()
    for _ in range(2):
        with pytest.raises(BadInputError, match="its TOC is of sha256:"):
            each.open(layout, "swapped")
        each.open(layout)


def test_a_manifest_that_says_its_blob_is_shorter(make: Callable[[], OpenNode], layout: Path) -> None:
    blob = blobs(layout)[0]

    def shorten(image: Image) -> Image:
        first, *rest = image.manifest.layers
        return replace(image, manifest=replace(image.manifest, layers=(replace(first, size=1000), *rest)))

    short = layout.parent / "short"
    shutil.copytree(layout, short)
    os.truncate(short / "blobs" / "sha256" / blob.name, 1000)
    retag(short, "short", shorten)
    each = make()
    each.open(layout)
    with pytest.raises(BadInputError, match="behind the end of"):
        each.open(short, "short")


def test_no_room_for_the_toc_costs_nothing(
    make: Callable[[], OpenNode], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent.name == "toc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    each = make()
    assert each.devices(each.open(made))
    assert list(each.paths.tocs.iterdir()) == []


def test_no_room_for_the_bootstrap(
    make: Callable[[], OpenNode], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    each = make()
    with monkeypatch.context() as patched, pytest.raises(NodeError, match="No space left") as caught:
        patched.setattr(Path, "write_bytes", full)
        each.open(made)
    assert "free some space" in caught.value.hint
    assert list(each.paths.root.rglob(".*")) == [], "half a file was left"
    assert each.open(made)["key"]


def test_bootstraps_of_earlier_boots_are_removed(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    old = each.paths.bootstraps / "deadbeef"
    old.mkdir()
    (old / "key").write_bytes(b"torn")
    image = each.open(made)
    each.close()
    again = make()
    assert not old.exists()
    assert again.open(made)["bootstrap"] == image["bootstrap"]


def test_half_written_files_of_a_killed_daemon_are_removed(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    image = each.open(made)
    each.close()
    left = [directory / ".new-abc.123" for directory in (each.paths.tocs, Path(image["bootstrap"]).parent)]
    for path in left:
        path.write_bytes(b"half")
    assert make().open(made)["key"] == image["key"]
    assert not any(path.exists() for path in left)


def test_flush_of_a_failing_disk_is_counted(
    make: Callable[[], OpenNode], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    each = make()
    image = each.open(made)
    right = each.devices(image)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        each.node.flush()
    status = each.node.status()
    assert status["cache_write_failures"] == 2
    assert status["recent_failures"] == ["cache: sync: Input/output error"]
    assert each.devices(image) == right


def test_the_lowest_layers_alone(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    whole = each.open(made)
    reference = f"oci:{made}:lazy"
    lowest = each.node.open_image(reference, Path("/"), 1)
    assert lowest["layers"] == whole["layers"][:1]
    assert lowest["key"] != whole["key"]
    assert Path(lowest["bootstrap"]).is_file()
    assert each.node.open_image(reference, Path("/"), 2)["key"] == whole["key"]
    for count in (-1, 0, 3):
        with pytest.raises(UsageError, match="2 layers"):
            each.node.open_image(reference, Path("/"), count)


def test_only_looked_at(make: Callable[[], OpenNode], made: Path) -> None:
    each = make()
    answer = each.node.look_at(f"oci:{made}:lazy", Path("/"))
    with LayoutStore(made) as store:
        image = load_image(store, parse_reference(f"oci:{made}:lazy"))
    assert [(layer["blob"], layer["diff_id"]) for layer in answer["chain"]] == [
        (layer.digest, diff_id) for layer, diff_id in image.layers
    ]
    assert {layer["toc"] for layer in answer["chain"]} == {
        layer["toc"] for layer in each.node.status()["layers"]
    }
    assert answer["digest"] == image.descriptor.digest
    assert each.node.status()["images"] == []


def test_looked_at_up_to_the_first_layer_that_was_not_converted(
    make: Callable[[], OpenNode], layout: Path
) -> None:
    with_layers(
        layout, "lazy", "half", lambda number, layer: replace(layer, annotations={}) if number else layer
    )
    each = make()
    first, second = each.node.look_at(f"oci:{layout}:half", Path("/"))["chain"]
    assert (len(first["toc"]), second["toc"]) == (64, "")
    assert each.node.open_image(f"oci:{layout}:half", Path("/"), 1)["layers"]
    with pytest.raises(UsageError, match="not a lazyfs layer"):
        each.node.open_image(f"oci:{layout}:half", Path("/"))
    with_layers(layout, "lazy", "none", lambda _, layer: replace(layer, annotations={}))
    assert [layer["toc"] for layer in each.node.look_at(f"oci:{layout}:none", Path("/"))["chain"]] == ["", ""]


def test_opened_by_digest_without_its_store(make: Callable[[], OpenNode], layout: Path) -> None:
    first = make()
    answer = first.open(layout)
    content = first.devices(answer)
    first.close()
    shutil.rmtree(layout / "blobs")
    again = make()
    by_digest = again.node.open_image(f"oci:{layout}@{answer['digest']}", Path("/"))
    assert by_digest["key"] == answer["key"]
    assert again.devices(by_digest) == content
    with pytest.raises(LazyfsError):
        again.open(layout)


def test_documents_that_are_damaged_here(make: Callable[[], OpenNode], layout: Path) -> None:
    first = make()
    answer = first.open(layout)
    first.close()
    for document in first.paths.documents.iterdir():
        document.write_bytes(b"{}")
    by_digest = make().node.open_image(f"oci:{layout}@{answer['digest']}", Path("/"))
    assert by_digest["key"] == answer["key"]


def test_what_is_open_is_filled_unless_it_was_said_not_to(
    make: Callable[[], OpenNode], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "Filler", partial(Filler, idle=0.0))
    each = make()
    each.node.open_image(f"oci:{made}:lazy", Path("/"), fill=False)
    assert each.node.status()["layers_to_fill"] == 0
    each.open(made)
    until(lambda: each.node.status()["layers_to_fill"] == 0)
    until(lambda: all(layer["present_bytes"] == layer["bytes"] for layer in each.node.status()["layers"]))


def test_a_node_that_never_fills(make: Callable[[], OpenNode], made: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "config.toml").write_text("[fetch]\nfill = false\n")
    each = make()
    each.open(made)
    assert each.node.status()["layers_to_fill"] == 0


def test_what_nobody_mounts_is_let_go(make: Callable[[], OpenNode], made: Path) -> None:
    first = make()
    image = first.open(made)
    content = first.devices(image)
    assert first.node.release() == {"layers": 2}
    status = first.node.status()
    assert (status["layers"], status["images"], first.table.listing()) == ([], [], [])
    assert status["layers_to_fill"] == 0
    assert first.node.release() == {"layers": 0}
    # Opened again, its devices have the numbers that they had, and what was fetched is there.
    before = first.node.status()["fetched_bytes"]
    again = first.open(made)
    assert again == image
    assert first.devices(again) == content
    assert first.node.status()["fetched_bytes"] == before


def test_what_is_mounted_stays(
    make: Callable[[], OpenNode], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = make()
    image = opened.open(made)
    monkeypatch.setattr(node_module, "mounted_keys", lambda _: {image["key"]})
    assert opened.node.release() == {"layers": 0}
    assert len(opened.devices(image)) == 2
    assert [each["key"] for each in opened.node.status()["images"]] == [image["key"]]


def test_what_was_let_go_is_not_shown_by_the_next_daemon(tmp_path: Path, made: Path) -> None:
    """But what was not is, and stays: the kernel may have it open."""

    def node() -> Node:
        return Node(NodePaths(tmp_path), DeviceTable(), CacheSettings(), connection="0:7")

    one = node()
    one.open_image(f"oci:{made}:lazy", Path("/"))
    one.close()
    two = node()
    assert len(two.status()["layers"]) == 2
    assert two.release() == {"layers": 0}
    two.close()
    state = State(NodePaths(tmp_path).state, f"{boot_id().decode()} 0:7")
    for layer in state.layers():
        state.let_go(layer.inode)
    state.close()
    three = node()
    assert (three.status()["layers"], three.status()["images"]) == ([], [])
    three.close()
