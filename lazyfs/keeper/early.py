"""Starting a daemon with next to nothing imported, so that it imports what it needs while its keeper does."""

import os
import signal
import socket
import sys
from itertools import pairwise

from lazyfs.keeper.priority import hurry

_DESCRIPTORS = ("--ready-fd", "--start-lock-fd")
_OPTIONS = ("--root", "--user")
_NO_START = ("--check", "--handed", "--help", "-h")

Early = tuple[int, socket.socket]
"""Process id, and this side of the link to it (`lazyfs.keeper.link`)."""


def start_early(words: list[str]) -> Early | None:
    """Start the daemon for a keeper with this command line. None where it will want none, or where none can be had."""
    if any(word.partition("=")[0] in _NO_START for word in words):
        return None
    pairs = dict(pairwise(words))
    pairs |= {name: value for name, equals, value in (word.partition("=") for word in words) if equals}
    try:
        # What the keeper was given is for the keeper alone.
        given = [int(pairs[name]) for name in _DESCRIPTORS if name in pairs]
        for number in (*given, *range(3, 3 + int(os.environ.get("LISTEN_FDS", "0")))):
            os.set_inheritable(number, False)
        return spawn_daemon({name: pairs[name] for name in _OPTIONS if name in pairs})
    except (OSError, ValueError):  # the keeper will find the same, and say so
        return None


def spawn_daemon(options: dict[str, str]) -> Early:
    """A daemon that stands by until it is told to serve. It outlives this process. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-m", "lazyfs.daemon", "--link", str(theirs.fileno())]
        for name, value in options.items():
            command += [name, value]
        pid = os.posix_spawn(
            sys.executable,
            command,
            {name: value for name, value in os.environ.items() if name not in _SYSTEMD},
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    hurry(pid)
    return pid, ours


_SYSTEMD = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
