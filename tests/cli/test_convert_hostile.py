"""Hostile images at the command line: one line that names layer, member and remedy, an exit code, nothing left."""

import gzip
import hashlib
import json
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from lazyfs.cli import app
from lazyfs.formats.oci import Manifest
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import LayoutStore, write_blob
from tests.faults import FaultServer, Reply, Seen, ranged
from tests.layouts import CONFIG, put_image
from tests.trees import DIRECTORY, HARDLINK, SYMLINK, Entry, layer_tar

BAD_INPUT, INTEGRITY, STORE, LIMIT, UNSUPPORTED, USAGE, NOT_FOUND = 4, 5, 6, 9, 10, 2, 3


class Said:
    """How a command ended."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.lines = text.splitlines()
        self.errors = [line for line in self.lines if not line.startswith(("layer 1/1", "layer 1/2"))]


Convert = Callable[..., Said]


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    """Convert into a directory, which has nothing half made then."""

    def run(source: str, *options: str) -> Said:
        target = tmp_path / "target"
        code = app.run(["convert", *options, source, f"oci:{target}:lazy"])
        said = Said(code, capsys.readouterr().err)
        if code:
            assert_nothing_half_made(target)
        return said

    return run


def assert_nothing_half_made(target: Path) -> None:
    for blob in (target / "blobs").rglob("*") if target.exists() else ():
        assert blob.is_dir() or hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    if target.exists():
        tags = json.loads((target / "index.json").read_bytes())["manifests"]
        assert not [tag for tag in tags if tag["annotations"]["org.opencontainers.image.ref.name"] == "lazy"]


def assert_refused(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.lines
    assert said.errors[0].startswith("lazyfs: "), said.lines
    assert len(said.errors) == 2, said.lines
    assert said.errors[1].startswith("  hint: ")
    for word in words:
        assert word in said.errors[0]


def image_of(directory: Path, blob: bytes, stream: bytes | None = None, size: int | None = None) -> str:
    """An image whose layer is this blob, for what no tool would make: `stream` is what its config promises."""
    diff_id = hashlib.sha256(gzip.decompress(blob) if stream is None else stream).hexdigest()
    with LayoutStore(directory, create=True) as store:
        digest, length = write_blob(store, blob)
        layer = Descriptor(OCI_LAYER_GZIP, digest, length if size is None else size)
        config = store.put_document(replace(CONFIG, diff_ids=(f"sha256:{diff_id}",)).to_bytes(), OCI_CONFIG)
        manifest = store.put_document(Manifest(config, (layer,)).to_bytes(), OCI_MANIFEST)
    return named(directory, manifest)


def named(directory: Path, manifest: Descriptor) -> str:
    """Without the store, which would not give a tag to what is not complete."""
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest.to_json()]}))
    return f"oci:{directory}"


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


def pax(**records: str) -> bytes:
    member = tarfile.TarInfo("x")
    member.pax_headers = records
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


STREAMS: dict[str, tuple[bytes, str]] = {
    "a size that lies": (header("liar", 10**9) + b"x" * 1024, "tar member 'liar' at byte 0"),
    "two dots": (layer_tar([Entry(b"ok"), Entry(b"../../etc/passwd")]), "'../../etc/passwd' at byte"),
    "NUL": (pax(path="a\0b"), "a NUL byte"),
    "a long name": (layer_tar([Entry(b"n" * 10_000)]), "more than 255 bytes"),
    "hard links in a circle": (
        layer_tar([Entry(b"a", HARDLINK, target=b"b"), Entry(b"b", HARDLINK, target=b"a")]),
        "layer 1 of 1: a hard link to 'b'",
    ),
    "a hard link to itself": (layer_tar([Entry(b"a", HARDLINK, target=b"a")]), "a hard link to 'a'"),
    "a hard link to a directory": (
        layer_tar([Entry(b"d", DIRECTORY), Entry(b"a", HARDLINK, target=b"d")]),
        "tar member 'a'",
    ),
    "symlinks in a circle": (
        layer_tar([Entry(b"a", SYMLINK, target=b"b"), Entry(b"b", SYMLINK, target=b"a"), Entry(b"a/file")]),
        "tar member 'a/file'",
    ),
    "a file as a parent": (layer_tar([Entry(b"f"), Entry(b"f/g")]), "tar member 'f/g'"),
    "no tar": (b"rubbish " * 1000, "checksum"),
    "rubbish behind a zero block": (bytes(512) + b"x" * 512, "lone zero block"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_hostile_archives(name: str, tmp_path: Path, convert: Convert) -> None:
    stream, what = STREAMS[name]
    blob = gzip.compress(stream)
    said = convert(image_of(tmp_path / "source", blob))
    assert_refused(said, BAD_INPUT, what)
    assert sha256_digest(blob) in said.errors[0] or "layer 1 of 1" in said.errors[0]


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(b"/etc/passwd", content=b"x"), Entry(b"//a//b")],
        [Entry(b".wh..wh.x"), Entry(b"d/.wh..wh..wh.y"), Entry(b".wh."), Entry(b".wh..wh..opq")],
        [Entry(b"/".join([b"n" * 200] * 50))],
        [Entry(b"a"), Entry(b"a", DIRECTORY), Entry(b"a"), Entry(b".wh.a")],
        [Entry(b"empty/%d" % number) for number in range(20_000)],
    ],
    ids=["absolute", "whiteouts of whiteouts", "a long path", "many of one name", "many empty files"],
)
def test_what_is_odd_and_allowed(
    entries: list[Entry], tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put_image(tmp_path / "source", [layer_tar(entries)])
    assert convert(source).code == 0
    assert app.run(["check", f"oci:{tmp_path}/target:lazy", "--against", source]) == 0
    assert capsys.readouterr().out.startswith("ok: ")


GOOD = layer_tar([Entry(b"file", content=Random(1).randbytes(200_000))])
PACKED = gzip.compress(GOOD)


def test_truncated_gzip(tmp_path: Path, convert: Convert) -> None:
    said = convert(image_of(tmp_path / "source", PACKED[:100_000], GOOD))
    assert_refused(said, BAD_INPUT, f"layer {sha256_digest(PACKED[:100_000])}: ", "ends too early", "'file'")


@pytest.mark.parametrize("size", [5, len(PACKED) - 1, len(PACKED) + 1, 1 << 40])
def test_a_manifest_with_a_wrong_size(tmp_path: Path, convert: Convert, size: int) -> None:
    said = convert(image_of(tmp_path / "source", PACKED, size=size))
    assert_refused(said, INTEGRITY, f"layer {sha256_digest(PACKED)}: ", "other bytes")


@pytest.mark.parametrize("at", [20, 100_000, len(PACKED) - 2])
def test_a_digest_that_does_not_match(tmp_path: Path, convert: Convert, at: int) -> None:
    """Also where what was damaged cannot be unpacked any more."""
    source = image_of(tmp_path / "source", PACKED)
    blob = tmp_path / "source" / "blobs" / sha256_digest(PACKED).replace(":", "/")
    blob.write_bytes(PACKED[:at] + bytes([PACKED[at] ^ 4]) + PACKED[at + 1 :])
    assert_refused(convert(source), INTEGRITY, f"layer {sha256_digest(PACKED)}: ", "other bytes")


def test_a_config_that_promises_another_stream(tmp_path: Path, convert: Convert) -> None:
    said = convert(image_of(tmp_path / "source", PACKED, b"another"))
    assert_refused(said, INTEGRITY, f"layer {sha256_digest(PACKED)}: ", "the config says")


def test_a_blob_that_is_missing(tmp_path: Path, convert: Convert) -> None:
    source = image_of(tmp_path / "source", PACKED)
    (tmp_path / "source" / "blobs" / sha256_digest(PACKED).replace(":", "/")).unlink()
    assert_refused(convert(source), NOT_FOUND, sha256_digest(PACKED))


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> str:
    """1.1 GiB of zeros in one file."""
    deflate = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    blob = deflate.compress(header("bomb", 1100 << 20))
    blob += b"".join(deflate.compress(bytes(1 << 20)) for _ in range(1100)) + deflate.flush()
    return image_of(tmp_path_factory.mktemp("bomb"), blob, b"")


@pytest.mark.parametrize(
    ("options", "what", "remedy"),
    [
        (["--max-layer-size", "1", "--max-ratio", "9999"], "more than 1073741824 bytes", "--max-layer-size"),
        ([], "more than 200 times as many", "--max-ratio"),
    ],
)
def test_bombs(bomb: str, convert: Convert, options: list[str], what: str, remedy: str) -> None:
    said = convert(bomb, *options)
    assert_refused(said, LIMIT, "lazyfs: layer sha256:", what, "'bomb'")
    assert remedy in said.errors[1]


DOCUMENTS: dict[str, tuple[bytes, int]] = {
    "nested deeply": (b'{"schemaVersion":2,"config":' + b"[" * 100_000 + b"]" * 100_000 + b"}", BAD_INPUT),
    "larger than any": (b'{"schemaVersion":2,"x":"' + b"x" * (5 << 20) + b'"}', LIMIT),
    "a huge number": (b'{"schemaVersion":' + b"9" * 100_000 + b"}", BAD_INPUT),
    "a key twice": (b'{"schemaVersion":2,"schemaVersion":2}', BAD_INPUT),
    "not JSON": (b"\x1f\x8b", BAD_INPUT),
    "no layers": (b'{"schemaVersion":2,"config":{}}', BAD_INPUT),
    "schema 1": (b'{"schemaVersion":1}', UNSUPPORTED),
    "manifest and index": (b'{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}', BAD_INPUT),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_manifests(name: str, tmp_path: Path, convert: Convert) -> None:
    data, code = DOCUMENTS[name]
    directory = tmp_path / "source"
    with LayoutStore(directory, create=True) as store:
        digest, size = write_blob(store, data)
    assert_refused(convert(named(directory, Descriptor(OCI_MANIFEST, digest, size))), code)


@contextmanager
def registry(layer: Callable[[Seen], Reply]) -> Iterator[str]:
    """One image, whose layer is served as the test wants; its reference."""
    config = replace(CONFIG, diff_ids=(sha256_digest(GOOD),)).to_bytes()
    manifest = Manifest(
        Descriptor(OCI_CONFIG, sha256_digest(config), len(config)),
        (Descriptor(OCI_LAYER_GZIP, sha256_digest(PACKED), len(PACKED)),),
    ).to_bytes()

    def script(request: Seen) -> Reply:
        if "/manifests/" in request.path:
            return Reply(headers={"Content-Type": OCI_MANIFEST}, body=manifest)
        if request.path.endswith(sha256_digest(config)):
            return ranged(request, config)
        return layer(request)

    with FaultServer(script) as server:
        yield f"docker://{server.host}/app:v1"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:100_000], INTEGRITY),
        (lambda data: data + b"more", INTEGRITY),
        (lambda data: data[:1000] + b"x" + data[1001:], INTEGRITY),
        (lambda data: b"", INTEGRITY),
    ],
    ids=["too few", "too many", "others", "none"],
)
def test_a_registry_that_gives_other_bytes(
    change: Callable[[bytes], bytes], code: int, convert: Convert
) -> None:
    with registry(lambda request: ranged(request, change(PACKED))) as source:
        said = convert(source)
    assert said.code in (code, STORE)
    assert_refused(said, said.code, sha256_digest(PACKED))


@pytest.mark.parametrize(("codec", "level"), [("gzip", 10), ("lz4", 17), ("none", 1), ("zstd", 23)])
def test_levels_that_a_codec_has_not(codec: str, level: int, tmp_path: Path, convert: Convert) -> None:
    source = put_image(tmp_path / "source", [GOOD])
    said = convert(source, "--codec", codec, "--level", str(level))
    assert_refused(said, USAGE, str(level))


@pytest.fixture
def small_disk(temp_root: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = temp_root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    unmount(disk)


@pytest.mark.root
@pytest.mark.parametrize("target", ["oci:{disk}/lazy:v1", "oci-archive:{disk}/lazy.tar:v1"])
def test_a_full_disk(
    small_disk: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put_image(tmp_path / "source", [GOOD])
    code = app.run(["convert", source, target.format(disk=small_disk)])
    said = Said(code, capsys.readouterr().err)
    assert_refused(said, STORE, str(small_disk), "No space left")
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size > 500]


@pytest.mark.root
def test_a_full_disk_for_temporary_files(
    small_disk: Path, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for sparse members alone."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    content = bytes(1000) + Random(1).randbytes(200_000)
    sparse = Entry(b"odd", content=content, sparse=((1000, 200_000),))
    said = convert(put_image(tmp_path / "source", [layer_tar([sparse])]))
    assert_refused(said, STORE, "layer sha256:", "temporary file", "No space left")
    assert "TMPDIR" in said.errors[1]
    assert convert(put_image(tmp_path / "source", [GOOD])).code == 0
