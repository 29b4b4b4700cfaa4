"""What people do with the cache of a node, through the control API's calls: without FUSE, in this process."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.cache_calls import asking, cache_calls
from lazyfs.errors import BusyError, NotFoundError, UsageError
from lazyfs.node.cache_care import DAY
from lazyfs.node.cache_settings import CacheSettings, DirectorySettings, Limit
from lazyfs.stores import LayoutStore
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

from .open_node import OpenNode

KIB = 1024
FILES = [Entry(b"file%02d" % number, content=Random(number).randbytes(300 * KIB)) for number in range(8)]
CHANGED = Entry(b"file03", content=Random(99).randbytes(300 * KIB))

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with two versions of an image, one layer each: a file of eight has changed."""
    directory = tmp_path_factory.mktemp("versions") / "layout"
    for tag, files in (("one", FILES), ("two", [*FILES[:3], CHANGED, *FILES[4:]])):
        convert(put_image(directory, [layer_tar(files)], f"made-{tag}"), f"oci:{directory}:{tag}")
    return directory


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], OpenNode]]:
    opened: list[OpenNode] = []

    def make() -> OpenNode:
        opened.append(OpenNode(tmp_path / "node"))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def asked(each: OpenNode) -> Ask:
    calls = cache_calls(each.node.cache, each.node.care, each.node.stores.settings)
    return lambda call, **body: json_able(calls[call](body))


def json_able(values: dict[str, Any]) -> dict[str, Any]:
    assert json.loads(json.dumps(values)) == values
    return values


def warm(each: OpenNode, reference: str) -> dict[str, Any]:
    after: int | None = 0
    while after is not None:
        values = each.node.warm(reference, Path("/"), after, 0)
        after = values["next"]
    return values


def fetched(each: OpenNode, least: int = 0) -> int:
    """Bytes of blobs that were read; waits until `least` are in the record, which is written last."""

    def stored() -> int:
        return sum(event["stored"] for event in each.node.recorded(0)["fetched"])

    wait_until(lambda: stored() >= least, f"{least} bytes to be fetched")
    return stored()


def test_of_the_next_version_only_what_changed_is_fetched(
    make: Callable[[], OpenNode], versions: Path
) -> None:
    each = make()
    first = warm(each, f"oci:{versions}:one")
    assert first["present_bytes"] == first["bytes"]
    before = fetched(each, 8 * 300 * KIB)
    second = warm(each, f"oci:{versions}:two")
    assert second["present_bytes"] == second["bytes"]
    # The changed file, and the chunk of headers and small files that it touches.
    assert fetched(each, before + 300 * KIB) - before <= 310 * KIB
    image = each.open(versions, "two")
    assert CHANGED.content in each.devices(image)[0]


def test_the_next_version_after_a_restart(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    warm(each, f"oci:{versions}:one")
    each.close()
    again = make()
    warm(again, f"oci:{versions}:two")
    assert fetched(again, 300 * KIB) <= 310 * KIB


def test_warming_goes_on_where_it_was(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    values = each.node.warm(f"oci:{versions}:one", Path("/"), 0, 0)
    steps = 1
    while values["next"] is not None:
        values = each.node.warm(f"oci:{versions}:one", Path("/"), values["next"], 0)
        steps += 1
    assert values["present_bytes"] == values["bytes"]
    assert each.node.warm(f"oci:{versions}:one", Path("/"), 0, 0)["next"] is None


def test_warming_ends_when_the_cache_is_too_small(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    asked(each)("POST /v1/cache/settings", limit="1M")
    values = warm(each, f"oci:{versions}:one")
    assert 0 < values["present_bytes"] < values["bytes"]
    assert each.node.cache.directories[0].measure() <= 1 << 20


def test_warming_what_a_pack_brings(make: Callable[[], OpenNode], versions: Path) -> None:
    with pytest.raises(NotFoundError, match="no launch pack"):
        make().node.warm_pack(f"oci:{versions}:one", Path("/"), 0)


def test_show(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    warm(each, f"oci:{versions}:one")
    each.open(versions, "two")
    values = asked(each)("GET /v1/cache")
    two, one = values["images"]
    assert (one["reference"], two["reference"]) == (f"oci:{versions}:one", f"oci:{versions}:two")
    assert one["present_bytes"] == one["bytes"] > 8 * 300 * KIB
    assert two["present_bytes"] == 0
    assert not one["pinned"]
    assert abs(one["opened"] - time.time()) < 100
    layers = {layer["toc"]: layer for layer in values["layers"]}
    (toc,) = one["layers"]
    assert layers[toc]["images"] == 1
    assert layers[toc]["disk_bytes"] >= one["bytes"]
    assert values["directories"][0]["used"] >= one["bytes"]


def test_an_image_is_pruned_and_what_others_share_stays(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    for tag in ("one", "two"):
        warm(each, f"oci:{versions}:{tag}")
    with LayoutStore(versions) as store:
        store.put_tag("alias", store.resolve("two"))
    each.open(versions, "alias")
    ask = asked(each)
    nothing = ask("POST /v1/cache/prune", reference=f"oci:{versions}:two")
    assert nothing["bytes"] == 0
    dry = ask("POST /v1/cache/prune", reference=f"oci:{versions}:one", dry_run=True)
    assert dry["bytes"] > 8 * 300 * KIB
    assert len(ask("GET /v1/cache")["images"]) == 2
    assert ask("POST /v1/cache/prune", reference=f"oci:{versions}:one") == dry | {"dry_run": False}
    values = ask("GET /v1/cache")
    (left,) = values["images"]
    assert left["present_bytes"] == left["bytes"]
    assert not list(each.paths.bootstraps.glob(f"*/{each.open(versions, 'one')['key']}-*"))
    assert asked(each)("GET /v1/cache")["images"][0]["present_bytes"] == 0


def test_what_is_pinned_stays(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    ask = asked(each)
    reference = f"oci:{versions}:one"
    with pytest.raises(NotFoundError, match="never opened"):
        ask("POST /v1/cache/pin", reference=reference)
    warm(each, reference)
    assert ask("POST /v1/cache/pin", reference="oci:layout:one", directory=str(versions.parent))["pinned"]
    with pytest.raises(BusyError, match="is pinned"):
        ask("POST /v1/cache/prune", reference=reference)
    assert ask("POST /v1/cache/prune", unused_for=0)["chunks"] == 0
    assert ask("POST /v1/cache/prune", size=0)["chunks"] == 0
    each.close()
    again = make()
    ask = asked(again)
    assert ask("POST /v1/cache/prune", unused_for=-10)["chunks"] == 0
    assert not ask("POST /v1/cache/pin", reference=reference, pinned=False)["pinned"]
    assert ask("POST /v1/cache/prune", unused_for=-10)["bytes"] > 8 * 300 * KIB
    assert again.node.cache.names() == []


def test_prune_by_age_and_by_size(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    ask = asked(each)
    each.node.cache.now = int(time.time()) - 1000
    warm(each, f"oci:{versions}:one")
    each.node.cache.now = int(time.time())
    (inode,) = each.open(versions, "one")["layers"]
    device = each.table.numbered(inode)
    assert device is not None
    assert device.content.peek(700 * KIB, 1) is not None
    assert ask("POST /v1/cache/prune", unused_for=2000)["chunks"] == 0
    dropped = ask("POST /v1/cache/prune", unused_for=500)
    assert dropped["chunks"] > 5
    assert device.content.peek(700 * KIB, 1) is not None
    warm(each, f"oci:{versions}:one")
    ask("POST /v1/cache/prune", size=1 << 20)
    assert each.node.cache.directories[0].measure() <= 1 << 20


@pytest.mark.parametrize(
    "body", [{}, {"unused_for": 1, "size": 1}, {"unused_for": "1"}, {"size": True}, {"reference": 7}]
)
def test_what_cannot_be_pruned(make: Callable[[], OpenNode], body: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        asked(make())("POST /v1/cache/prune", **body)


def test_a_flipped_bit_is_found_and_fetched_again(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    reference = f"oci:{versions}:one"
    warm(each, reference)
    each.node.flush()
    ask = asked(each)
    (layer,) = ask("GET /v1/cache")["layers"]
    assert ask("POST /v1/cache/verify", layer=layer["toc"]) == {
        "layer": layer["toc"],
        "bytes": layer["bytes"],
        "damaged": [],
        "mounted_directly": False,
    }
    flip(each.paths.cache / layer["toc"] / "data", 1_000_000)
    (index,) = ask("POST /v1/cache/verify", layer=layer["toc"])["damaged"]
    status = each.node.status()
    assert status["cache"]["damaged_chunks"] == 1
    assert any(f"chunk {index} was damaged" in reason for reason in status["recent_failures"])
    before = fetched(each, 8 * 300 * KIB)
    assert FILES[3].content in each.devices(each.open(versions, "one"))[0]
    assert fetched(each, before + 1) > before
    assert ask("POST /v1/cache/verify", layer=layer["toc"])["damaged"] == []
    with pytest.raises(NotFoundError):
        ask("POST /v1/cache/verify", layer="0" * 64)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as data:
        data.seek(offset)
        (byte,) = data.read(1)
        data.seek(offset)
        data.write(bytes((byte ^ 1,)))


def test_paranoid_reads_see_a_flipped_bit(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    ask = asked(each)
    warm(each, f"oci:{versions}:one")
    assert ask("POST /v1/cache/settings", paranoid=True)["paranoid"]
    (toc,) = [layer["toc"] for layer in ask("GET /v1/cache")["layers"]]
    right = each.devices(each.open(versions, "one"))
    flip(each.paths.cache / toc / "data", 1_000_000)
    assert each.devices(each.open(versions, "one")) == right
    assert each.node.status()["cache"]["damaged_chunks"] == 1


def test_what_nobody_has_opened_for_long_goes(make: Callable[[], OpenNode], versions: Path) -> None:
    each = make()
    for tag in ("one", "two"):
        warm(each, f"oci:{versions}:{tag}")
    each.close()
    again = make()
    key = again.open(versions, "two")["key"]
    seen = again.node.care._seen
    old = seen.find(f"oci:{versions}:one")
    seen.note(replace(old, opened=time.time() - 31 * DAY))
    assert (again.paths.tocs / next(iter(old.tocs))).exists()
    again.node.care.forget_old(0)
    assert len(seen.all()) == 2
    again.node.cache.layer(next(iter(old.tocs))).used[:] = 1  # type: ignore[union-attr]
    again.node.care.forget_old(30)
    assert [image.reference for image in seen.all()] == [f"oci:{versions}:two"]
    assert again.node.cache.names() == list(seen.all()[0].tocs)
    assert [path.name for path in again.paths.tocs.iterdir()] == list(seen.all()[0].tocs)
    assert [path.name for path in again.paths.bootstraps.glob("*/*")] == [key]


def test_without_a_daemon(make: Callable[[], OpenNode], versions: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no node's directory"), asking(NodePaths(tmp_path / "nothing")):
        pass
    assert not (tmp_path / "nothing").exists()
    each = make()
    warm(each, f"oci:{versions}:one")
    each.close()
    with asking(each.paths) as ask:
        (image,) = ask("GET /v1/cache", {})["images"]
        assert image["present_bytes"] == image["bytes"]
        ask("POST /v1/cache/pin", {"reference": image["reference"]})
    with asking(each.paths) as ask:
        assert ask("GET /v1/cache", {})["images"][0]["pinned"]
        assert ask("POST /v1/cache/verify", {"layer": image["layers"][0]})["bytes"] == image["bytes"]


SETTINGS = """
[cache]
limit = "50%"
forget-days = 7
paranoid = true

[[cache.directory]]
path = "/mnt/one"
weight = 3

[[cache.directory]]
path = "/mnt/two"
limit = "20 GiB"
"""


def test_settings(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    assert CacheSettings.read(paths) == CacheSettings()
    paths.settings.write_text(SETTINGS)
    assert CacheSettings.read(paths) == CacheSettings(
        Limit(share=0.5),
        7,
        True,
        (
            DirectorySettings(Path("/mnt/one"), 3.0),
            DirectorySettings(Path("/mnt/two"), 1.0, Limit(20 << 30)),
        ),
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cache = 1", "cache"),
        ("[cach]", "cach"),
        ("[cache]\nlimits = 1", "limits"),
        ("[cache]\nlimit = '120%'", "120%"),
        ("[cache]\nlimit = 'much'", "much"),
        ("[cache]\nlimit = true", "limit"),
        ("[cache]\nparanoid = 1", "paranoid"),
        ("[cache]\nforget-days = -1", "forget-days"),
        ("[cache]\ndirectory = ['/x']", "directory"),
        ("[[cache.directory]]\nweight = 1", "path"),
        ("[[cache.directory]]\npath = 'x'", "path"),
        ("[[cache.directory]]\npath = '/x'\nweight = 0", "weight"),
        ("[[cache.directory]]\npath = '/x'\n[[cache.directory]]\npath = '/x'", "twice"),
        ("[cache", "TOML"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, text: str, word: str) -> None:
    paths = NodePaths(tmp_path)
    paths.settings.write_text(text)
    with pytest.raises(UsageError, match=word):
        CacheSettings.read(paths)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ("1k", 1024), ("1.5 GiB", 3 << 29), ("2TB", 2 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert Limit.parse(text).bytes == size
