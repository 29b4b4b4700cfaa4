"""What this node has proved of layers: that they are what their DiffID says, or that they are not.

    <root>/proofs/right/<toc>     an empty file for each TOC, by its sha256, which names its DiffID
    <root>/proofs/wrong/<toc>     the reason

Read by the snapshotter as well, on the way to each container: `wrong` is an empty directory on nearly every node.
"""

from collections.abc import Iterable
from pathlib import Path

from lazyfs.errors import IntegrityError, NodeError

_HINT = "remove the image; do not trust who made it"


class Verdicts:
    """Thread safe, and among processes."""

    def __init__(self, directory: Path) -> None:
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
        try:
            wrong = {each.name for each in self._wrong.iterdir()}
        except FileNotFoundError:
            return
        for toc in wrong.intersection(tocs):
            raise IntegrityError((self._wrong / toc).read_text(), hint=_HINT)

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".new-{path.name}")
            new.write_text(text)
            new.replace(path)
        except OSError as error:
            raise NodeError(f"{path}: {error.strerror}", hint="free some space below --root") from error
