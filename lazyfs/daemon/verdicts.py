"""What this node has proved of layers: that they are what their DiffID says, or that they are not.

    <root>/proofs/right/<toc>     an empty file for each TOC, by its sha256, which names its DiffID
    <root>/proofs/wrong/<toc>     the reason

Read by the snapshotter as well, on the way to each container: `wrong` is an empty directory on nearly every node.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from lazyfs.beneath import open_beneath, proc_path, read_beneath
from lazyfs.errors import IntegrityError, NodeError

_MAX_REASON = 4096
_ELSE = "remove it: what is wrong is found again"
_HINT = "remove the image; do not trust who made it"


class Verdicts:
    """Thread safe, and among processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._right = directory / "right"
        self._wrong = directory / "wrong"

    def keep_right(self, toc: str) -> None:
        self._write(self._right / toc, "")

    def keep_wrong(self, toc: str, reason: str) -> None:
        self._write(self._wrong / toc, reason)

    def is_right(self, toc: str) -> bool:
        return (self._right / toc).exists()

    def refuse_wrong(self, tocs: Iterable[str]) -> None:
        """IntegrityError when one of these layers is not what its image says."""
        # Also asked by root, of what the daemon's account has written.
        try:
            descriptor = open_beneath(self._directory, self._wrong.name, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise NodeError(f"{self._wrong}: {error.strerror}", hint=_ELSE) from error
        try:
            wrong = {entry.name for entry in proc_path(descriptor).iterdir()}
        finally:
            os.close(descriptor)
        for toc in wrong.intersection(tocs):
            raise IntegrityError(self._reason(toc), hint=_HINT)

    def _reason(self, toc: str) -> str:
        try:
            reason = read_beneath(self._directory, f"{self._wrong.name}/{toc}", _MAX_REASON)
        except OSError as error:
            reason = f"layer with TOC {toc} is wrong; {error.strerror}".encode()
        return " ".join(reason.decode(errors="replace").split())

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".new-{path.name}")
            new.write_text(text)
            new.replace(path)
        except OSError as error:
            raise NodeError(f"{path}: {error.strerror}", hint="free some space below --root") from error
