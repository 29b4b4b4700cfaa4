"""`python -m lazyfs.daemon --root DIR --link FD --user NAME`: the daemon of one node, as its keeper starts it.

It gives up its privileges, imports what it needs, and stands by on the link (`lazyfs.keeper.link`) until it
is told to serve. `python -m lazyfs.keeper --root DIR` runs a node in the foreground.
"""

import argparse
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from lazyfs import logs
from lazyfs.config import NodePaths
from lazyfs.daemon.privileges import drop
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.keeper import account, link
from lazyfs.keeper.link import Possessions


def main() -> int:
    parser = argparse.ArgumentParser(prog="lazyfs-daemon", description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--user")
    options = parser.parse_args()
    logs.set_up()
    keeper = socket.socket(fileno=options.link)
    keeper.set_inheritable(False)
    try:
        drop(account.choose(options.user).name)
        _run(NodePaths.choose(options.root), keeper)
    except EOFError:
        return 0  # the keeper went before there was anything to serve
    except LazyfsError as error:
        with suppress(OSError):
            link.send(keeper, {"say": "failed", "error": error.as_dict()})
        return error.exit_code
    return 0


def _run(paths: NodePaths, keeper: socket.socket) -> None:
    try:
        from lazyfs.daemon.service import serve_node
    except ImportError as error:
        raise NodeError(
            f"the daemon needs the package {error.name}", hint="pip install 'lazyfs[node]'"
        ) from error
    try:
        link.send(keeper, {"say": "standby"})
    except OSError:
        return  # the keeper went before there was anything to serve
    while True:
        said, descriptors = link.receive(keeper)
        match said.get("do"):
            case "serve":
                serve_node(paths, keeper, Possessions.received(descriptors))
                logging.shutdown()
                # All that is to be kept is. Threads that still wait for a store would keep the next daemon waiting.
                os._exit(0)
            case "end":
                return
            case "ping":
                link.send(keeper, {"say": "pong"})


if __name__ == "__main__":
    sys.exit(main())
