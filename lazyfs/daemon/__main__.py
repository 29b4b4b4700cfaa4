"""`python -m lazyfs.daemon --root DIR`: the daemon of one node, in the foreground until SIGTERM or shutdown.

With `--ready-fd N` one line of JSON is written to that descriptor when the node is ready, or when it cannot
start; `client.ensure_daemon` waits for it.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from lazyfs.config import NodePaths
from lazyfs.daemon.service import run
from lazyfs.errors import LazyfsError


def main() -> int:
    parser = argparse.ArgumentParser(prog="lazyfs-daemon", description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("LAZYFS_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )

    def ready(values: dict[str, object]) -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, json.dumps(values).encode() + b"\n")
            os.close(options.ready_fd)

    try:
        run(NodePaths.choose(options.root), on_ready=lambda: ready({"pid": os.getpid()}))
    except LazyfsError as error:
        logging.getLogger(__name__).error("%s", error)
        ready(error.as_dict())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
