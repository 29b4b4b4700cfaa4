"""Without a launch pack: what the entry point of an image certainly needs is fetched before anybody asks.

    program -> script: its interpreter (#!)
            -> ELF: its interpreter (PT_INTERP), its libraries (DT_NEEDED), and theirs

Each generation is asked for at once, so the chain takes as many round trips as it is deep, while the container is
still being made. Across a slow link it ends with the program: there bytes decide, and not all of a library is read.
Nobody waits for it, and nothing comes of it if anything is not as expected.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass

from lazyfs.errors import LazyfsError
from lazyfs.formats.elf import elf_needs
from lazyfs.formats.image_paths import Lookup, extents
from lazyfs.formats.image_tree import ImageTree, merge
from lazyfs.formats.toc_types import Tree
from lazyfs.node.cache import LayerCache
from lazyfs.node.crew import Lane
from lazyfs.node.fetch import Fetcher

log = logging.getLogger(__name__)

MAX_FILES = 64
MAX_FILE = 16 << 20
"""Of a larger file its beginning is fetched: programs that carry all they need are not read whole."""
HEAD = 1 << 20
MAX_BYTES = 64 << 20
SECONDS = 30.0
SLOW = 25e6
"""Bytes of blobs a second. Across 100 Mbit/s libraries that came ahead made starts later, across 1 Gbit/s sooner."""
MIN_STORED = 256 << 10
"""Bytes of blobs; how long less than that takes says little of the link."""
_MAX_LINE = 256
_LIBRARIES = (b"/lib", b"/usr/lib", b"/lib64", b"/usr/lib64", b"/usr/local/lib")
_MULTIARCH = (b"x86_64-linux-gnu", b"aarch64-linux-gnu", b"arm-linux-gnueabihf", b"riscv64-linux-gnu")
_SEARCH = (*_LIBRARIES, *(b"%s/%s" % (each, arch) for arch in _MULTIARCH for each in _LIBRARIES[:2]))
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class EntryLayer:
    """A layer of the image, as it is fetched and read."""

    tree: Tree
    fetcher: Fetcher
    cache: LayerCache


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be run: a name is looked for along the PATH of `env`."""

    command: str
    env: tuple[str, ...]
    directory: str

    def candidates(self) -> list[bytes]:
        command = self.command.encode(errors="surrogateescape")
        directory = self.directory.encode(errors="surrogateescape")
        if b"/" in command:
            return [_below(directory, command)]
        values = [each.partition("=")[2] for each in self.env if each.startswith("PATH=")]
        search = values[-1].encode(errors="surrogateescape") if values else _PATH
        return [_below(_below(directory, each), command) for each in search.split(b":")[:MAX_FILES]]


def fetch_entry(
    tree: ImageTree, layers: Sequence[EntryLayer], entry: Entry, is_over: Callable[[], bool] = lambda: False
) -> int:
    """Ask for what `entry` needs ahead; returns how many files. Waits for what it reads itself, until `is_over`."""
    lookup = Lookup(tree)
    ends = time.monotonic() + SECONDS
    files: dict[int, bytes] = {}
    left = MAX_BYTES
    generation = _found(lookup, [entry.candidates()])
    while generation and left > 0 and time.monotonic() < ends and not is_over():
        fresh = {inode: path for inode, path in generation.items() if inode not in files}
        fresh = dict(list(fresh.items())[: MAX_FILES - len(files)])
        files |= fresh
        coming: list[Future[bytes]] = []
        stored, began = 0, time.monotonic()
        for inode in fresh:
            for layer, start, length in _parts(tree, inode):
                left -= length
                table = layers[layer].cache.chunks
                chunks = table.covering(start, length)
                stored += sum(table.blob_length[chunks.start : chunks.stop].tolist())
                coming += layers[layer].fetcher.ahead(chunks, Lane.PREFETCH)
        wait(coming, max(0.0, ends - time.monotonic()))
        took = time.monotonic() - began
        for part in layers:
            part.fetcher.wait_kept(max(0.0, ends - time.monotonic()))  # to be read below
        if is_over() or MIN_STORED < stored < SLOW * took:
            break
        wanted: list[list[bytes]] = []
        for inode, path in fresh.items():
            wanted += _needs(_content(tree, layers, inode), path)
        generation = _found(lookup, wanted)
    return len(files)


class EntryPoints:
    """Fetches those of images that are about to run for the first time, each on a thread of its own."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._known: set[tuple[str, Entry]] = set()

    def start(self, key: str, layers: Sequence[EntryLayer], entry: Entry) -> None:
        """`key` names the image: what ran once has here what it read."""
        if (key, entry) in self._known:
            return
        self._known.add((key, entry))
        with suppress(RuntimeError):  # no thread can be started: the start reads for itself
            threading.Thread(target=self._fetch, args=(layers, entry), name="entry", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _fetch(self, layers: Sequence[EntryLayer], entry: Entry) -> None:
        try:
            tree = merge([layer.tree for layer in layers])
            count = fetch_entry(tree, layers, entry, self._closing.is_set)
            log.debug("%s: %d files ahead", entry.command, count)
        except (LazyfsError, OSError, ValueError, IndexError) as error:
            log.info("nothing ahead of %s: %s", entry.command, error)


def _found(lookup: Lookup, wanted: Sequence[Sequence[bytes]]) -> Mapping[int, bytes]:
    """Of each list the first path that there is: its inode, and the path."""
    found: dict[int, bytes] = {}
    for candidates in wanted:
        for path in candidates:
            inode = lookup.regular_file(path)
            if inode is not None:
                found[inode] = path
                break
    return found


def _parts(tree: ImageTree, inode: int) -> Iterator[tuple[int, int, int]]:
    """(layer, start, length) of what is fetched of a file."""
    limit = MAX_FILE if int(tree.inodes.size[inode]) <= MAX_FILE else HEAD
    for extent in extents(tree, inode):
        length = min(extent.length, limit - extent.offset)
        if length > 0:
            yield extent.layer, extent.start, length


def _content(tree: ImageTree, layers: Sequence[EntryLayer], inode: int) -> bytes:
    """What is here of the beginning of a file; no hole of a sparse file is made up."""
    pieces: list[bytes] = []
    for layer, start, length in _parts(tree, inode):
        piece = layers[layer].cache.read(start, length)
        if piece is None:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _needs(data: bytes, path: bytes) -> Iterator[list[bytes]]:
    """For each file that the one at `path` needs: where it may be."""
    if data[:2] == b"#!":
        words = data[2:_MAX_LINE].partition(b"\n")[0].split()
        if words:
            yield [words[0]]
        if len(words) > 1 and words[0].endswith(b"/env"):
            yield [b"%s/%s" % (each, words[1]) for each in _PATH.split(b":")]
        return
    needs = elf_needs(data)
    if needs is None:
        return
    if needs.interpreter:
        yield [needs.interpreter]
    origin = path.rpartition(b"/")[0]
    search = [each.replace(b"${ORIGIN}", origin).replace(b"$ORIGIN", origin) for each in needs.search]
    for library in needs.libraries:
        yield ([library] if b"/" in library else [b"%s/%s" % (each, library) for each in (*search, *_SEARCH)])


def _below(directory: bytes, path: bytes) -> bytes:
    return path if path.startswith(b"/") else b"%s/%s" % (directory, path)
