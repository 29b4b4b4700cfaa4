"""How a conversion, or a proof, is shown: bars on a terminal, a line for each layer elsewhere."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from lazyfs.cli.common import short
from lazyfs.draw.svg import byte_words

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from converter import LayerProof, LayerReport
    from lazyfs.formats.oci_descriptor import Descriptor


class Lines(AbstractContextManager["Lines"]):
    """One line on standard error when a layer is done: for logs."""

    def started(self, number: int, count: int, digest: str, size: int) -> None:
        pass

    def advanced(self, number: int, size: int) -> None:
        pass

    def done(self, number: int, count: int, report: "LayerReport | LayerProof") -> None:
        print(describe(number, count, report), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Terminal(AbstractContextManager["Terminal"]):
    """A bar for each layer with bytes, rate and time left."""

    def __init__(self) -> None:
        self._bars = _bars()
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> "Terminal":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, number: int, count: int, digest: str, size: int) -> None:
        self._tasks[number] = self._bars.add_task(f"layer {number}/{count} {short(digest)}", total=size)

    def advanced(self, number: int, size: int) -> None:
        self._bars.advance(self._tasks[number], size)

    def done(self, number: int, count: int, report: "LayerReport | LayerProof") -> None:
        self._bars.remove_task(self._tasks.pop(number))
        self._bars.console.print(describe(number, count, report), highlight=False)


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class Copying(AbstractContextManager["Copying"]):
    """A line for each blob that was copied; on a terminal a bar before that."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: Bars | None = None if quiet or not sys.stderr.isatty() else _bars()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Copying":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def advanced(self, blob: "Descriptor", size: int) -> None:
        if self._bars is None:
            return
        if blob.digest not in self._tasks:
            self._tasks[blob.digest] = self._bars.add_task(f"blob {short(blob.digest)}", total=blob.size)
        self._bars.advance(self._tasks[blob.digest], size)

    def done(self, blob: "Descriptor", was_copied: bool) -> None:
        line = f"blob {short(blob.digest)}: {byte_words(blob.size)} {'copied' if was_copied else 'was there'}"
        if self._bars is not None:
            if blob.digest in self._tasks:
                self._bars.remove_task(self._tasks.pop(blob.digest))
            self._bars.console.print(line, highlight=False)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)


def describe(number: int, count: int, report: "LayerReport | LayerProof") -> str:
    from converter import LayerProof

    if isinstance(report, LayerProof):
        return (
            f"layer {number}/{count} {short(report.digest)}: "
            f"{byte_words(report.read)} read, {report.seconds:.1f} s"
        )
    how = "was converted already" if report.reused else f"{report.seconds:.1f} s"
    return (
        f"layer {number}/{count} {short(report.source_digest)}: {byte_words(report.source_size)} -> "
        f"{byte_words(report.size)}, {report.chunks} chunks, {how}"
    )


def chosen(quiet: bool) -> "Lines | Terminal | None":
    """What fits where standard error goes; None when a program reads our output."""
    if quiet:
        return None
    return Terminal() if sys.stderr.isatty() else Lines()
