"""How soon a daemon is followed by the next: at once after a good one, later and later where none comes to serve."""

import time

from lazyfs.keeper.child import ENDING, SERVING, Daemon

LONGEST_PAUSE = 30.0
LONGEST_PAUSE_INNOCENT = 1.0
"""After a daemon that did serve, if only for a moment, or was killed: readers wait for the next one."""
FREE_FAILURES = 3
SETTLED_SECONDS = 1.0
"""A daemon that served this long was a good one; the next starts at once."""


def pause_after(failures: int, *, innocent: bool) -> float:
    """Seconds to the next start, after so many daemons in a row that were no good."""
    if innocent:
        return 0.0 if failures <= FREE_FAILURES else LONGEST_PAUSE_INNOCENT
    return min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10)) if failures else 0.0


def was_good(daemon: Daemon) -> bool:
    return daemon.stage == ENDING or (
        daemon.stage == SERVING and time.monotonic() - daemon.since > SETTLED_SECONDS
    )
