"""`python -m lazyfs.daemon --root DIR`: the daemon of one node, in the foreground until SIGTERM or shutdown.

Started by `client.ensure_daemon`, which waits for one line of JSON on `--ready-fd`: the node is ready, or why it
cannot start. `--start-lock-fd` is a lock that is held until then.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError, NodeError


def main() -> int:
    parser = argparse.ArgumentParser(prog="lazyfs-daemon", description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--start-lock-fd", type=int)
    options = parser.parse_args()
    levels = logging.getLevelNamesMapping()
    logging.basicConfig(
        level=levels.get(os.environ.get("LAZYFS_LOG", "").upper(), logging.INFO),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )

    def ready(values: dict[str, object]) -> None:
        if options.ready_fd is not None:
            # Who started us may have been killed; others wait for the lock.
            with suppress(BrokenPipeError):
                os.write(options.ready_fd, json.dumps(values).encode() + b"\n")
            os.close(options.ready_fd)
        if options.start_lock_fd is not None:
            os.close(options.start_lock_fd)

    try:
        _run(options.root, lambda: ready({"pid": os.getpid()}))
    except LazyfsError as error:
        logging.getLogger(__name__).error("%s", error)
        ready(error.as_dict())
        return error.exit_code
    return 0


def _run(root: Path | None, on_ready: Callable[[], None]) -> None:
    try:
        from lazyfs.daemon.service import run
    except ImportError as error:
        raise NodeError(
            f"the daemon needs the package {error.name}", hint="pip install 'lazyfs[node]'"
        ) from error
    run(NodePaths.choose(root), on_ready)


if __name__ == "__main__":
    sys.exit(main())
