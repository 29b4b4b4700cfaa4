"""What `lazyfs run` will ask the daemon for, asked before the command line is understood.

The daemon opens the image while this process imports what it needs: from a cold page cache a tenth of a
second. The guess is made by eye, not by the command line's rules; `lazyfs.daemon.request` gives its answer
to nobody but who makes the very same request later.
"""

import time
from pathlib import Path

from lazyfs.config import NodePaths
from lazyfs.daemon.request import send_early
from lazyfs.errors import LazyfsError

BEGAN = time.monotonic()
"""Before anything was asked of the daemon."""
_TRANSPORTS = ("docker://", "oci:", "s3://", "oci-archive:", "docker-archive:")
# What is to be settled with the daemon first, and roots that are not where the words before `run` say.
_NOT_WITH = ("--cache-limit", "--paranoid", "--fetch-memory", "--mount-mode", "--entrypoint", "--help")


def ask_early(words: list[str]) -> None:
    """`words` are the arguments of the program. Whatever is in the way of it, it is no error yet."""
    guess = _guess(words)
    if guess is None:
        return
    root, reference, fill = guess
    try:
        send_early(NodePaths.choose(root), reference, fill=fill)
    except (OSError, LazyfsError):
        return


def _guess(words: list[str]) -> tuple[Path | None, str, bool] | None:
    root = None
    rest = iter(words)
    for word in rest:
        if word == "run":
            break
        if word == "--root":
            root = Path(next(rest, ""))
        elif word != "--debug":
            return None
    fill = True
    for word in rest:
        if word.startswith(_TRANSPORTS):
            return root, word, fill
        if word.startswith((*_NOT_WITH, "--root")):
            return None
        if word == "--no-fill":
            fill = False
    return None
