"""A converted image is an ordinary image: skopeo copies it, podman and containerd run it."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.images import BuiltImage
from lazyfs.formats.oci_types import TOC_ANNOTATION
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.waiting import wait_until

from .conftest import Node, blob, document, layout_of, lazyfs, manifest_of, succeed
from .engines import TIMEOUT, podman, tool

CONTAINERD = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{directory}/containerd.sock"
[ttrpc]
address = "{directory}/ttrpc.sock"
"""


def test_config_and_diff_ids_are_kept(demo: str, built_demo: BuiltImage) -> None:
    before, after = manifest_of(built_demo.reference), manifest_of(demo)
    assert after["config"] == before["config"]
    config = document(layout_of(demo), after["config"]["digest"])
    for layer, diff_id in zip(after["layers"], config["rootfs"]["diff_ids"], strict=True):
        assert layer["mediaType"].endswith("+zstd")
        with subprocess.Popen(
            ["zstd", "-dcq", blob(layout_of(demo), layer["digest"])], stdout=subprocess.PIPE
        ) as zstd:
            assert zstd.stdout is not None
            assert f"sha256:{hashlib.file_digest(zstd.stdout, 'sha256').hexdigest()}" == diff_id  # type: ignore[arg-type]


def test_inspected_by_skopeo(demo: str, built_demo: BuiltImage) -> None:
    said = json.loads(tool("skopeo", "inspect", demo))
    assert said["Layers"] == [layer["digest"] for layer in manifest_of(demo)["layers"]]
    assert said["Labels"]["org.opencontainers.image.title"] == "lazyfs demo"
    configs = [tool("skopeo", "inspect", "--config", "--raw", each) for each in (demo, built_demo.reference)]
    assert configs[0] == configs[1]


def test_copied_by_skopeo(node: Node, demo: str, tmp_path: Path) -> None:
    """To a layout, where it stays what it was, and to a directory and back."""
    copy = f"oci:{tmp_path}/copy:demo"
    tool("skopeo", "copy", "--quiet", demo, copy)
    assert manifest_of(copy) == manifest_of(demo)
    tool("skopeo", "copy", "--quiet", demo, f"dir:{tmp_path}/dir")
    back = f"oci:{tmp_path}/back:demo"
    tool("skopeo", "copy", "--quiet", f"dir:{tmp_path}/dir", back)
    assert [layer["annotations"] for layer in manifest_of(back)["layers"]] == [
        layer["annotations"] for layer in manifest_of(demo)["layers"]
    ]
    assert all(TOC_ANNOTATION in layer["annotations"] for layer in manifest_of(back)["layers"])
    succeed(lazyfs("check", back))
    assert succeed(node.run(back)).stdout.startswith("ready")


def test_decompressed_by_skopeo(demo: str, tmp_path: Path) -> None:
    """Then its layers are named by their DiffIDs."""
    tool("skopeo", "copy", "--quiet", "--dest-decompress", demo, f"dir:{tmp_path}/dir")
    manifest = json.loads((tmp_path / "dir" / "manifest.json").read_bytes())
    config = document(layout_of(demo), manifest_of(demo)["config"]["digest"])
    assert [layer["digest"] for layer in manifest["layers"]] == config["rootfs"]["diff_ids"]


def test_for_docker_with_gzip(node: Node, built_small: BuiltImage, tmp_path: Path) -> None:
    """Docker's own formats know no zstd."""
    reference = f"oci:{tmp_path}/lazy:gzip"
    succeed(lazyfs("convert", "--codec", "gzip", built_small.reference, reference))
    tool("skopeo", "copy", "--quiet", reference, f"docker-archive:{tmp_path}/archive.tar:demo:latest")
    said = json.loads(tool("skopeo", "inspect", "--config", f"docker-archive:{tmp_path}/archive.tar"))
    config = document(built_small.layout, manifest_of(built_small.reference)["config"]["digest"])
    assert said["rootfs"] == config["rootfs"]
    assert succeed(node.run(reference)).stdout == "ready small\n"


def test_run_by_podman(demo: str) -> None:
    with podman() as engine:
        # It makes the image's name of the path, and names have no capital letters.
        layout = layout_of(demo)
        image = f"oci:{layout.name}:demo"
        said = engine("run", "--rm", "--network", "none", "--quiet", image, cwd=layout.parent)
        assert said.startswith("ready 1.")
        images = engine("images", "--no-trunc", "--quiet").split()
        assert images == [manifest_of(demo)["config"]["digest"]]


@contextmanager
def containerd(directory: Path) -> Iterator[list[str | Path]]:
    """A containerd of our own; gives the beginning of a `ctr` command."""
    directory.mkdir()
    (directory / "config.toml").write_text(CONTAINERD.format(directory=directory))
    socket = directory / "containerd.sock"
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["containerd", "--config", directory / "config.toml"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_until(lambda: b"successfully booted" in (directory / "log").read_bytes(), "containerd")
        yield ["ctr", "--address", socket]
    finally:
        daemon.terminate()
        daemon.wait(TIMEOUT)
        for entry in list_mounts(directory):
            unmount(entry.target, detach=True)


def test_run_by_containerd(demo: str, tmp_path: Path) -> None:
    tool("skopeo", "copy", "--quiet", demo, f"oci-archive:{tmp_path}/image.tar:demo")
    with containerd(tmp_path / "containerd") as ctr:
        tool(*ctr, "images", "import", "--base-name", "imported", tmp_path / "image.tar")
        index = json.loads((layout_of(demo) / "index.json").read_bytes())
        digest = next(
            entry["digest"]
            for entry in index["manifests"]
            if entry["annotations"]["org.opencontainers.image.ref.name"] == "demo"
        )
        assert digest in tool(*ctr, "images", "list")
        # Not to ctr itself, which may open the pipe when the container has ended.
        said = tmp_path / "said"
        tool(
            *ctr, "run", "--rm", "--log-uri", f"file://{said}", "imported:demo", f"lazyfs-test-{os.getpid()}"
        )
        assert said.read_text().startswith("ready 1.")
        tool(*ctr, "images", "remove", "--sync", "imported:demo")


pytestmark = pytest.mark.image
