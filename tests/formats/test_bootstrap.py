"""Bootstraps before their referees: GNU tar's directory beside the kernel's EROFS, and fsck.erofs."""

import io
import struct
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lazyfs.errors import LimitError
from lazyfs.formats import bootstrap as bootstrap_module
from lazyfs.formats import erofs
from lazyfs.formats.bootstrap import build, chunk_bits
from lazyfs.formats.image_tree import merge
from tests.layers import ImageFiles, convert_image_files, layer_tree
from tests.referees import Record, Snapshot, TarReferee, empty_directory, fsck, mounted, snapshot
from tests.trees import (
    BLOCK,
    CHAR,
    DIRECTORY,
    HARDLINK,
    NAMES,
    SYMLINK,
    Entry,
    layer_tar,
    random_layers,
)

COMPRESSIONS = ("none", "gzip", "zstd")


def shown(files: ImageFiles, target: Path) -> Snapshot:
    """The image as the kernel shows it, after fsck.erofs has accepted it."""
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, target) as root:
        return snapshot(root)


def show(directory: Path, *layers: Sequence[Entry]) -> Snapshot:
    return shown(convert_image_files([layer_tar(layer) for layer in layers], directory), directory / "mnt")


def compare(directory: Path, layers: Sequence[Sequence[Entry]], compression: str = "none") -> None:
    referee = TarReferee(empty_directory(directory / "unpacked"))
    for layer in layers:
        referee.apply(layer)
    files = convert_image_files([layer_tar(layer) for layer in layers], directory, compression)
    actual, expected = shown(files, directory / "mnt"), referee.expected()
    assert sorted(actual) == sorted(expected)
    assert {path: (actual[path], expected[path]) for path in actual if actual[path] != expected[path]} == {}


@pytest.mark.root
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 5),
    members=st.integers(0, 50),
    compression=st.sampled_from(COMPRESSIONS),
)
@example(seed=0, layers=1, members=0, compression="none")
@example(seed=1, layers=12, members=100, compression="gzip")
def test_random_images_are_what_tar_unpacks(
    temp_root: Path, seed: int, layers: int, members: int, compression: str
) -> None:
    compare(empty_directory(temp_root / "image"), random_layers(Random(seed), layers, members), compression)


@pytest.mark.root
def test_names_around_the_dots(temp_root: Path) -> None:
    """`.` and `..` stand among the other names; a directory may fill its block to the byte."""
    layer = [Entry(b"d/" + name) for name in NAMES]
    layer += [Entry(b"e%d/" % length + b"n" * length) for length in range(1, 256)]
    # `.` and `..` take 27 bytes; two dirents and the names of 230 and 231 bytes are what is left of 512.
    layer += [Entry(b"full/" + letter * size) for letter, size in ((b"a", 230), (b"b", 231))]
    layer += [Entry(b"over/" + letter * size) for letter, size in ((b"a", 231), (b"b", 231))]
    compare(temp_root, [layer])


@pytest.mark.root
def test_a_directory_of_50000_entries(temp_root: Path) -> None:
    names = [b"%x" % (number * 2654435761 % 2**32) for number in range(50_000)]
    files = convert_image_files([layer_tar([Entry(b"d/" + name) for name in names])], temp_root)
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root:
        assert sorted(path.name.encode() for path in (root / "d").iterdir()) == sorted(names)
        assert all((root / "d" / name.decode()).exists() for name in names[::97])
        assert not (root / "d" / "none").exists()


@pytest.mark.root
def test_deep_trees(temp_root: Path) -> None:
    deep = b"/".join([b"d"] * 300)
    compare(temp_root, [[Entry(deep + b"/f", content=b"x")], [Entry(deep + b"/.wh.f"), Entry(deep + b"/g")]])


@pytest.mark.root
def test_numbers_at_their_ends(temp_root: Path) -> None:
    entries = [
        Entry(b"owner", uid=2**32 - 2, gid=2**32 - 2, mode=0o7777),
        Entry(b"dev", CHAR, rdev=(4095, 2**20 - 1)),
        Entry(b"block", BLOCK, rdev=(0, 2**20 - 1)),
    ]
    got = show(temp_root, entries)
    assert (got[b"owner"].owner, got[b"owner"].mode & 0o7777) == ((2**32 - 2, 2**32 - 2), 0o7777)
    assert (got[b"dev"].rdev, got[b"block"].rdev) == ((4095, 2**20 - 1), (0, 2**20 - 1))


@pytest.mark.root
def test_times_of_64_bits(temp_root: Path) -> None:
    """More than a file system of the machine that runs tests can hold."""
    files = convert_image_files([layer_tar([Entry(b"f", mtime=-(10**9) - 1)])], temp_root)
    tree = merge([files.tocs[0].tree])
    for seconds in (-(2**63), 2**63 - 1):
        mtime = tree.inodes.mtime.copy()
        mtime[1] = seconds
        changed = replace(tree, inodes=replace(tree.inodes, mtime=mtime))
        files.bootstrap.write_bytes(build(changed, [files.tocs[0].chunks.device_size]))
        fsck(files.bootstrap, files.devices)
        with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root:
            assert (root / "f").stat().st_mtime_ns == seconds * 10**9 + 999_999_999


@pytest.mark.root
def test_xattrs_that_cross_blocks(temp_root: Path) -> None:
    """On the root and in files: values larger than a block and a page, areas that end anywhere."""
    sizes = [0, 1, 400, 430, 500, 512, 1000, 4000, 4096, 5000, 65535]
    entries = [
        Entry(b"f%d" % size, content=b"x", xattrs={b"user.a": b"v" * size, b"user.b": b"w" * (size % 700)})
        for size in sizes
    ]
    root_xattrs = {b"user.root": b"r" * 3000, b"trusted.x": b"y"}
    entries += [
        Entry(b".", DIRECTORY, mode=0o755, xattrs=root_xattrs),
        Entry(b"link", SYMLINK, target=b"t" * 40, xattrs={b"trusted.l": b"z" * 600}),
        Entry(b"dir", DIRECTORY, mode=0o755, xattrs={b"user." + b"n" * 250: b"long name"}),
        Entry(b"sparse", content=bytes(8192) + b"x", sparse=((8192, 1),), xattrs={b"user.s": b"s" * 700}),
    ]
    got = show(temp_root, entries)
    for entry in entries:
        path = b"" if entry.path == b"." else entry.path
        assert {name.encode(): value for name, value in got[path].xattrs} == entry.xattrs, path
    assert got[b"link"].target == b"t" * 40


@pytest.mark.root
def test_the_root_has_its_nid_however_large_the_image(temp_root: Path) -> None:
    """A nid of 16 bits reaches 2 MiB; the root must not go where inodes with xattrs go, behind all others."""
    many = [Entry(b"d/%d" % number) for number in range(40_000)]
    files = convert_image_files(
        [layer_tar([*many, Entry(b".", DIRECTORY, mode=0o711, xattrs={b"user.a": b"1"})])], temp_root
    )
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root:
        assert root.stat().st_mode & 0o7777 == 0o711
        assert (root / "d/39999").exists()


@pytest.mark.root
def test_access_control_lists(temp_root: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, name)
        for tag, permissions, name in [
            (1, 6, 2**32 - 1),
            (2, 4, 1000),
            (4, 4, 2**32 - 1),
            (16, 4, 2**32 - 1),
            (32, 0, 2**32 - 1),
        ]
    )
    entries = [
        Entry(b"f", mode=0o640, xattrs={b"system.posix_acl_access": acl}),
        Entry(b"d", DIRECTORY, mode=0o750, xattrs={b"system.posix_acl_default": acl}),
    ]
    got = show(temp_root, entries)
    assert dict(got[b"f"].xattrs) == {"system.posix_acl_access": acl}
    assert dict(got[b"d"].xattrs) == {"system.posix_acl_default": acl}


@pytest.mark.root
def test_symlinks_of_every_length_that_matters(temp_root: Path) -> None:
    lengths = [1, 31, 32, 33, 64, 100, 415, 416, 417, 447, 448, 449, 511, 512, 513, 4094, 4095]
    layer = [Entry(b"l%d" % length, SYMLINK, target=b"t" * length) for length in lengths]
    layer += [Entry(b"h", HARDLINK, target=b"l448"), Entry(b"i", HARDLINK, target=b"l4095")]
    compare(temp_root, [layer])


def sparse_entry(path: bytes, size: int, segments: Sequence[tuple[int, int]]) -> Entry:
    rng = Random(size)
    content = bytearray(size)
    for offset, length in segments:
        content[offset : offset + length] = rng.randbytes(length)
    ends = () if segments and sum(segments[-1]) == size else ((size, 0),)
    return Entry(path, content=bytes(content), sparse=(*segments, *ends))


@pytest.mark.root
def test_sparse_files(temp_root: Path) -> None:
    layer = [
        sparse_entry(b"hole", 100_000, []),
        sparse_entry(b"empty", 0, []),
        sparse_entry(b"start", 100_000, [(0, 512)]),
        sparse_entry(b"end", 100_001, [(99_840, 161)]),
        sparse_entry(b"page", 1 << 20, [(4096, 4096), (65536, 8192)]),
        sparse_entry(b"odd", 70_000, [(512, 1024), (2048, 512), (4608, 8192), (69_632, 368)]),
        sparse_entry(b"full", 8192, [(0, 8192)]),
        sparse_entry(b"neighbours", 9000, [(512, 512), (1024, 512), (1536, 7464)]),
    ]
    compare(temp_root, [layer, [Entry(b"h", HARDLINK, target=b"page"), Entry(b".wh.hole")]])


@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=pax", "--sparse-version=0.0"),
        ("--format=pax", "--sparse-version=0.1"),
        ("--format=pax", "--sparse-version=1.0"),
    ],
)
def test_sparse_files_as_gnu_tar_writes_them(temp_root: Path, options: tuple[str, ...]) -> None:
    """More segments than one header holds; an end that is a hole, and one that is not."""
    rng = Random(9)
    source = temp_root / "source"
    source.mkdir()
    for number, (segments, size) in enumerate([(0, 1 << 20), (1, 5000), (3, 1 << 20), (60, 3_000_001)]):
        with (source / f"f{number}").open("wb") as file:
            for _ in range(segments):
                file.seek(rng.randrange(size // 4096) * 4096)
                file.write(rng.randbytes(min(rng.choice((1, 4096, 8192)), size - file.tell())))
            file.truncate(size)
    stream = subprocess.run(
        ["tar", "-C", source, "--sparse", *options, "-cf", "-", "."], capture_output=True, check=True
    ).stdout
    assert len(stream) < 1 << 20, "tar saw no holes"
    files = convert_image_files([stream], temp_root)
    actual, expected = shown(files, temp_root / "mnt"), snapshot(source)
    assert {path: record.sha256 for path, record in actual.items()} == {
        path: record.sha256 for path, record in expected.items()
    }
    assert {path: record.size for path, record in actual.items()} == {
        path: record.size for path, record in expected.items()
    }


@pytest.mark.root
def test_a_file_of_more_than_4_gib(temp_root: Path) -> None:
    """Its data lies behind holes that no 32-bit number spans; the stream holds two blocks of it."""
    size = 5 * 2**30 + 100
    info = tarfile.TarInfo("big")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "big",
        "GNU.sparse.realsize": str(size),
    }
    offset = 4 * 2**30 + 512
    data = b"2\n0\n512\n%d\n512\n" % offset
    data += bytes(-len(data) % 512) + b"a" * 512 + b"b" * 512
    info.size = len(data)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writer:
        writer.addfile(info, io.BytesIO(data))
    files = convert_image_files([archive.getvalue()], temp_root)
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root, (root / "big").open("rb") as big:
        assert (root / "big").stat().st_size == size
        for at, expected in ((0, b"a" * 512), (512, bytes(512)), (offset - 512, bytes(512) + b"b" * 512)):
            big.seek(at)
            assert big.read(len(expected)) == expected
        big.seek(offset + 512)
        assert big.read(1 << 20) == bytes(1 << 20)
        big.seek(size - 100)
        assert big.read() == bytes(100)


@pytest.mark.root
def test_a_plain_file_of_more_than_4_gib(temp_root: Path) -> None:
    """The device has zeros for it, as a sparse file of this machine."""
    size = 4 * 2**30 + 1000
    files = convert_image_files([layer_tar([Entry(b"f", content=b"x")])], temp_root)
    tree = merge([files.tocs[0].tree])
    sizes = tree.inodes.size.copy()
    sizes[1] = size
    device_size = files.tocs[0].chunks.device_size + size - size % 512
    grown = replace(tree, inodes=replace(tree.inodes, size=sizes))
    files.bootstrap.write_bytes(build(grown, [device_size]))
    with files.devices[0].open("r+b") as device:
        device.truncate(device_size)
        device.seek(int(tree.inodes.data[1]) + size - 4)
        device.write(b"last")
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root, (root / "f").open("rb") as file:
        assert (root / "f").stat().st_size == size
        file.seek(size - 8)
        assert file.read() == bytes(4) + b"last"


@pytest.mark.root
def test_many_layers(temp_root: Path) -> None:
    """More than overlayfs takes; each file from its own device."""
    layers = [[Entry(b"f%d" % number, content=b"%d" % number)] for number in range(150)]
    files = convert_image_files([layer_tar(layer) for layer in layers], temp_root)
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root:
        assert [(root / f"f{number}").read_text() for number in range(150)] == [str(n) for n in range(150)]


def test_equal_trees_are_equal_bytes() -> None:
    layers = random_layers(Random(7), 3, 100)
    trees = [layer_tree(layer) for layer in layers]
    sizes = [1 << 20] * 3
    assert build(merge(trees), sizes) == build(merge([layer_tree(layer) for layer in layers]), sizes)


def test_the_header_says_what_the_image_has() -> None:
    image = build(merge([layer_tree([Entry(b"a")]), layer_tree([])]), [1024, 5120])
    superblock = np.frombuffer(image, erofs.SUPERBLOCK, 1, 1024)[0]
    assert (superblock["magic"], superblock["blkszbits"], superblock["extra_devices"]) == (erofs.MAGIC, 9, 2)
    assert (superblock["inos"], int(superblock["blocks"]) * 512) == (2, len(image))
    slots = np.frombuffer(image, erofs.DEVICE_SLOT, 2, 1152)
    assert slots["tag"].tolist() == [b"layer0", b"layer1"]
    assert slots["blocks"].tolist() == [2, 10]
    assert all(int(address) * 512 % 4096 == 0 for address in slots["mapped_blkaddr"])
    first, second = (int(address) * 512 for address in slots["mapped_blkaddr"])
    assert len(image) <= first < first + 1024 <= second


@pytest.mark.parametrize(
    ("size", "segments", "bits"),
    [
        (0, [], 31),
        (1 << 40, [], 31),
        (512, [(0, 512)], 31),
        (1000, [(512, 488)], 9),
        (1 << 20, [(0, 4096)], 12),
        (1 << 20, [(65536, 131072), (262144, 786432)], 16),
        (1 << 20, [(65536, 100)], 2),
    ],
)
def test_chunk_bits(size: int, segments: list[tuple[int, int]], bits: int) -> None:
    assert chunk_bits(size, segments) == bits


@settings(max_examples=200)
@given(st.lists(st.integers(1, 40), max_size=12), st.integers(9, 14), st.integers(0, 5000))
def test_chunks_of_sparse_files_are_all_data_or_all_hole(runs: list[int], unit: int, rest: int) -> None:
    segments = []
    at = 0
    for number, run in enumerate(runs):
        if number % 2:
            segments.append((at, run << unit))
        at += run << unit
    bits = chunk_bits(at + rest, segments)
    assert bits >= unit
    edges = [edge for offset, length in segments for edge in (offset, offset + length) if edge < at + rest]
    assert all(edge % (1 << bits) == 0 for edge in edges)
    assert bits == 31 or any(edge % (1 << bits + 1) for edge in edges)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small TOCs that ask for much: of addresses, xattrs for every inode, chunk indexes, directories, devices."""
    tree = merge([layer_tree([Entry(b"a"), Entry(b"b", xattrs={b"user.a": bytes(60_000)})])])
    with pytest.raises(LimitError, match="2 TiB"):
        build(tree, [1 << 40, 1 << 40])
    with pytest.raises(LimitError, match="layers"):
        build(tree, [512] * 5000)
    monkeypatch.setattr(bootstrap_module, "MAX_SIZE", 1 << 20)
    build(tree, [512])
    with pytest.raises(LimitError, match="metadata"):
        build(
            merge([layer_tree([Entry(b"%d" % n, xattrs={b"user.a": bytes(60_000)}) for n in range(18)])]),
            [512],
        )
    with pytest.raises(LimitError, match="metadata"):
        build(merge([layer_tree([Entry(b"%d" % n, DIRECTORY) for n in range(2000)])]), [512])
    with pytest.raises(LimitError, match="metadata"):
        build(merge([layer_tree([Entry(b"%d" % n, SYMLINK, target=b"t" * 500) for n in range(2000)])]), [512])
    sparse = [sparse_entry(b"%d" % number, 50 << 20, [(0, 512)]) for number in range(2)]
    with pytest.raises(LimitError, match="metadata"):
        build(merge([layer_tree(sparse)]), [1 << 20])
    monkeypatch.setattr(bootstrap_module, "MAX_CHUNK_INDEXES", 1000)
    with pytest.raises(LimitError, match="chunk indexes"):
        build(merge([layer_tree(sparse[:1])]), [1 << 20])


def test_record_has_all_that_can_be_compared() -> None:
    """A field that is added to stat(2)'s must be compared too."""
    assert set(Record.__dataclass_fields__) == {
        *("mode", "owner", "mtime", "links", "rdev", "size", "first", "target", "xattrs", "sha256")
    }
