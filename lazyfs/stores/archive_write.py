"""Writing an archive: its blobs are gathered beside it, then all of it is written at once."""

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lazyfs.errors import NotFoundError, StoreError
from lazyfs.formats.oci import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index, parse_index, parse_manifest
from lazyfs.stores._files import TEMP_PREFIX, TempFile, explained, locked, remove_stale_temps
from lazyfs.stores.base import Store
from lazyfs.stores.layout import LayoutStore

_LOCK_TIMEOUT = 600.0  # another archive of many GB may be on its way there
_DIRECTORY_SUFFIX = ".d"


class Draft:
    """A layout beside the archive that holds what was not written to it yet.

    Its directory has the name of a temporary file, locked for as long as this process lives, and ``.d``: one
    without such a file was left by a process that is gone, and is removed by the next that writes there.
    """

    def __init__(self, parent: Path) -> None:
        with explained(str(parent)):
            remove_stale_temps(parent)
            for stale in parent.glob(f"{TEMP_PREFIX}*{_DIRECTORY_SUFFIX}"):
                if not stale.with_suffix("").exists():
                    shutil.rmtree(stale, ignore_errors=True)
            self._lock = TempFile(parent)
            self._directory = self._lock.path.with_suffix(_DIRECTORY_SUFFIX)
            try:
                self.store = LayoutStore(self._directory, create=True)
            except BaseException:
                self._remove_files()
                raise

    def drop(self, digest: str) -> None:
        """Give back the space of a blob that has been written to the archive."""
        with suppress(FileNotFoundError):
            (self._directory / "blobs" / digest.replace(":", "/")).unlink()

    def remove(self) -> None:
        self.store.close()
        self._remove_files()

    def _remove_files(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.discard()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on writing ``path``, which may not be there yet: a file beside it, gone afterwards."""
    lock = path.with_name(f".{path.name}.lazyfs-lock")
    while True:
        with explained(str(lock)), locked(lock, _LOCK_TIMEOUT, create=True) as descriptor:
            # Between open and lock its last holder may have removed it: then it is nobody's lock.
            if os.fstat(descriptor).st_nlink == 0:
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def reachable(store: Store, index: Index) -> list[str]:
    """The digests of all blobs that ``index`` leads to and that are in the store, sorted."""
    seen: dict[str, Descriptor] = {}
    level = list(index.manifests)
    while level:
        new = {item.digest: item for item in level if item.digest not in seen}
        seen |= new
        level = [child for item in new.values() for child in _children(store, item)]
    return sorted(digest for digest in seen if store.has(digest) is not None)


def write_archive(
    path: Path, documents: Iterable[tuple[str, bytes]], blobs: Sequence[str], store: Store, draft: Draft
) -> None:
    """Put an archive of these documents and of the store's blobs in the place of ``path``, in one step.

    The same contents give the same bytes: members are in the order given, owned by root, as of 1970.
    """
    with explained(str(path)):
        file = TempFile(path.parent)
        try:
            for name, data in documents:
                file.write(_header(name, len(data)))
                file.write(data)
                file.write(_padding(len(data)))
            file.write(_header("blobs", 0, directory=True))
            file.write(_header("blobs/sha256", 0, directory=True))
            for digest in blobs:
                _write_blob(file, store, digest)
                draft.drop(digest)
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            file.publish(path)
        finally:
            file.discard()


def _write_blob(file: TempFile, store: Store, digest: str) -> None:
    size = store.has(digest) or 0
    file.write(_header(f"blobs/{digest.replace(':', '/')}", size))
    written = 0
    for piece in store.stream(digest):
        file.write(piece)
        written += len(piece)
    if written != size:
        raise StoreError(f"{digest} in {store.url} has {written} bytes, not {size}", hint="try again")
    file.write(_padding(size))


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    member.mode = 0o755 if directory else 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _children(store: Store, descriptor: Descriptor) -> list[Descriptor]:
    try:
        if descriptor.media_type in INDEX_TYPES:
            return list(parse_index(store.get_document(descriptor)).manifests)
        if descriptor.media_type in MANIFEST_TYPES:
            manifest = parse_manifest(store.get_document(descriptor))
            return [manifest.config, *manifest.layers]
    except NotFoundError:  # an index may name images that were left where it came from
        pass
    return []
