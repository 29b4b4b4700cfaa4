"""Images as the daemon opens them: without FUSE, in this process."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lazyfs.daemon import node as node_module
from lazyfs.errors import LazyfsError, NotFoundError, UsageError
from lazyfs.node.crew import Lane
from lazyfs.node.fill import Filler
from lazyfs.node.neighbours import MAX_DEMANDED
from lazyfs.stores import LayoutStore, load_image, parse_reference
from tests.faults import FaultServer
from tests.layouts import with_layers
from tests.waiting import wait_until

from .faces import registry_face
from .open_node import PATIENCE, MakeNode, OpenNode


def test_answer(make: MakeNode, made: Path) -> None:
    each = make()
    image = each.open(made)
    assert json.loads(json.dumps(image)) == json.loads(json.dumps(each.open(made)))
    assert Path(image["bootstrap"]).is_file()
    assert image["devices"] == [str(each.paths.fuse / str(inode)) for inode in image["layers"]]
    assert image["config"]["cmd"] == ("sh",)
    status = json.loads(json.dumps(each.node.status()))
    assert [layer["device"] for layer in status["layers"]] == sorted(image["layers"])
    assert [known["reference"] for known in status["images"]] == [f"oci:{made}:lazy"]


@pytest.mark.parametrize("is_remote", [True, False])
def test_what_lies_behind_a_miss_comes_along_from_afar(make: MakeNode, made: Path, is_remote: bool) -> None:
    """Of a directory the kernel reads ahead itself, however late its answers were."""
    each = make()
    each.node._engine.answered(1000.0)  # no answer is so late that it is asked for, and counted, twice
    with FaultServer(registry_face(made)) as server:
        for host in (server.host, ""):
            for _ in range(16):
                each.node._engine.pace(f"docker://{host}/app").answered(0.2, 100_000, 0.1, 1_000_000)
        reference = f"docker://{server.host}/app:lazy" if is_remote else f"oci:{made}:lazy"
        image = each.node.open_image(reference, Path("/"), fill=False)
        shown = each.table.numbered(image["layers"][0])
        assert shown is not None
        assert len(shown.content.request(0, 1).result(PATIENCE)) == 1
        wait_until(lambda: each.node.status()["fetched_bytes"])
        assert (each.node.status()["fetched_bytes"] == shown.content.size) == is_remote


def test_nothing_comes_along_while_many_wait(make: MakeNode, made: Path) -> None:
    each = make()
    crew, gate = each.node._engine.crew, threading.Event()
    with FaultServer(registry_face(made)) as server:
        image = each.node.open_image(f"docker://{server.host}/app:lazy", Path("/"), fill=False)
        for _ in range(16):
            each.node._engine.pace(f"docker://{server.host}/app").answered(0.2, 100_000, 0.1, 1_000_000)
        for _ in range(MAX_DEMANDED + 1):
            crew.submit(Lane.DEMAND, lambda: gate.wait(PATIENCE))
        assert crew.demanded() == MAX_DEMANDED + 1
        shown = each.table.numbered(image["layers"][0])
        assert shown is not None
        assert len(shown.content.request(0, 1).result(PATIENCE)) == 1
        gate.set()
        wait_until(lambda: crew.demanded() == 0)
        assert 0 < each.node.status()["fetched_bytes"] < shown.content.size


def test_relative_references_count_from_the_callers_directory(make: MakeNode, made: Path) -> None:
    each = make()
    answer = each.node.open_image(f"oci:{made.name}:lazy", made.parent)
    assert answer == each.open(made)


def test_one_image_opened_by_many_at_once(make: MakeNode, made: Path) -> None:
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
    make: MakeNode, made: Path, reference: str, expected: type[LazyfsError], words: str
) -> None:
    each = make()
    with pytest.raises(expected, match=words):
        each.node.open_image(reference.format(made=made), Path("/"))
    assert each.node.status()["images"] == []


def test_a_layer_is_read_from_whichever_store_has_it(
    make: MakeNode, made: Path, layout: Path, tmp_path: Path
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


def make_right(make: MakeNode, made: Path, tmp_path: Path) -> list[bytes]:
    """The devices of the image, by a node of their own."""
    other = OpenNode(tmp_path / "other")
    try:
        return other.devices(other.open(made))
    finally:
        other.close()


def test_the_lowest_layers_alone(make: MakeNode, made: Path) -> None:
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


def test_only_looked_at(make: MakeNode, made: Path) -> None:
    each = make()
    answer, *opened = each.node.look_at(f"oci:{made}:lazy", Path("/"))
    with LayoutStore(made) as store:
        image = load_image(store, parse_reference(f"oci:{made}:lazy"))
    assert [(layer["blob"], layer["diff_id"]) for layer in answer["chain"]] == [
        (layer.digest, diff_id) for layer, diff_id in image.layers
    ]
    assert {layer["toc"] for layer in answer["chain"]} == {
        layer["toc"] for layer in each.node.status()["layers"]
    }
    assert [each["toc"] for each in opened] == [layer["toc"] for layer in answer["chain"]]
    assert answer["digest"] == image.descriptor.digest
    assert each.node.status()["images"] == []


def test_looked_at_up_to_the_first_layer_that_was_not_converted(make: MakeNode, layout: Path) -> None:
    with_layers(
        layout, "lazy", "half", lambda number, layer: replace(layer, annotations={}) if number else layer
    )
    each = make()
    answer, *opened = each.node.look_at(f"oci:{layout}:half", Path("/"))
    first, second = answer["chain"]
    assert opened == [{"toc": first["toc"]}]
    assert (len(first["toc"]), second["toc"]) == (64, "")
    assert each.node.open_image(f"oci:{layout}:half", Path("/"), 1)["layers"]
    with pytest.raises(UsageError, match="not a lazyfs layer"):
        each.node.open_image(f"oci:{layout}:half", Path("/"))
    with_layers(layout, "lazy", "none", lambda _, layer: replace(layer, annotations={}))
    (answer,) = each.node.look_at(f"oci:{layout}:none", Path("/"))
    assert [layer["toc"] for layer in answer["chain"]] == ["", ""]


def test_opened_by_digest_without_its_store(make: MakeNode, layout: Path) -> None:
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


def test_documents_that_are_damaged_here(make: MakeNode, layout: Path) -> None:
    first = make()
    answer = first.open(layout)
    first.close()
    for document in first.paths.documents.iterdir():
        document.write_bytes(b"{}")
    by_digest = make().node.open_image(f"oci:{layout}@{answer['digest']}", Path("/"))
    assert by_digest["key"] == answer["key"]


def test_what_is_open_is_filled_unless_it_was_said_not_to(
    make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "Filler", partial(Filler, idle=0.0))
    each = make()
    each.node.open_image(f"oci:{made}:lazy", Path("/"), fill=False)
    assert each.node.status()["layers_to_fill"] == 0
    each.open(made)
    wait_until(lambda: each.node.status()["layers_to_fill"] == 0)
    wait_until(
        lambda: all(layer["present_bytes"] == layer["bytes"] for layer in each.node.status()["layers"])
    )


def test_what_is_pruned_is_not_filled_again(
    make: MakeNode, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "Filler", partial(Filler, idle=1000.0))
    each = make()
    each.open(made)
    assert each.node.status()["layers_to_fill"] > 0
    each.node.care.prune(f"oci:{made}:lazy", dry_run=True)
    assert each.node.status()["layers_to_fill"] > 0
    each.node.care.prune(f"oci:{made}:lazy")
    assert each.node.status()["layers_to_fill"] == 0


def test_a_node_that_never_fills(make: MakeNode, made: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "config.toml").write_text("[fetch]\nfill = false\n")
    each = make()
    each.open(made)
    assert each.node.status()["layers_to_fill"] == 0


def test_the_memory_for_fetching_can_be_chosen(make: MakeNode, made: Path) -> None:
    each = make()
    assert each.node.choose_memory("32M") == {"memory": 32 << 20}
    for wrong in ("1K", "much", ""):
        with pytest.raises(UsageError, match="size"):
            each.node.choose_memory(wrong)
    assert each.devices(each.open(made))
