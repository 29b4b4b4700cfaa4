"""What stands in images: documents, TOCs, bootstraps, tar streams, frames, programs, packs, profiles, signatures."""

import gzip
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import lz4.frame
import msgpack
import zstandard

from converter import unpack
from lazyfs.errors import BadInputError
from lazyfs.formats import (
    bootstrap,
    elf,
    frames,
    image_tree,
    layer_tree,
    oci,
    oci_types,
    pack,
    pack_read,
    profile,
    seekable,
    tarwalk,
    toc,
)
from tests.converter.test_hostile import KINDS, mutated
from tests.formats import test_pack as _packs
from tests.formats.test_pack import everything
from tests.formats.test_toc import document_of, random_toc
from tests.trees import Entry, layer_tar, random_layers

from .mutate import Document, change_bytes, change_document
from .parser import Parser, any_json

_SEEDS = 12
_FRAME = Random(1).randbytes(3000) + b"a" * 5000


def _descriptor(**more: Any) -> dict[str, Any]:
    return {
        "mediaType": oci_types.OCI_LAYER_ZSTD,
        "digest": "sha256:" + "ab" * 32,
        "size": 1234,
        "annotations": {oci_types.TOC_ANNOTATION: f"10:20:{'cd' * 32}", "a": "b"},
        **more,
    }


MANIFEST = {
    "schemaVersion": 2,
    "mediaType": oci_types.OCI_MANIFEST,
    "config": _descriptor(mediaType=oci_types.OCI_CONFIG),
    "layers": [_descriptor(), _descriptor(data="aGVsbG8=", urls=["https://example.com"])],
    "subject": _descriptor(mediaType=oci_types.OCI_MANIFEST),
    "artifactType": "application/x",
    "annotations": {"x": "y"},
}
_INDEX = {
    "schemaVersion": 2,
    "mediaType": oci_types.OCI_INDEX,
    "manifests": [
        _descriptor(platform={"architecture": "arm", "os": "linux", "variant": "v7", "os.features": ["x"]})
    ],
    "annotations": {"x": "y"},
}
_CONFIG = {
    "created": "2026-01-01T00:00:00Z",
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": ["/x"], "WorkingDir": "/", "User": "1:2"},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "ab" * 32]},
    "history": [{"created_by": "x", "empty_layer": True}],
}


@cache
def _toc_documents() -> list[dict[str, Any]]:
    return [document_of(random_toc(seed, 12)) for seed in range(_SEEDS)]


def _packed(document: Document) -> bytes:
    return zstandard.compress(msgpack.packb(document, use_bin_type=True, unicode_errors="surrogatepass"), 1)


def _make_toc(rng: Random) -> bytes:
    data = _packed(change_document(rng.choice(_toc_documents()), rng))
    return change_bytes(data, rng) if rng.random() < 0.05 else data


def _build(data: bytes) -> None:
    """What the kernel is given of a TOC that passed."""
    decoded = toc.decode(data)
    bootstrap.build(image_tree.merge([decoded.tree]), [decoded.chunks.device_size])


@cache
def _pack() -> tuple[dict[str, Any], bytes, bytes]:
    """The index of a pack of a few units, and the bytes before and behind it."""
    hot = everything()[::7]
    data = _packs.made(hot)
    end = pack.HEADER.size + pack.index_length(data)
    return (
        msgpack.unpackb(zstandard.decompress(data[pack.HEADER.size : end])),
        data[: pack.HEADER.size],
        data[end:],
    )


def _make_pack(rng: Random) -> bytes:
    index, _, rest = _pack()
    stored = _packed(change_document(index, rng))
    header = pack.HEADER.pack(pack.MAGIC, pack.VERSION, len(stored))
    match rng.randrange(4):
        case 0:
            header = change_bytes(header, rng)
        case 1:
            rest = change_bytes(rest, rng)
    return header + stored + rest


@cache
def _tars() -> list[bytes]:
    layers = [layer_tar(layer) for seed in range(_SEEDS) for layer in random_layers(Random(seed), 2, 8)]
    sparse = [
        Entry(
            b"s", content=bytes(8192) + b"x" * 512, sparse=((512, 512), (8192, 512)), xattrs={b"user.a": b"1"}
        )
    ]
    return [*layers, layer_tar(sparse), layer_tar(sparse, b"long/" * 60)]


def _make_tar(rng: Random) -> bytes:
    changes = [
        (rng.choice(KINDS), rng.random() * 0.999, rng.randrange(256), rng.randrange(10))
        for _ in range(rng.randint(1, 4))
    ]
    return mutated(rng.choice(_tars()), changes)


def _walk(data: bytes) -> None:
    builder = layer_tree.TreeBuilder("fuzz")
    for member in tarwalk.walk(tarwalk.FileSource(BytesIO(data))):
        builder.add(member, member.data_offset, member.sparse)
    builder.finish(len(data))


def _make_seek_table(rng: Random) -> bytes:
    table = [(rng.randrange(1 << 20), rng.randrange(1 << 20)) for _ in range(rng.randrange(20))]
    return change_bytes(seekable.seek_table(table), rng)


def _frame(codec: str) -> Parser:
    right = frames.compressor(codec, 1)(_FRAME)
    return Parser(
        f"{codec} frame",
        partial(change_bytes, right),
        lambda data: frames.open_frame(codec, data, len(_FRAME), "fuzz"),
        (frames,),
    )


@cache
def _program() -> bytes:
    return Path("/bin/true").read_bytes()[: 16 << 10]


def _make_elf(rng: Random) -> bytes:
    """What matters stands at the beginning, in the header and the segments."""
    head = rng.choice((64, 64 + 56 * 12, 16 << 10))
    return change_bytes(_program()[:head], rng) + _program()[head:]


def _elf(data: bytes) -> None:
    if elf.elf_needs(data) is None:
        raise BadInputError("no program")


_PROFILE = "\n".join(
    [profile.FIRST_LINE, "# a", "usr/bin/python3 0-3,7", "a%20b 1", "x%0A 0,2-5,9", ""]
).encode()


@cache
def _streams() -> list[bytes]:
    """Layers in each compression: in one piece, in members and frames one behind the other, with what is skipped."""
    tar = layer_tar([Entry(b"a", content=b"b" * 4000), Entry(b"c", content=Random(2).randbytes(600))])
    halves = tar[:2000], tar[2000:]
    skipped = b"\x50\x2a\x4d\x18\x05\0\0\0abcde"
    return [
        tar,
        gzip.compress(tar, 1),
        b"".join(map(gzip.compress, halves)),
        zstandard.compress(tar),
        skipped + b"".join(map(zstandard.compress, halves)) + skipped,
        lz4.frame.compress(tar),
        b"".join(map(lz4.frame.compress, halves)),
        gzip.compress(bytes(1 << 20)),
    ]


def _make_stream(rng: Random) -> bytes:
    data = change_bytes(rng.choice(_streams()), rng)
    return data + rng.choice((b"", b"", b"\0" * 700, b"x", data[:40]))


def _unpack(data: bytes) -> None:
    pieces = [data[at : at + 777] for at in range(0, len(data), 777)]
    for piece in unpack.plain_pieces(pieces, "fuzz"):
        assert len(piece) <= 1 << 20


IMAGES = [
    Parser("manifest", any_json([MANIFEST]), oci.parse_manifest, (oci,)),
    Parser("index", any_json([_INDEX]), oci.parse_index, (oci,)),
    Parser("config", any_json([_CONFIG]), oci.parse_config, (oci,)),
    Parser("TOC", _make_toc, toc.decode, (toc,)),
    Parser("bootstrap of a TOC", _make_toc, _build, (toc, image_tree, bootstrap)),
    Parser("seek table", _make_seek_table, seekable.parse_seek_table, (seekable,)),
    Parser("tar", _make_tar, _walk, (tarwalk, layer_tree)),
    Parser("layer stream", _make_stream, _unpack, (unpack,)),
    *map(_frame, (frames.ZSTD, frames.GZIP, frames.LZ4)),
    Parser("ELF", _make_elf, _elf, (elf,)),
    Parser("launch pack", _make_pack, _packs.read, (pack, pack_read)),
    Parser(
        "profile",
        partial(change_bytes, _PROFILE),
        lambda data: profile.parse(data.decode("utf-8", "replace")),
        (profile,),
    ),
]
