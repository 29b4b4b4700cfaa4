"""Damage and hostile images: an error of the reader or of the command, never wrong bytes, a hang or a traceback."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.images import BuiltImage
from lazyfs.formats import toc as toc_module
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import TOC_ANNOTATION
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import Inodes, Toc
from tests.layouts import toc_of, with_layers, with_toc
from tests.waiting import wait_until

from .conftest import PATIENCE, Node, assert_error, blob, layout_of, manifest_of, succeed

DAMAGED = (4, 5, 6)
"""Exit codes: it breaks its format, it is not what its digest promises, the store cannot give it."""


@pytest.fixture(scope="session")
def truth(built_small: BuiltImage) -> dict[str, str]:
    """The sha256 of every file of the small image."""
    tree = json.loads(built_small.tree.read_bytes())
    return {path: record["sha256"] for path, record in tree.items() if record["type"] == "file"}


def unreadable(view: Path, truth: dict[str, str]) -> list[str]:
    """The files that cannot be read; all others must be right. Never waits for ever."""

    def read() -> list[str]:
        failed = []
        for path, digest in truth.items():
            try:
                data = (view / path).read_bytes()
            except OSError as error:
                assert error.errno == 5, error
                failed.append(path)
            else:
                assert hashlib.sha256(data).hexdigest() == digest, path
        return failed

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result(4 * PATIENCE)


def layers_of(reference: str) -> list[Path]:
    return [blob(layout_of(reference), layer["digest"]) for layer in manifest_of(reference)["layers"]]


def flip(path: Path, position: float, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= mask
    path.write_bytes(data)


def peak_memory(node: Node) -> int:
    """Bytes that the daemon has had resident at most."""
    lines = Path(f"/proc/{node.pid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


flips = st.tuples(
    st.integers(0, 2), st.one_of(st.floats(0, 0.999999), st.floats(0.995, 0.999999)), st.integers(1, 255)
)


@given(st.lists(flips, min_size=1, max_size=3))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes(
    make_node: Callable[..., Node],
    copied_small: str,
    truth: dict[str, str],
    tmp_path: Path,
    flips: list[tuple[int, float, int]],
) -> None:
    node, layers, view = make_node(os.urandom(4).hex()), layers_of(copied_small), tmp_path / "view"
    view.mkdir(exist_ok=True)
    whole = [layer.read_bytes() for layer in layers]
    for layer, position, mask in flips:
        flip(layers[layer], position, mask)
    damaged = [path.name for path, data in zip(layers, whole, strict=True) if path.read_bytes() != data]
    try:
        result = node("mount", "--no-fill", copied_small, view)
        if result.returncode:
            assert_error(result, 5, "TOC does not match")
        elif unreadable(view, truth):
            assert any(name in failure for name in damaged for failure in node.status()["recent_failures"])
    finally:
        for path, data in zip(layers, whole, strict=True):
            path.write_bytes(data)
    if result.returncode:
        node.mount(copied_small, view)
    wait_until(lambda: unreadable(view, truth) == [], "all to be readable again")
    node.umount(view)


def test_a_damaged_blob_is_named_and_mended_without_a_restart(
    node: Node, copied_small: str, truth: dict[str, str], tmp_path: Path
) -> None:
    view = node.mount(copied_small, tmp_path / "view", "--no-fill")
    middle = layers_of(copied_small)[1]
    whole = middle.read_bytes()
    middle.write_bytes(bytes(byte ^ 1 for byte in whole))
    failed = unreadable(view, truth)
    assert "srv/app/zeros" in failed
    assert 0 < len(failed) < len(truth)
    status = succeed(node("status"))
    assert middle.name in status.stdout
    assert "fetches failed" in status.stdout
    assert middle.name in (node.root / "daemon.log").read_text()
    result = node.run("--entrypoint", "cat", copied_small, "/srv/app/zeros")
    assert result.returncode == 1
    assert "Input/output error" in result.stderr
    assert node("check", copied_small).returncode in DAMAGED
    middle.write_bytes(whole)
    wait_until(lambda: unreadable(view, truth) == [], "all to be readable again")
    succeed(node("check", copied_small))
    node.umount(view)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_truncated_blob(
    node: Node, copied_small: str, truth: dict[str, str], tmp_path: Path, kept: float
) -> None:
    """Known images are readable as far as it goes; whoever needs the TOC is told."""
    view = node.mount(copied_small, tmp_path / "view", "--no-fill")
    middle = layers_of(copied_small)[1]
    whole = middle.read_bytes()
    os.truncate(middle, int(kept * len(whole)))
    assert unreadable(view, truth)
    for command in ("check", "inspect"):
        result = node(command, copied_small)
        assert_error(result, result.returncode, middle.name)
        assert result.returncode in DAMAGED
    middle.write_bytes(whole)
    wait_until(lambda: unreadable(view, truth) == [], "all to be readable again")
    node.umount(view)


def test_a_missing_blob(node: Node, copied_small: str, truth: dict[str, str], tmp_path: Path) -> None:
    middle = layers_of(copied_small)[1]
    away = tmp_path / "away"
    middle.rename(away)
    view = tmp_path / "view"
    view.mkdir()
    for command in (["mount", copied_small, view], ["check", copied_small], ["inspect", copied_small]):
        assert_error(node(*command), 3, middle.name)
    assert_error(node.run(copied_small), 125, middle.name)
    away.rename(middle)
    node.mount(copied_small, view, "--no-fill")
    shutil.copy(middle, away)
    middle.unlink()
    assert unreadable(view, truth)
    assert middle.name in " ".join(node.status()["recent_failures"])
    shutil.copy(away, middle)
    assert unreadable(view, truth) == []
    node.umount(view)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("no index", 3),
        ("index is garbage", 4),
        ("index is a directory", 6),
        ("index is endless", 4),
        ("index asks for much", 9),
        ("no oci-layout", 3),
        ("no manifest", 3),
        ("manifest is damaged", 5),
        ("manifest is garbage", 4),
        ("no config", 3),
        ("config is damaged", 5),
    ],
)
def test_damaged_documents(node: Node, copied_small: str, what: str, code: int, tmp_path: Path) -> None:
    layout = layout_of(copied_small)
    damage_document(layout, copied_small, what)
    (tmp_path / "view").mkdir()
    for command in (["mount", copied_small, tmp_path / "view"], ["check", copied_small]):
        result = node(*command)
        assert_error(result, code)
        assert str(layout) in result.stderr or "sha256:" in result.stderr
    assert_error(node.run(copied_small), 125)
    assert peak_memory(node) < 300 << 20


def damage_document(layout: Path, reference: str, what: str) -> None:
    index = layout / "index.json"
    entries = json.loads(index.read_bytes())
    (entry,) = [
        each
        for each in entries["manifests"]
        if each["annotations"]["org.opencontainers.image.ref.name"] == reference.split(":")[2]
    ]
    manifest, config = blob(layout, entry["digest"]), blob(layout, manifest_of(reference)["config"]["digest"])
    match what:
        case "no index":
            index.unlink()
        case "index is garbage":
            index.write_text("{]")
        case "index is a directory":
            index.unlink()
            index.mkdir()
        case "index is endless":
            index.write_text("[" * 3_000_000)
        case "index asks for much":
            entry["size"] = 1 << 40
            index.write_text(json.dumps(entries))
        case "no oci-layout":
            (layout / "oci-layout").unlink()
        case "no manifest":
            manifest.unlink()
        case "manifest is damaged":
            flip(manifest, 0.5, 1)
        case "manifest is garbage":
            garbage = b'{"schemaVersion": 2, "layers": 7}'
            entry |= {"digest": f"sha256:{hashlib.sha256(garbage).hexdigest()}", "size": len(garbage)}
            blob(layout, entry["digest"]).write_bytes(garbage)
            index.write_text(json.dumps(entries))
        case "no config":
            config.unlink()
        case "config is damaged":
            flip(config, 0.5, 1)


def column(toc: Toc, name: str, row: int, value: int) -> Toc:
    """The TOC with one value of its chunk table or its inodes changed."""
    if name in ("start", "blob_offset", "blob_length"):
        values = getattr(toc.chunks, name).copy()
        values[row] = value
        return replace(toc, chunks=replace(toc.chunks, **{name: values}))
    values = getattr(toc.tree.inodes, name).copy()
    values[row] = value
    inodes: Inodes = replace(toc.tree.inodes, **{name: values})
    return replace(toc, tree=replace(toc.tree, inodes=inodes))


def a_file(toc: Toc) -> int:
    return int(np.flatnonzero((toc.tree.inodes.size > 1000) & ((toc.tree.inodes.mode >> 12) == 8))[0])


def renamed(toc: Toc, name: bytes) -> Toc:
    names = Strings.of([*list(toc.tree.names)[:-1], name])
    return replace(toc, tree=replace(toc.tree, names=names))


CHANGES: dict[str, Callable[[Toc], Toc]] = {
    "frames overlap": lambda toc: column(toc, "blob_offset", 1, int(toc.chunks.blob_offset[1]) - 1),
    "frames are out of order": lambda toc: column(toc, "blob_offset", 0, int(toc.chunks.blob_offset[3])),
    "frame behind the blob": lambda toc: column(toc, "blob_offset", -1, 1 << 40),
    "frame of absurd size": lambda toc: column(toc, "blob_length", 0, (1 << 32) - 1),
    "empty chunk": lambda toc: column(toc, "start", 1, 0),
    "huge chunk": lambda toc: column(toc, "start", -1, int(toc.chunks.start[-2]) + (1 << 31)),
    "file behind the device": lambda toc: column(toc, "data", a_file(toc), 1 << 40),
    "file of absurd size": lambda toc: column(toc, "size", a_file(toc), 1 << 61),
    "file larger than the device": lambda toc: column(toc, "size", a_file(toc), toc.chunks.device_size + 1),
    "unknown type": lambda toc: column(toc, "mode", 1, 0o140777),
    "slash in a name": lambda toc: renamed(toc, b"../../etc/passwd"),
    "name ..": lambda toc: renamed(toc, b".."),
    "directory in itself": lambda toc: replace(
        toc, tree=replace(toc.tree, entries=np.zeros_like(toc.tree.entries))
    ),
    "stream longer than the device": lambda toc: replace(toc, stream_size=1 << 60),
    "unknown codec": lambda toc: replace(toc, codec="rot13"),
}


def zstd_frame_that_claims(size: int) -> bytes:
    """A frame of one empty block."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


PACKED = {
    "nothing in it": b"\0",
    "not zstd": b"x" * 1000,
    "claims 10 GiB": zstd_frame_that_claims(10 << 30),
    "claims 255 MiB": zstd_frame_that_claims(255 << 20),
    "200 MiB of nothing": zstandard.compress(bytes(200 << 20)),
    "2 GiB of nothing": zstandard.compress(bytes(1 << 20)) * 2,
    "endless array": zstandard.compress(b"\xdd\xff\xff\xff\xff"),
    "nested deeply": zstandard.compress(b"\x91" * 1_000_000),
    "another version": zstandard.compress(b"\x81\xa7version\x63"),
}

ANNOTATIONS = {
    "empty": "",
    "no numbers": "a:b:c",
    "negative": f"-1:10:{'0' * 64}",
    "behind the blob": f"{1 << 40}:10:{'0' * 64}",
    "beyond 64 bits": f"{1 << 62}:{1 << 62}:{'0' * 64}",
    "much to read": f"0:{255 << 20}:{'0' * 64}",
    "of another blob": f"0:100:{'0' * 64}",
}


class Hostile:
    """Shows a node images that somebody made to harm it."""

    def __init__(self, node: Node, reference: str, view: Path) -> None:
        self.node = node
        self.reference = reference
        self.view = view
        view.mkdir()

    def refused(self, name: str, reference: str) -> None:
        result = self.node("mount", reference, self.view)
        assert_error(result, result.returncode)
        assert result.returncode in (4, 5, 6, 9, 10), name
        assert [target for target in self.node.mounts() if target != "fuse"] == []

    def is_well(self) -> None:
        """The daemon lives, is small, and shows the honest image."""
        assert peak_memory(self.node) < 700 << 20
        self.node.mount(self.reference, self.view)
        self.node.umount(self.view)


@pytest.fixture
def hostile(node: Node, copied_small: str, tmp_path: Path) -> Hostile:
    return Hostile(node, copied_small, tmp_path / "view")


def test_tocs_that_do_not_hold_together(hostile: Hostile) -> None:
    layout = layout_of(hostile.reference)
    honest = toc_of(layout, "small")
    for number, (name, change) in enumerate(CHANGES.items()):
        packed = toc_module.encode(change(honest))
        hostile.refused(name, with_toc(layout, "small", f"hostile{number}", packed))
    hostile.is_well()


def test_tocs_that_would_eat_the_memory(hostile: Hostile) -> None:
    layout = layout_of(hostile.reference)
    for number, (name, packed) in enumerate(PACKED.items()):
        hostile.refused(name, with_toc(layout, "small", f"hostile{number}", packed))
    hostile.is_well()


def test_annotations_that_lead_astray(hostile: Hostile) -> None:
    layout = layout_of(hostile.reference)
    for number, (name, text) in enumerate(ANNOTATIONS.items()):

        def change(_: int, layer: Descriptor, text: str = text) -> Descriptor:
            return replace(layer, annotations={TOC_ANNOTATION: text})

        hostile.refused(name, with_layers(layout, "small", f"hostile{number}", change))
    hostile.is_well()


def test_digests_that_are_not_of_their_chunks(
    node: Node, copied_small: str, truth: dict[str, str], tmp_path: Path
) -> None:
    """All else holds together: the image can be mounted, and what is not proved cannot be read."""
    honest = toc_of(layout_of(copied_small), "small")
    for name, change in {"digests": wrong_digests, "lengths": swapped_lengths}.items():
        packed = toc_module.encode(change(honest))
        reference = with_toc(layout_of(copied_small), "small", name, packed)
        view = node.mount(reference, tmp_path / name, "--no-fill")
        failed = unreadable(view, truth)
        assert {path for path in truth if path.startswith("bin/")} <= set(failed)
        assert "srv/app/random" not in failed
        node.umount(view)


def wrong_digests(toc: Toc) -> Toc:
    return replace(toc, chunks=replace(toc.chunks, digests=bytes(len(toc.chunks.digests))))


def swapped_lengths(toc: Toc) -> Toc:
    """Chunks that end 512 bytes later than their frames say."""
    start: Any = toc.chunks.start.copy()
    start[1:-2] += 512
    return replace(toc, chunks=replace(toc.chunks, start=start))
