"""Layers that are made up, as gzip in an image layout: very many small files, or very much data.

They are written as they are made: a layer of 8 GB needs 0.2 GB of disk.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from isal import isal_zlib

from benchmarks.images.layer import PackedLayer
from benchmarks.images.layout import write_layout

TAG = "synthetic"
_BLOCK = 512
_PIECE = 1 << 20
_NAMES_PER_DIRECTORY = 100
_USTAR = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")


def many_files(count: int, top: bytes = b"") -> Iterator[bytes]:
    """A tar of `count` members below `top`, one in a hundred a directory, files of 0 to 1000 bytes."""
    random = Random(1)
    text = random.randbytes(20_000).hex().encode()
    piece = bytearray()
    directory = b""
    for number in range(count):
        if number % _NAMES_PER_DIRECTORY == 0:
            directory = top + b"usr/lib/modules%d/package%d/" % (number // 10_000, number)
            piece += _header(directory, 0, b"5")
        else:
            size = random.randrange(1000)
            piece += _header(directory + b"module_%d.py" % number, size, b"0")
            at = random.randrange(len(text) - size)
            piece += text[at : at + size] + bytes(-size % _BLOCK)
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + bytes(2 * _BLOCK)


def directories(sizes: Iterable[int]) -> Iterator[bytes]:
    """A tar of directories, each named by how many empty files it has."""
    for size in sizes:
        yield _header(b"%d/" % size, 0, b"5")
        yield b"".join(_header(b"%d/entry-%d" % (size, number), 0, b"0") for number in range(size))
    yield bytes(2 * _BLOCK)


def large_files(size: int, file_size: int = 1 << 30) -> Iterator[bytes]:
    """A tar of about `size` bytes in files of 1 GiB, which compresses to a fiftieth of it."""
    random = Random(2)
    for number in range(-(-size // file_size)):
        yield _header(b"data/part%d" % number, file_size, b"0")
        for _ in range(file_size // _PIECE):
            yield random.randbytes(_PIECE // 64) * 2 + bytes(_PIECE - _PIECE // 32)
    yield bytes(2 * _BLOCK)


def one_file(layers: list[Path], size: int) -> Iterator[bytes]:
    """A tar of one file, `size` bytes of what these gzip layers unpack to, from the start again if that is less."""
    yield _header(b"data", size, b"0")
    left = size
    while left:
        for layer in layers:
            inflate = isal_zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            with layer.open("rb") as file:
                while left and (packed := file.read(_PIECE)):
                    piece = inflate.decompress(packed)[:left]
                    left -= len(piece)
                    yield piece
    yield bytes(-size % _BLOCK + 2 * _BLOCK)


def write_image(pieces: Iterable[bytes], directory: Path) -> Path:
    """Put the tar into a new image layout, as the one layer of the image `TAG`; returns the layout."""
    directory.mkdir(parents=True)
    blob = directory / "layer"
    layer = pack(pieces, blob)
    write_layout(directory / "oci", TAG, [(layer, blob, "made up")], {})
    blob.unlink()
    return directory / "oci"


def pack(pieces: Iterable[bytes], blob: Path) -> PackedLayer:
    """Write the tar to `blob` as gzip."""
    plain, packed = hashlib.sha256(), hashlib.sha256()
    deflate = isal_zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    with blob.open("wb") as file:

        def write(data: bytes) -> None:
            packed.update(data)
            file.write(data)

        for piece in pieces:
            plain.update(piece)
            write(deflate.compress(piece))
        write(deflate.flush())
    return PackedLayer(f"sha256:{packed.hexdigest()}", f"sha256:{plain.hexdigest()}", blob.stat().st_size)


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    """One header block (POSIX.1-2017 pax, "ustar Interchange Format")."""
    octal = b"%011o\0"
    fields = [
        *(
            name,
            b"0000644\0",
            b"0000000\0",
            b"0000000\0",
            octal % size,
            octal % 1_700_000_000,
            b" " * 8,
            kind,
        ),
        *(b"", b"ustar\x0000", b"root", b"root", b"0000000\0", b"0000000\0", b""),
    ]
    block = _USTAR.pack(*fields)
    fields[6] = b"%06o\0 " % sum(block)
    return _USTAR.pack(*fields)
