"""Launch packs from the first recording to the last start: requests that are counted, reads that are not made."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.formats.oci_descriptor import PackLocation
from lazyfs.formats.oci_types import PACK_ANNOTATION, PACK_TYPE
from lazyfs.formats.profile import FIRST_LINE, parse
from lazyfs.mount.ladder import FILE, TREE
from lazyfs.stores import open_store, parse_reference
from tests.faults import FaultServer
from tests.stores.test_referrers import ModernRegistry
from tests.waiting import wait_until

from .conftest import PATIENCE, RUNGS, Node, assert_error, blob, layout_of, lazyfs, manifest_of, succeed

pytestmark = pytest.mark.root
SAID = "ready small\n"


@pytest.fixture(scope="module")
def profile(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small image's own start, to its end."""
    directory = tmp_path_factory.mktemp("profile")
    file = directory / "small.profile"
    succeed(lazyfs("--root", directory / "node", "profile", small, "--no-attach", "-o", file))
    assert list((directory / "node").iterdir()) == [], "the node of the recording is gone"
    return file


@pytest.fixture
def registry() -> Iterator[tuple[FaultServer, ModernRegistry]]:
    memory = ModernRegistry()
    with FaultServer(memory) as server:
        yield server, memory


@pytest.fixture
def packed(profile: Path, small: str, tmp_path: Path) -> str:
    """The small image, converted again with a pack of its profile."""
    reference = f"oci:{tmp_path}/packed:small"
    succeed(lazyfs("convert", "--profile", profile, small, reference))
    return reference


def serve(memory: ModernRegistry, host: str, reference: str) -> str:
    """The image, with what refers to it, in the registry as `app:v1`."""
    target = f"docker://{host}/app:v1"
    succeed(lazyfs("copy", reference, target))
    return target


def requests(server: FaultServer) -> list[str]:
    return [f"{seen.method} {seen.path.split('/')[3]}" for seen in server.seen]


def reads(node: Node) -> list[dict[str, Any]]:
    return list(DaemonClient(NodePaths(node.root)).timeline(0.0)["reads"])


def launches(node: Node) -> list[dict[str, Any]]:
    """When they have ended: the last that a pack brings may come when the container is gone already."""
    client = DaemonClient(NodePaths(node.root))
    wait_until(lambda: all(each["ended"] for each in client.status()["launches"]), "the end of the launch")
    return list(client.status()["launches"])


def test_a_profile_is_recorded_of_a_mount_of_the_kind_that_is_run(
    profile: Path, small: str, tmp_path: Path
) -> None:
    paths = {touch.path for touch in parse(profile.read_text())}
    for mode in ("loop", "tree"):
        file = tmp_path / mode
        options = ("--no-attach", "--run", f"--mount-mode {mode}", "-o", file)
        succeed(lazyfs("--root", tmp_path / "node", "profile", small, *options))
        touches = parse(file.read_text())
        assert {touch.path for touch in touches} == paths


def test_a_profile_outlives_the_page_cache(profile: Path, small: str, tmp_path: Path) -> None:
    file = tmp_path / "dropped.profile"
    script = "/srv/app/entry.sh small; >/out/done; trap exit TERM; sleep 60 & wait"
    drop = f"exec:test -e {tmp_path}/done && echo 3 >/proc/sys/vm/drop_caches"
    options = ("--no-attach", "--ready", drop, "--run", f"--entrypoint sh -v {tmp_path}:/out", "-o", file)
    succeed(lazyfs("--root", tmp_path / "node", "profile", small, *options, "--", "-c", script))
    read = {touch.path for touch in parse(file.read_text())}
    assert {touch.path for touch in parse(profile.read_text())} <= read


def test_a_profile_says_what_a_start_touches(profile: Path, small: str, tmp_path: Path) -> None:
    text = profile.read_text()
    assert text.startswith(FIRST_LINE)
    paths = {touch.path for touch in parse(text)}
    assert b"srv/app/entry.sh" in paths
    assert any(path.startswith(b"bin/") for path in paths)
    assert not any(b"random" in path or b"many/" in path for path in paths)
    merged = tmp_path / "merged"
    succeed(lazyfs("profile", "merge", profile, profile, "-o", merged))
    assert parse(merged.read_text()) == parse(text)
    shown = succeed(lazyfs("profile", "show", profile, "--svg", tmp_path / "p.svg")).stdout
    assert "srv/app/entry.sh" in shown
    assert "srv/app/entry.sh" in (tmp_path / "p.svg").read_text()


def asked_beyond(server: FaultServer, needed: list[str], launch: dict[str, Any]) -> list[str]:
    """What was asked for beside ``needed``, which came first, and beside what readers asked for who overtook the
    stream of the pack, as they do on a machine that is slow at the moment."""
    asked = requests(server)
    assert asked[: len(needed)] == needed
    return [request for request in asked[len(needed) :] if request != "GET blobs" or not launch["overtaken"]]


def test_one_request_after_the_manifest(
    packed: str, make_node: Callable[..., Node], registry: tuple[FaultServer, ModernRegistry]
) -> None:
    server, memory = registry
    location = PackLocation.parse(manifest_of(packed)["layers"][0]["annotations"][PACK_ANNOTATION])
    target = serve(memory, server.host, packed)
    node = make_node()
    server.seen.clear()
    assert succeed(node.run("--no-fill", target)).stdout == SAID
    (launch,) = launches(node)
    assert asked_beyond(server, ["GET manifests", "GET blobs"], launch) == []
    assert server.seen[1].path.endswith(location.digest)
    assert (launch["state"], launch["missed"]) == ("done", 0)
    assert launch["units"] > 0
    assert node.status()["store_bytes"] >= location.size


def test_what_is_here_whole_needs_no_pack_and_no_device(
    packed: str, make_node: Callable[..., Node], registry: tuple[FaultServer, ModernRegistry]
) -> None:
    server, memory = registry
    target, node = serve(memory, server.host, packed), make_node()
    assert succeed(node.run(target)).stdout == SAID
    succeed(node("cache", "warm", target))
    before = len(reads(node))
    server.seen.clear()
    assert succeed(node.run(target)).stdout == SAID
    assert requests(server) == ["GET manifests"]
    assert len(reads(node)) == before
    (launch,) = launches(node)
    assert (launch["state"], launch["received"], launch["missed"]) == ("done", 0, 0)
    assert launch["present_units"] == launch["units"] > 0


@pytest.mark.parametrize("mode", RUNGS)
def test_a_pack_comes_in_each_mount_mode(
    packed: str, profile: Path, small: str, tmp_path: Path, make_node: Callable[..., Node], mode: str
) -> None:
    """And what it puts into the kernel's memory is what a node without a pack shows."""
    node, plain = make_node(), make_node("plain")
    view = node.mount(packed, tmp_path / "view", "--mount-mode", mode)
    (launch,) = launches(node)
    assert (launch["state"], launch["page_bytes"] > 0) == ("done", True)
    paths = [os.fsdecode(touch.path) for touch in parse(profile.read_text())]
    files = [path for path in paths if (view / path).is_file() and not (view / path).is_symlink()]
    assert len(files) > 5
    before = node.status()["device_reads"]
    shown = {path: (view / path).read_bytes() for path in files}
    if mode != FILE:
        asked = node.status()["device_reads"] - before
        assert asked < len(files), "the kernel has most of it"
    other = plain.mount(small, tmp_path / "other", "--mount-mode", FILE)
    assert shown == {path: (other / path).read_bytes() for path in files}
    node.umount(view)
    plain.umount(other)


def test_a_start_from_a_tree_reads_nothing_that_its_pack_has_brought(
    profile: Path, small: str, tmp_path: Path, make_node: Callable[..., Node]
) -> None:
    packed = f"oci:{tmp_path}/packed:small"
    succeed(lazyfs("convert", "--profile", profile, small, packed))
    node = make_node()
    view = node.mount(packed, tmp_path / "view", "--mount-mode", TREE)
    assert len(launches(node)) == 1
    before = node.status()["device_reads"]
    assert succeed(node.run("--no-fill", "--mount-mode", TREE, packed)).stdout == SAID
    assert node.status()["device_reads"] == before, reads(node)
    # Without it the same start asks for what it reads.
    other = make_node("plain")
    assert succeed(other.run("--no-fill", "--mount-mode", TREE, small)).stdout == SAID
    assert other.status()["device_reads"] > 5
    node.umount(view)


def test_a_pack_that_an_image_got_while_the_node_ran(
    profile: Path, copied_small: str, make_node: Callable[..., Node]
) -> None:
    node = make_node()
    assert_error(node("cache", "warm", "--pack", copied_small), 3, "has no launch pack")
    succeed(lazyfs("profile", "attach", profile, copied_small))
    succeed(node("cache", "warm", "--pack", copied_small))
    # It waits yet for who mounts the image.
    assert [launch["state"] for launch in node.status()["launches"]] == ["done"]


def test_two_requests_with_a_list_of_referrers(
    profile: Path,
    copied_small: str,
    make_node: Callable[..., Node],
    registry: tuple[FaultServer, ModernRegistry],
) -> None:
    server, memory = registry
    target = serve(memory, server.host, copied_small)
    said = json.loads(succeed(lazyfs("profile", "attach", "--json", profile, target)).stdout)
    assert said["gone"] == []
    node = make_node()
    server.seen.clear()
    assert succeed(node.run("--no-fill", target)).stdout == SAID
    launch = launches(node)[0]
    assert launch["pack"] == said["pack"]
    assert asked_beyond(server, ["GET manifests", "GET referrers", "GET blobs"], launch) == []
    # Again, with a cold kernel: nothing of it is asked for again.
    server.seen.clear()
    assert succeed(node.run("--no-fill", target)).stdout == SAID
    assert requests(server) == ["GET manifests"]


def test_a_pack_that_lies_is_refused_and_the_start_goes_on(
    profile: Path, copied_small: str, node: Node
) -> None:
    said = json.loads(succeed(lazyfs("profile", "attach", "--json", profile, copied_small)).stdout)
    file = blob(layout_of(copied_small), said["pack"])
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    assert succeed(node.run(copied_small)).stdout == SAID
    assert launches(node)[0]["state"] == "refused"
    status = node.status()
    assert any("launch pack" in reason for reason in status["recent_failures"])
    assert "refused" in succeed(node("status")).stdout


def test_a_pack_that_is_gone_costs_a_line_in_status(profile: Path, copied_small: str, node: Node) -> None:
    said = json.loads(succeed(lazyfs("profile", "attach", "--json", profile, copied_small)).stdout)
    blob(layout_of(copied_small), said["pack"]).unlink()
    assert succeed(node.run(copied_small)).stdout == SAID
    assert launches(node)[0]["state"] == "refused"


def test_a_start_without_a_pack_is_learned_from(copied_small: str, node: Node, tmp_path: Path) -> None:
    file = tmp_path / "learned.profile"
    assert node("profile", "learned", copied_small).returncode == 3, "no daemon runs"
    assert succeed(node.run(copied_small)).stdout == SAID
    succeed(node("profile", "learned", copied_small, "-o", file))
    assert b"srv/app/entry.sh" in {touch.path for touch in parse(file.read_text())}
    succeed(lazyfs("profile", "attach", file, copied_small))
    with open_store(parse_reference(copied_small)) as store:
        (found,) = store.referrers(store.resolve("small").digest, PACK_TYPE)
    assert PACK_ANNOTATION in found.annotations


def test_status_tells_hits_from_waste(profile: Path, copied_small: str, node: Node) -> None:
    wide = profile.with_name("wide.profile")
    wide.write_text(profile.read_text() + "srv/app/random 0-500\n")
    succeed(lazyfs("profile", "attach", wide, copied_small))
    command = ["--entrypoint", "", copied_small, "sh", "-c", "echo up; read line"]
    process = node.start_run("--interactive", *command, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert [launch["state"] for launch in launches(node)] == ["done"]
    (use,) = json.loads(succeed(node("status", "--packs", "--json")).stdout)["pack_uses"]
    assert use["hits"] > 0
    assert use["waste"] >= 500 * 4096 // 32768 - 2, "nobody has read that file"
    assert "were not" in succeed(node("status", "--packs")).stdout
    process.communicate("end\n", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "{file}"], 4, "does not begin with"),
        (["attach", "{file}", "{image}"], 4, "does not begin with"),
        (["{image}", "--ready", "tomorrow"], 2, "log:TEXT"),
        (
            ["{image}", "--no-attach", "--ready", "log:never said", "--timeout", "60"],
            7,
            "ended before it was ready",
        ),
        (
            ["{image}", "--no-attach", "--ready", "exec:false", "--timeout", "60"],
            7,
            "--ready exit takes its end",
        ),
        (
            [
                *("{image}", "--no-attach", "--ready", "exec:false", "--timeout", "0.5"),
                *("--run", "--entrypoint sh", "--", "-c", "trap exit TERM; sleep 20 & wait"),
            ],
            7,
            "--timeout gives it longer",
        ),
    ],
)
def test_errors_of_profiles(
    copied_small: str, node: Node, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    file = tmp_path / "bad.profile"
    file.write_text("usr/bin/env 0\n")
    filled = [word.format(file=file, image=copied_small) for word in words]
    result = node("profile", *filled)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
