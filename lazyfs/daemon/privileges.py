"""What the daemon gives up before it does anything: its user, its capabilities, the way back to any.

It parses what strangers wrote and talks to networks, and needs for it nothing but the directories that the
keeper gave to its account and the descriptors that it is handed. See capabilities(7).
"""

import ctypes
import os
import pwd
from contextlib import suppress
from pathlib import Path

import lazyfs
from lazyfs.errors import NodeError

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_READ_ANYTHING = 1 << 2
"""CAP_DAC_READ_SEARCH, which root keeps: images may lie in directories of other users, as in `oci:DIR`."""
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")
_OOM_SCORE = Path("/proc/self/oom_score_adj")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(user: str) -> None:
    """Become `user`, with no capability (root: to read files, no other), and none to be had by any program.

    NodeError where that cannot be done: the daemon does not run with more than it should have.
    """
    with suppress(OSError):  # the keeper's must not be inherited: of the two the daemon is to go
        _OOM_SCORE.write_text("0")
    entry = pwd.getpwnam(user)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        for number in range(int(_LAST_CAPABILITY.read_text()) + 1):
            _call(libc.prctl, _PR_CAPBSET_DROP, number, 0, 0, 0, may_lack=True)
        if entry.pw_uid != os.geteuid():
            os.setgroups(os.getgrouplist(user, entry.pw_gid))
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
            os.environ["HOME"] = entry.pw_dir
        _call(libc.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        kept = _permitted(libc) & _READ_ANYTHING
        _set_capabilities(libc, kept)
        _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)  # a core dump would hold passwords
    except OSError as error:
        raise NodeError(f"the daemon cannot become user {user}: {error}", hint="start it as root") from error
    for module in (os, ctypes, lazyfs):
        if not os.access(str(module.__file__), os.R_OK):
            raise NodeError(
                f"user {user} cannot read {module.__file__}, which the daemon is made of",
                hint="install lazyfs and its Python where all can read them, or choose --user root",
            )


def _permitted(libc: ctypes.CDLL) -> int:
    sets = (_Sets * 2)()
    _call(libc.capget, ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(sets))
    return int(sets[0].permitted)


def _set_capabilities(libc: ctypes.CDLL, kept: int) -> None:
    sets = (_Sets * 2)()
    sets[0].effective = sets[0].permitted = kept
    _call(libc.capset, ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(sets))


def _call(function: "ctypes._NamedFuncPointer", *arguments: object, may_lack: bool = False) -> None:
    if function(*arguments) and not may_lack:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
