"""What an archive holds: which images, and where each blob lies. Here for an OCI image layout in a tar."""

from collections.abc import Generator
from dataclasses import dataclass, field

from lazyfs.errors import NotFoundError
from lazyfs.formats.oci import MAX_DOCUMENT, Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.stores._index import MAX_INDEX, check_version
from lazyfs.stores.archive_file import ArchiveFile, Extent

BLOBS = "blobs/sha256/"
DOCKER_MANIFESTS = "manifest.json"

_HEX_DIGITS = 64


@dataclass(slots=True)
class Contents:
    """The images of an archive by name, in their order, and its blobs by digest."""

    file: ArchiveFile
    index: Index = field(default_factory=lambda: Index(()))
    images: list[Descriptor] = field(default_factory=list)
    extents: dict[str, Extent] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)  # made up, not in the file

    def size(self, digest: str) -> int | None:
        if digest in self.documents:
            return len(self.documents[digest])
        extent = self.extents.get(digest)
        return None if extent is None else extent.size

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a blob that is there."""
        if digest in self.documents:
            return self.documents[digest][offset : offset + length]
        return self.file.read(self.extents[digest], offset, length)

    def stream(self, digest: str, offset: int, piece: int) -> Generator[bytes]:
        if digest in self.documents:
            yield self.documents[digest][offset:]
        else:
            yield from self.file.stream(self.extents[digest], offset, piece)


def read_oci(file: ArchiveFile) -> Contents:
    """The contents of an oci-archive."""
    if file.find("oci-layout") is None or file.find("index.json") is None:
        is_docker = file.find(DOCKER_MANIFESTS) is not None
        raise NotFoundError(
            "not an oci-archive: it has no oci-layout and index.json",
            hint=f"name it docker-archive:{file.path}"
            if is_docker
            else "`skopeo copy SRC oci-archive:FILE` writes one",
        )
    check_version(file.document("oci-layout", MAX_DOCUMENT), "oci-layout")
    index = parse_index(file.document("index.json", MAX_INDEX), limit=MAX_INDEX)
    return Contents(file, index, list(index.manifests), find_blobs(file))


def find_blobs(file: ArchiveFile) -> dict[str, Extent]:
    """The blobs of a layout in the archive, named as in a directory."""
    blobs: dict[str, Extent] = {}
    for name in file.names():
        digits = name.removeprefix(BLOBS)
        if digits != name and len(digits) == _HEX_DIGITS and (extent := file.find(name)) is not None:
            blobs[f"sha256:{digits}"] = extent
    return blobs
