"""Keeping the keeper alive where everything else fails: its memory stays, and the OOM killer passes it by.

Its memory, in which is the environment and what that has of passwords, goes into no core dump.

Each is done as far as this process may; what it may not costs safety in need, nothing else.
"""

import ctypes
import logging
from pathlib import Path

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
"""Only what is in use is locked, not every page that is mapped: 12 MB instead of 60."""
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def forbid_dumps() -> None:
    """No core dump of this process, nor a look into its memory by who is not root."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def harden() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        log.info("memory is not locked (errno %d)", ctypes.get_errno())
    forbid_dumps()
    for score in ("-1000", "-500"):
        try:
            _OOM_SCORE.write_text(score)
        except OSError:
            continue
        return
    log.info("the OOM killer may choose the keeper")
