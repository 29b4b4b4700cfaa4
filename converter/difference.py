"""What a node that has one image must fetch for another: in chunks, and as a pull of layers would."""

from dataclasses import asdict, dataclass
from typing import Any

from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.layers import load_toc
from lazyfs.stores import Reference, Store, load_image


@dataclass(frozen=True, slots=True)
class Difference:
    """Sizes in bytes of blob, as they would travel."""

    old: str
    new: str
    chunks: int
    shared_chunks: int
    missing_chunks: int
    missing_bytes: int
    plain_missing_bytes: int
    layers: int
    missing_layers: int
    missing_layer_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    old_store: Store, old: Reference, new_store: Store, new: Reference, platform: str | None = None
) -> Difference:
    """Everything of `new` is counted, as if all of it were read; a chunk that occurs twice is fetched once."""
    old_image, new_image = load_image(old_store, old, platform), load_image(new_store, new, platform)
    known = {
        digest
        for layer, diff_id in old_image.layers
        for digest in _digests(load_toc(old_store, layer, diff_id).chunks)
    }
    chunks = missing = missing_bytes = plain = 0
    seen = set(known)
    for layer, diff_id in new_image.layers:
        table = load_toc(new_store, layer, diff_id).chunks
        chunks += len(table)
        for index, digest in enumerate(_digests(table)):
            if digest not in seen:
                seen.add(digest)
                missing += 1
                missing_bytes += int(table.blob_length[index])
                plain += table.length(index)
    old_layers = {layer.digest for layer, _ in old_image.layers}
    new_layers = {layer.digest: layer.size for layer, _ in new_image.layers if layer.digest not in old_layers}
    return Difference(
        old=str(old),
        new=str(new),
        chunks=chunks,
        shared_chunks=chunks - missing,
        missing_chunks=missing,
        missing_bytes=missing_bytes,
        plain_missing_bytes=plain,
        layers=len(new_image.layers),
        missing_layers=len(new_layers),
        missing_layer_bytes=sum(new_layers.values()),
    )


def _digests(table: ChunkTable) -> list[bytes]:
    return [table.digest(index) for index in range(len(table))]
