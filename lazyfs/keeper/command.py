"""`python -m lazyfs.keeper --root DIR`: a node in the foreground, until SIGTERM or `lazyfs shutdown`.

Also started by `lazyfs run` and the like, which wait for one line of JSON on `--ready-fd`: the node is
ready, or why it cannot start; `--start-lock-fd` is a lock that is held until then. Without it, as a service,
a daemon that does not start is tried again for ever.
"""

import argparse
import grp
import json
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs import __version__, logs
from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError, NodeError, UsageError
from lazyfs.keeper import account, link, systemd, taking
from lazyfs.keeper.child import SERVING, Daemon, adopted
from lazyfs.keeper.client import KeeperClient
from lazyfs.keeper.early import Early
from lazyfs.keeper.hardening import harden
from lazyfs.keeper.keeper import Keeper
from lazyfs.keeper.link import Possessions
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

log = logging.getLogger("lazyfs.keeper")

GROUP_VARIABLE = "LAZYFS_GROUP"


def run(early: Early | None) -> int:
    """Be the keeper; `early` is the daemon that was started for it already."""
    options = _parse()
    if options.check:
        print(__version__)
        return 0
    logs.set_up()
    ready = _Ready(options.ready_fd, options.start_lock_fd)
    try:
        _keep(NodePaths.choose(options.root), options, ready, early)
    except (LazyfsError, OSError) as error:
        failure = error if isinstance(error, LazyfsError) else _unforeseen(options.root, error)
        _dismiss(early)
        log.error("%s", failure)
        ready.tell(failure.as_dict())
        return failure.exit_code
    log.info("ended")
    return 0


def _unforeseen(root: Path | None, error: OSError) -> LazyfsError:
    return NodeError(f"{root}: {error}", hint="free some space, or choose another --root")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lazyfs-keeper", description=__doc__)
    parser.add_argument("--root", type=Path, help="the node's directory (default: as `lazyfs --root`)")
    parser.add_argument(
        "--user",
        help=f"account of the daemon (default: ${account.VARIABLE}, else {account.DEFAULT_ACCOUNT}"
        " where there is one, else root)",
    )
    parser.add_argument(
        "--group",
        default=os.environ.get(GROUP_VARIABLE),
        help=f"group that may use the control API (default: ${GROUP_VARIABLE}, else root alone)",
    )
    parser.add_argument("--check", action="store_true", help="print the version: it can be started")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start-lock-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--handed", help=argparse.SUPPRESS)
    return parser.parse_args()


class _Ready:
    """The line that a starting command waits for; said once."""

    def __init__(self, descriptor: int | None, lock: int | None) -> None:
        self._open = [number for number in (descriptor, lock) if number is not None]
        self.wanted = descriptor is not None
        for number in self._open:
            os.set_inheritable(number, False)

    def tell(self, values: dict[str, Any]) -> None:
        if self.wanted and self._open:
            # Who started us may have been killed; others wait for the lock.
            with suppress(BrokenPipeError):
                os.write(self._open[0], json.dumps(values).encode() + b"\n")
        while self._open:
            os.close(self._open.pop())


def _keep(paths: NodePaths, options: argparse.Namespace, ready: _Ready, early: Early | None) -> None:
    user = account.choose(options.user)
    if options.handed:
        keeper = _go_on(paths, user.name, json.loads(options.handed))
    else:
        keeper = _begin(paths, user, options.group, ready, early)
    harden()
    keeper.run(give_up=ready.wanted)
    keeper.close()
    if keeper.exec_request is not None:
        _become(paths, options, keeper, keeper.exec_request)
    _end(paths, keeper)


def _begin(
    paths: NodePaths, user: account.Account, group: str | None, ready: _Ready, early: Early | None
) -> Keeper:
    paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    number = _group(group)
    own_lock = taking.lock_alone(paths.keeper_lock, KeeperClient(paths).is_running)
    taken = taking.lock_node(paths)
    account.give(paths, user)
    control = link.listen(paths.keeper_socket, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    keeper = Keeper(paths, user.name, control, own_lock)
    if not isinstance(taken, int):
        possessions, daemon = taken
        _dismiss(early)
        keeper.adopt(daemon)
        keeper.possess(possessions)
        ready.tell({"pid": os.getpid()})
        systemd.notify("READY=1")
        return keeper
    # It imports while the mount is made.
    keeper.start(early)
    try:
        keeper.possess(taking.make(paths, taken, number, systemd.stored()))
    except BaseException:
        keeper.stop()
        keeper.run(give_up=False)
        paths.keeper_socket.unlink(missing_ok=True)
        raise
    keeper.when_serving(ready.tell)
    return keeper


def _dismiss(early: Early | None) -> None:
    """End the daemon that was started early, unless it has been waited for already."""
    if early is not None:
        pid, end = early
        end.close()
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _group(name: str | None) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError as error:
        raise UsageError(f"there is no group {name}", hint=f"groupadd --system {name}") from error


def _become(paths: NodePaths, options: argparse.Namespace, keeper: Keeper, asked: dict[str, Any]) -> None:
    """Be the keeper of another version, in this process: same pid, same children, same descriptors."""
    client: socket.socket = asked["client"]
    handed = {**keeper.handed_on(), "client": client.fileno()}
    program = str(asked.get("python") or sys.executable)
    words = [program, "-m", "lazyfs.keeper", "--root", str(paths.root), "--handed", json.dumps(handed)]
    for name in ("user", "group"):
        if getattr(options, name):
            words += [f"--{name}", getattr(options, name)]
    environment = dict(os.environ)
    if isinstance(asked.get("path"), str):
        environment["PYTHONPATH"] = asked["path"]
    daemon = handed["daemon"]
    passed = [*handed["possessions"], *(handed[name] for name in ("control", "own_lock", "client"))]
    for number in [*passed, daemon["link"]]:
        os.set_inheritable(number, True)
    os.execve(program, words, environment)


def _go_on(paths: NodePaths, user: str, handed: dict[str, Any]) -> Keeper:
    """The other side of `_become`: keep what was kept, and have a daemon of this version take over."""
    possessions = Possessions.received(handed["possessions"])
    control = socket.socket(fileno=handed["control"])
    client = socket.socket(fileno=handed["client"])
    for number in (*possessions.descriptors(), control.fileno(), client.fileno(), handed["own_lock"]):
        os.set_inheritable(number, False)
    keeper = Keeper(paths, user, control, handed["own_lock"])
    keeper.adopt(_handed_daemon(handed["daemon"]))
    keeper.possess(possessions)

    def answer(values: dict[str, Any]) -> None:
        with client, suppress(OSError):
            link.send(client, {**values, "version": __version__})

    keeper.when_serving(answer)
    keeper.start()
    return keeper


def _handed_daemon(handed: dict[str, Any]) -> Daemon:
    os.set_inheritable(handed["link"], False)
    end = socket.socket(fileno=handed["link"])
    return adopted(handed["pid"], end, ours=handed["ours"], stage=SERVING)


def _end(paths: NodePaths, keeper: Keeper) -> None:
    possessions = keeper.possessions()
    if list_mounts(paths.images):
        from lazyfs.mount.images import release_unused

        release_unused(paths)
    # What is mounted is served again after a restart of the service, if systemd holds the connection.
    kept = bool(list_mounts(paths.images)) and systemd.keep("fuse", possessions.fuse)
    if not kept:
        systemd.forget("fuse")
        unmount(paths.fuse, detach=True)
    # The keeper's first: whoever misses the daemon's alone starts a keeper, which gives up where one still answers.
    for path in (paths.keeper_socket, paths.socket):
        path.unlink(missing_ok=True)
    possessions.close()
