"""What a conversion, or a proof, tells while it runs. The command line draws it; nothing here depends on how."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer. Sizes in bytes; `new_chunks` are those that this run had to make."""

    diff_id: str
    source_digest: str
    source_size: int
    digest: str
    size: int
    toc_size: int
    chunks: int
    new_chunks: int
    stream_size: int
    seconds: float
    reused: bool


@dataclass(frozen=True, slots=True)
class LayerProof:
    """A layer that was read and is right: `read` bytes, some of them twice."""

    digest: str
    read: int
    seconds: float


class Progress(Protocol):
    """Layers are counted from 1; a layer's unit of progress is a byte that is read of its (source) blob."""

    def started(self, number: int, count: int, digest: str, size: int) -> None: ...

    def advanced(self, number: int, size: int) -> None:
        """`size` more bytes of the layer's blob have been read. May be called from another thread."""
        ...

    def done(self, number: int, count: int, report: LayerReport | LayerProof) -> None: ...


class Silent:
    """Tells nothing."""

    def started(self, number: int, count: int, digest: str, size: int) -> None:
        pass

    def advanced(self, number: int, size: int) -> None:
        pass

    def done(self, number: int, count: int, report: LayerReport | LayerProof) -> None:
        pass
