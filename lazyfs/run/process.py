"""The processes of a run, and the signals between them.

    lazyfs run ──┬── the runtime (crun run), which forwards signals to the container's first process
                 └── a guard, which cleans up if lazyfs itself is killed by a signal nobody can catch

Signals to lazyfs are blocked and taken one by one with sigwaitinfo(2): none is lost between two
system calls, and none interrupts the cleaning up. So a run belongs into the main thread of a
process that has no other.
"""

import contextlib
import json
import os
import select
import signal
import termios
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import LazyfsError
from lazyfs.mount.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, mount, unmount
from lazyfs.run.kernel import die_with_parent, steal_descriptor, unshare_mounts

_FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
_SI_KERNEL = 0x80
_MS_SLAVE = 1 << 19
_PID = 4
_DONE = bytes(_PID)
_STDIN = 0
_STREAMS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class View:
    """What a child sees of the mounts: ``hide`` covered, those at ``let_go`` gone; all else as it is."""

    hide: Path
    let_go: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Signals:
    """``taken`` are blocked, to be waited for; ``mask`` is what was blocked before, and what children get."""

    taken: frozenset[signal.Signals]
    mask: frozenset[int]


@contextlib.contextmanager
def taken_signals() -> Iterator[Signals]:
    """Block the signals that are forwarded, except what the caller was told to ignore (nohup)."""
    forwarded = {number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    taken = frozenset(forwarded | {signal.SIGCHLD})
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # SIGTTOU: the terminal is to be restored even by a process in the background.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, taken | {signal.SIGTTOU})
    try:
        yield Signals(taken, frozenset(mask))
    finally:
        while signal.sigtimedwait(taken, 0):
            pass  # what came too late to be forwarded
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, child_handler)


def no_signals() -> Signals:
    """For a process that only wants children."""
    return Signals(frozenset(), frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def spawn(
    command: list[str],
    signals: Signals,
    *,
    log: Path,
    closed: Sequence[int] = (),
    own_group: bool = True,
    view: View | None = None,
    guard: "Guard | None" = None,
) -> int:
    """Start ``command`` and return its pid; it is killed when this process dies, known to its ``guard``.

    ``closed`` streams lead to /dev/null, the others are this process's own. ``own_group`` keeps away
    what a terminal, or timeout(1), sends to the whole process group. A command that cannot be
    started ends with 1 and an entry in ``log`` that looks like the runtime's own.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent()
        if os.getppid() == parent:
            if guard is not None:
                guard.announce()
            _execute(command, signals, closed, own_group, view)
    except (OSError, LazyfsError) as error:
        entry = {"level": "error", "msg": f"{command[0]}: {error}"}
        log.write_text(json.dumps(entry) + "\n")
    finally:
        os._exit(1)


def _execute(
    command: list[str], signals: Signals, closed: Sequence[int], own_group: bool, view: View | None
) -> None:
    if own_group:
        os.setpgid(0, 0)
    if view is not None:
        _enter(view)
    if closed:
        _close(closed)
    # Python ignores SIGPIPE, and a handler of its own would swallow what comes before execve(2).
    for number in (*signals.taken, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask)
    # Runtimes would hand LISTEN_FDS and NOTIFY_SOCKET on to the container.
    os.execve(command[0], command, {"PATH": os.environ.get("PATH", os.defpath)})


def _enter(view: View) -> None:
    unshare_mounts()
    # Slave: what others unmount later is to go away here as well.
    mount(None, Path("/"), None, MS_REC | _MS_SLAVE, b"", what="private view of /")
    for target in view.let_go:
        unmount(target, detach=True)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("tmpfs", view.hide, "tmpfs", flags, b"size=1m,mode=755", what=f"tmpfs on {view.hide}")


def _close(streams: Sequence[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(null, stream)


def wait(pid: int) -> int:
    """The exit code of a child, 128 + n if signal n ended it."""
    return _exit_code(os.waitpid(pid, 0)[1])


def supervise(pid: int, signals: Signals, *, own_group: bool, terminal: "Terminal | None") -> int:
    """Forward signals to the runtime ``pid`` until it ends; its exit code, 128 + n if signal n ended it."""
    while True:
        received = signal.sigwaitinfo(signals.taken)
        if received.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return _exit_code(status)
        elif own_group or received.si_code != _SI_KERNEL:
            # In our group the runtime had what the terminal sends (SI_KERNEL) already.
            os.kill(pid, received.si_signo)
        if received.si_signo == signal.SIGWINCH and terminal is not None:
            terminal.pass_size(pid)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Terminal:
    """The terminal on standard input: its settings, to be put back after a runtime made it raw, and its size."""

    def __init__(self) -> None:
        self._descriptor = os.dup(_STDIN)
        self._settings: list[Any] = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        # A terminal that hung up meanwhile needs nothing.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._settings)

    def pass_size(self, pid: int) -> None:
        """Give the terminal that the runtime ``pid`` made for the container the size of this one.

        runc does so by itself, and it does no harm to repeat it; crun 1.8 passes on the signal alone.
        """
        with contextlib.suppress(OSError, termios.error):
            for entry in list(os.scandir(f"/proc/{pid}/fd")):
                if Path(entry.path).readlink().name == "ptmx":
                    inside = steal_descriptor(pid, int(entry.name))
                    termios.tcsetwinsize(inside, termios.tcgetwinsize(self._descriptor))
                    os.close(inside)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Guard:
    """The end of the pipe at which the guard listens: pids, each of `_PID` bytes, then `_DONE` or nothing."""

    pipe: int

    def announce(self) -> None:
        """Have the guard wait for the end of this very process before it cleans up.

        A process says so itself: it holds the pipe until it has, so that the guard cannot miss it.
        """
        os.write(self.pipe, os.getpid().to_bytes(_PID, "little"))

    def dismiss(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipe, _DONE)
        os.close(self.pipe)


@contextlib.contextmanager
def guarded(clean_up: Callable[[], None]) -> Iterator[Guard]:
    """Run ``clean_up`` in a process that outlives this one, should this one be killed inside.

    The guard is a fork in a session of its own. It keeps all descriptors but the standard streams:
    locks and connections of this process are held until it has cleaned up.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            os.setsid()
            _close(_STREAMS)
            if not _dismissed(reading):
                clean_up()
        finally:
            os._exit(0)
    os.close(reading)
    guard = Guard(writing)
    try:
        yield guard
    finally:
        guard.dismiss()
        os.waitpid(pid, 0)


def _dismissed(pipe: int) -> bool:
    """Wait for the end of what is guarded; False if it was killed, and then all it announced is dead too.

    The kernel closes a dying process's pipe before it kills the children: a runtime could go on for
    a moment, and make anew what the guard removes.
    """
    announced = []
    while (message := os.read(pipe, _PID)) not in (b"", _DONE):
        # At once: a number may mean another process later.
        with contextlib.suppress(ProcessLookupError):
            announced.append(os.pidfd_open(int.from_bytes(message, "little")))
    if message == _DONE:
        return True
    for process in announced:
        select.select([process], [], [])
    return False
