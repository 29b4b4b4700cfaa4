"""Whatever a stranger writes: it is converted and proved, or refused by an error of ours with nothing half made.

Examples that once went wrong stay, as `@example`.
"""

import copy
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from converter import Limits, Settings, check_image, convert_image
from lazyfs.errors import (
    BadInputError,
    IntegrityError,
    LazyfsError,
    LimitError,
    NotFoundError,
    UnsupportedError,
)
from lazyfs.formats.oci import Manifest
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from lazyfs.stores import LayoutStore, parse_reference, write_blob
from tests.layers import compressed, put_layer
from tests.layouts import CONFIG
from tests.referees import empty_directory
from tests.trees import Entry, layer_tar, random_layers

pytestmark = pytest.mark.usefixtures("time_limit")
REFUSALS = (BadInputError, IntegrityError, LimitError, UnsupportedError, NotFoundError)
BLOCK = 512

Mutation = tuple[str, float, int, int]
"""What, where (a fraction of the stream), two numbers."""

# Where a header has its numbers and its type (POSIX.1-2017 pax, "ustar Interchange Format").
FIELDS = (
    (0, 100),
    (100, 8),
    (108, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (345, 155),
)
KINDS = ["byte", "field", "cut", "double", "drop", "zero", "name"]

mutations = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.floats(0, 0.999), st.integers(0, 255), st.integers(0, len(FIELDS) - 1)
    ),
    min_size=1,
    max_size=6,
)


def mutated(stream: bytes, changes: list[Mutation]) -> bytes:
    data = bytearray(stream)
    for what, where, value, number in changes:
        if len(data) < BLOCK:
            break
        at = int(where * len(data))
        block = at // BLOCK * BLOCK
        match what:
            case "byte":
                data[at] ^= value
            case "field":
                offset, size = FIELDS[number]
                data[block + offset : block + offset + size] = bytes([value]) * size
                fix_checksum(data, block)
            case "name":
                names = (b"..", b"/", b".wh..wh..opq", b".wh.x", b"", b"\xff", b"a/../b", b"." * 100)
                data[block : block + 100] = names[value % len(names)].ljust(100, b"\0")
                fix_checksum(data, block)
            case "cut":
                del data[at:]
            case "double":
                data[block:block] = data[block : block + BLOCK * (number + 1)]
            case "drop":
                del data[block : block + BLOCK * (number + 1)]
            case "zero":
                data[block : block + BLOCK] = bytes(len(data[block : block + BLOCK]))
    return bytes(data)


def fix_checksum(data: bytearray, block: int) -> None:
    if block + BLOCK <= len(data):
        data[block + 148 : block + 156] = b" " * 8
        data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + BLOCK])


def outcome(directory: Path, changed: Settings | None = None) -> LazyfsError | None:
    """Convert the layout's image `x` into a fresh one; the error by which it was refused, if it was."""
    target = parse_reference(f"oci:{empty_directory(directory / 'target')}:lazy")
    source = parse_reference(f"oci:{directory / 'source'}")
    refused: LazyfsError | None = None
    with LayoutStore(directory / "source") as old, LayoutStore(directory / "target", create=True) as new:
        try:
            convert_image(old, source, new, target, changed or Settings(jobs=1), all_platforms=True)
        except REFUSALS as error:
            refused = error
            assert "lazy" not in new.tags()
        else:
            if new.resolve("lazy").media_type != OCI_INDEX:
                check_image(new, target)
    for path in (directory / "target" / "blobs").rglob("*"):
        assert path.is_dir() or hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    if refused is not None:
        assert "\n" not in refused.message
        assert refused.hint
    return refused


def put(directory: Path, layer: bytes, diff_id: str) -> None:
    with LayoutStore(empty_directory(directory), create=True) as store:
        config = store.put_document(replace(CONFIG, diff_ids=(diff_id,)).to_bytes(), OCI_CONFIG)
        manifest = Manifest(config, (put_layer(store, layer),)).to_bytes()
        store.put_tag("x", store.put_document(manifest, OCI_MANIFEST))


def base_stream(seed: int) -> bytes:
    entries = random_layers(Random(seed), 1, 12)[0]
    content = bytes(1000) + Random(seed).randbytes(1500) + bytes(7000)
    entries.append(Entry(b"odd sparse", content=content, sparse=((1000, 1500), (9500, 0))))
    return layer_tar(entries)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 20), changes=mutations)
@example(seed=0, changes=[("field", 0.0, 0, 3)])
@example(seed=0, changes=[("field", 0.0, 255, 3)])
@example(seed=0, changes=[("field", 0.0, 128, 4)])
@example(seed=0, changes=[("name", 0.0, 2, 0), ("cut", 0.5, 0, 0)])
def test_archives_in_which_something_was_changed(tmp_path: Path, seed: int, changes: list[Mutation]) -> None:
    stream = mutated(base_stream(seed), changes)
    put(tmp_path / "source", stream, sha256_digest(stream))
    refused = outcome(tmp_path)
    assert refused is None or "layer" in refused.message


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 5),
    compression=st.sampled_from(["gzip", "zstd"]),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3),
    kept=st.floats(0, 1),
)
@example(seed=0, compression="gzip", flips=[], kept=0.0)
@example(seed=0, compression="zstd", flips=[(0.0, 1)], kept=1.0)
def test_compressed_streams_in_which_something_was_changed(
    tmp_path: Path, seed: int, compression: str, flips: list[tuple[float, int]], kept: float
) -> None:
    """Whoever made the blob made it so: its digest is right, what is in it is not."""
    stream = base_stream(seed)
    blob = bytearray(compressed(stream, compression))
    for where, mask in flips:
        blob[int(where * len(blob))] ^= mask
    del blob[int(kept * len(blob)) :]
    put(tmp_path / "source", bytes(blob), sha256_digest(stream))
    limits = Settings(jobs=1, limits=Limits(max_size=16 << 20, max_ratio=50, ratio_from=1 << 20))
    refused = outcome(tmp_path, limits)
    if bytes(blob) != compressed(stream, compression) and refused is not None:
        assert "layer" in refused.message


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 1 << 31, 1 << 63, 1 << 100, 1.5, float("nan")]),
    st.text(max_size=8),
    st.sampled_from(
        ["sha256:" + "0" * 64, "sha512:" + "0" * 128, OCI_MANIFEST, OCI_INDEX, OCI_CONFIG, "linux"]
    ),
    st.sampled_from([[], {}, [[]], [{}], {"": {}}]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        found += places(child, (*path, key))
    return found


def changed_document(document: Any, changes: list[tuple[float, Any, bool]]) -> Any:
    """At each place (a fraction of all places) another value, or none."""
    document = copy.deepcopy(document)
    for where, value, removed in changes:
        options = places(document)
        if not options:
            break
        *way, last = options[int(where * len(options))]
        parent = document
        for key in way:
            parent = parent[key]
        if removed:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(value)
    return document


@settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["manifest", "config", "index"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), VALUES, st.booleans()), min_size=1, max_size=4),
)
@example(kind="manifest", changes=[(0.0, float("nan"), False)])
@example(kind="config", changes=[(0.5, [[]], False)])
def test_documents_in_which_something_was_changed(
    tmp_path: Path, kind: str, changes: list[tuple[float, Any, bool]]
) -> None:
    stream = layer_tar([Entry(b"file", content=b"content")])
    directory = empty_directory(tmp_path / "source")
    with LayoutStore(directory, create=True) as store:

        def document(value: Any, media_type: str, name: str) -> dict[str, Any]:
            data = json.dumps(changed_document(value, changes) if kind == name else value).encode()
            digest, size = write_blob(store, data)
            return {"mediaType": media_type, "digest": digest, "size": size}

        config_value = replace(CONFIG, diff_ids=(sha256_digest(stream),)).to_json()
        config = document(config_value, OCI_CONFIG, "config")
        layer = put_layer(store, stream).to_json()
        manifest_value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
        manifest = document(manifest_value, OCI_MANIFEST, "manifest")
        manifest |= {"platform": {"os": "linux", "architecture": "amd64"}}
        index_value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [manifest]}
        index = document(index_value, OCI_INDEX, "index")
    top = Descriptor(index["mediaType"], index["digest"], index["size"])
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top.to_json()]}))
    outcome(tmp_path)


def test_a_gzip_file_of_nothing_but_headers(tmp_path: Path) -> None:
    """Empty members without end take time, not memory; the limit of the blob's size bounds them."""
    member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x03\0" + struct.pack("<II", 0, 0)
    put(tmp_path / "source", member * 50_000, sha256_digest(b""))
    assert outcome(tmp_path) is None
