"""The keeper's loop: one daemon serves at a time, the next begins when it ends, and somebody may ask how it goes.

One thread, one selector. A daemon that is started stands by while it imports; it is told to serve, and is
given what there is to serve, when no other does. So the first start, a restart and an upgrade are one way.
"""

import logging
import os
import re
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lazyfs import __version__
from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.keeper import link, systemd
from lazyfs.keeper.child import ENDING, SERVING, STANDBY, STARTING, Daemon, spawn, started
from lazyfs.keeper.early import Early
from lazyfs.keeper.link import Possessions
from lazyfs.keeper.pauses import LONGEST_PAUSE_INNOCENT, pause_after, was_good
from lazyfs.keeper.priority import relax
from lazyfs.keeper.refusal import refuse
from lazyfs.mount.read_ahead import restore_read_ahead

log = logging.getLogger(__name__)

PING_SECONDS = 1.0
MAX_HEARD = 512
"""Messages of one daemon in a row: more than a link holds, so the last words of one that has ended are among them."""
_MOUNT = re.compile(r"[0-9A-Za-z-]{1,200}")
END_PINGS = 20
"""For which a daemon that was told to end may go on."""
Report = Callable[[dict[str, Any]], None]


class Keeper:
    """`run` returns when it was told to stop: then no daemon is left."""

    def __init__(self, paths: NodePaths, user: str, control: socket.socket, own_lock: int) -> None:
        self.exec_request: dict[str, Any] | None = None
        self._own_lock = own_lock
        self._paths = paths
        self._user = user
        self._control = control
        self._possessions: Possessions | None = None
        self._serving: Daemon | None = None
        self._coming: Daemon | None = None
        self._dying: list[Daemon] = []
        self._failures = 0
        self._restarts = 0
        self._resume_at: float | None = None
        self._next_tick = time.monotonic()
        self._signalled = False
        self._has_served = False
        self._stopping = False
        self._last_end = ""
        self._last_error: dict[str, Any] | None = None
        self._waiting: list[Report] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._answer_control)
        self._wake = self._take_signals()

    # What the keeper is given before it runs.

    def start(self, early: Early | None = None) -> None:
        """Have a daemon start, or take one that was; to serve when there is something to serve. Raises OSError."""
        self._resume_at = None
        daemon = started(early) if early is not None else spawn(self._paths, self._user)
        self._coming = self._watch(daemon)

    def adopt(self, daemon: Daemon) -> None:
        """Watch a daemon that serves already."""
        self._has_served = True
        self._serving = self._watch(daemon)

    def possess(self, possessions: Possessions) -> None:
        self._possessions = possessions
        self._promote()

    def when_serving(self, report: Report) -> None:
        """Have told when the daemon that is coming serves, or what went wrong with it."""
        self._waiting.append(report)

    # The loop.

    def run(self, *, give_up: bool) -> None:
        """Until told to stop; with `give_up` also when the first daemon does not come to serve."""
        while not (self._stopping and not (self._serving or self._coming)) and not self.exec_request:
            until = self._next_tick if self._resume_at is None else min(self._next_tick, self._resume_at)
            for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
                self._handle(key)
            if self._signalled:
                self.stop()
            if self.exec_request and not self._settled():
                # The daemon ended at that very moment.
                asked, self.exec_request = self.exec_request, None
                _reply(asked["client"], self._busy())
            now = time.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + PING_SECONDS
                _guarded(self._tick)
            if self._resume_at is not None and now >= self._resume_at:
                self._try_again()
            if give_up and self._failures and not self._has_served:
                self._stopping = True
                self._resume_at = None

    def _handle(self, key: selectors.SelectorKey) -> None:
        # What was handled before it may have closed it.
        if self._selector.get_map().get(key.fd) is not key:
            return
        _guarded(key.data)

    def possessions(self) -> Possessions:
        if self._possessions is None:
            raise NodeError("the keeper has nothing to keep")
        return self._possessions

    def close(self) -> None:
        """Give up what only the loop needed."""
        self._selector.close()
        signal.set_wakeup_fd(-1)
        self._wake.close()

    def _watch(self, daemon: Daemon) -> Daemon:
        self._selector.register(daemon.link, selectors.EVENT_READ, lambda: self._listen(daemon))
        self._selector.register(daemon.process, selectors.EVENT_READ, lambda: self._gone(daemon))
        return daemon

    def _take_signals(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._selector.register(ours, selectors.EVENT_READ, lambda: _drain(ours))
        return ours

    def _signal(self, *_: object) -> None:
        self._signalled = True

    def stop(self) -> None:
        """End the daemon, then the loop."""
        self._signalled = False
        if self._stopping:
            return
        log.info("stopping")
        self._stopping = True
        self._resume_at = None
        if self._coming is not None:
            self._coming.kill()
            self._coming.enter(ENDING)
        if self._serving is not None:
            self._serving.tell("end")
            self._serving.enter(ENDING)

    # What daemons say and do.

    def _listen(self, daemon: Daemon) -> None:
        try:
            # Not without end: one that never stops talking must not keep the keeper from all else.
            for _ in range(MAX_HEARD):
                self._heard(daemon, link.hear(daemon.link))
        except BlockingIOError:
            return
        except (EOFError, OSError):
            # Its end is told by its pidfd.
            with suppress(KeyError):
                self._selector.unregister(daemon.link)

    def _heard(self, daemon: Daemon, said: dict[str, Any]) -> None:
        daemon.answered()
        match said.get("say"):
            case "standby" if daemon.stage == STARTING:
                daemon.enter(STANDBY)
                if self._serving is not None:
                    log.info("the next daemon is ready; daemon %d is to end", self._serving.pid)
                    self._serving.tell("end")
                    self._serving.enter(ENDING)
                self._promote()
            case "serving":
                daemon.enter(SERVING)
                relax(daemon.pid)
                self._has_served = True
                systemd.notify("READY=1", f"STATUS=daemon {daemon.pid} serves {self._paths.root}")
                log.info("daemon %d serves", daemon.pid)
                self._report({"pid": daemon.pid})
            case "settled":
                mounts = said.get("mounts")
                for name in mounts if isinstance(mounts, list) else ():
                    # By a daemon that may be anybody's by now: a name, and no way out of the directory.
                    if isinstance(name, str) and _MOUNT.fullmatch(name):
                        restore_read_ahead(self._paths.images / name)
            case "failed":
                daemon.error = said.get("error") if isinstance(said.get("error"), dict) else None

    def _promote(self) -> None:
        """Let the daemon that stands by serve, when nothing is in its way."""
        coming = self._coming
        if self._possessions is None or self._serving or not coming or coming.stage != STANDBY:
            return
        self._coming, self._serving = None, coming
        _write_pid(self._possessions.lock, coming.pid)
        self._stop_refusing()
        coming.tell("serve", self._possessions.descriptors())

    def _gone(self, daemon: Daemon) -> None:
        """A daemon has ended, and all its threads."""
        self._listen(daemon)  # its last words
        with suppress(KeyError):
            self._selector.unregister(daemon.link)
        self._selector.unregister(daemon.process)
        self._note(daemon, daemon.reap())
        if daemon in self._dying:
            self._dying.remove(daemon)
        else:
            self._replace(daemon)

    def _note(self, daemon: Daemon, how: str) -> None:
        self._last_end = f"daemon {daemon.pid} {how}"
        self._last_error = daemon.error
        if daemon.stage == ENDING:
            log.info("%s", self._last_end)
        else:
            reason = f": {daemon.error.get('message')}" if daemon.error else ""
            log.error("%s%s", self._last_end, reason)

    def _replace(self, daemon: Daemon) -> None:
        was_coming = daemon is self._coming
        self._failures = 0 if was_good(daemon) else self._failures + 1
        if was_coming:
            self._coming = None
        elif daemon is self._serving:
            self._serving = None
        if was_coming or daemon.stage == STANDBY:
            self._report(daemon.error or self._unexplained())
        if self._stopping or self._serving or self._coming:
            self._promote()
            return
        innocent = daemon.killed or daemon.stage in (SERVING, ENDING)
        pause = pause_after(self._failures, innocent=innocent)
        self._resume_at = time.monotonic() + pause
        if pause > LONGEST_PAUSE_INNOCENT:
            self._refuse()

    def _unexplained(self) -> dict[str, Any]:
        return NodeError("the daemon ended while it started", hint=f"see {self._paths.log}").as_dict()

    def _try_again(self) -> None:
        try:
            self._restarts += 1
            self.start()
        except OSError as error:  # no process can be had just now
            log.error("cannot start a daemon: %s", error)
            self._resume_at = time.monotonic() + LONGEST_PAUSE_INNOCENT

    def _tick(self) -> None:
        for daemon in self._daemons():
            reason = daemon.ping()
            if daemon.stage == ENDING and not reason and time.monotonic() - daemon.since > END_PINGS:
                reason = f"did not end within {END_PINGS} s"
            if reason:
                log.error("daemon %d %s; killing it", daemon.pid, reason)
                daemon.kill()
            if daemon.unanswered > 1 and daemon.dies():
                self._dying.append(daemon)
                self._replace(daemon)

    def _daemons(self) -> list[Daemon]:
        return [daemon for daemon in (self._serving, self._coming) if daemon is not None]

    def _report(self, values: dict[str, Any]) -> None:
        waiting, self._waiting = self._waiting, []
        for report in waiting:
            report(values)

    # While no daemon can be had, the keeper says so to who would talk to it.

    def _refuse(self) -> None:
        if self._possessions is not None:
            with suppress(KeyError):
                listener = self._possessions.listener
                self._selector.register(listener, selectors.EVENT_READ, self._refuse_one)

    def _stop_refusing(self) -> None:
        if self._possessions is not None:
            with suppress(KeyError):
                self._selector.unregister(self._possessions.listener)

    def _refuse_one(self) -> None:
        reason = self._last_error or {"message": self._last_end}
        seconds = max(0.0, (self._resume_at or 0.0) - time.monotonic())
        error = NodeError(
            f"the daemon of {self._paths.root} does not start: {reason.get('message')}",
            hint=f"it is tried again in {seconds:.0f} s; see {self._paths.log}",
        )
        refuse(self.possessions().listener, error)

    # Who asks the keeper itself.

    def _answer_control(self) -> None:
        try:
            asking, _ = self._control.accept()
        except OSError:
            return
        # Nobody is waited for: who is slow to ask must not keep the next daemon from starting.
        asking.setblocking(False)
        self._selector.register(asking, selectors.EVENT_READ, lambda: self._hear_control(asking))

    def _hear_control(self, asking: socket.socket) -> None:
        self._selector.unregister(asking)
        try:
            asked = link.hear(asking)
        except (EOFError, OSError):
            asking.close()
            return
        self._obey(asking, asked)

    def _obey(self, asking: socket.socket, asked: dict[str, Any]) -> None:
        match asked.get("call"):
            case "status":
                _reply(asking, self.status())
            case "stop":
                _reply(asking, {"pid": os.getpid()})
                self.stop()
            case "upgrade":
                self._upgrade(asking, asked)
            case _:
                _reply(asking, NodeError("the keeper knows no such call").as_dict())

    def _upgrade(self, asking: socket.socket, asked: dict[str, Any]) -> None:
        if not self._settled():
            _reply(asking, self._busy())
        elif not os.access(str(asked.get("python")), os.X_OK):
            _reply(asking, UsageError(f"{asked.get('python')} is not a program").as_dict())
        else:
            self.exec_request = {**asked, "client": asking}

    def _settled(self) -> bool:
        serving = self._serving is not None and self._serving.stage == SERVING
        return serving and not (self._coming or self._dying or self._stopping)

    def _busy(self) -> dict[str, Any]:
        return BusyError(f"the daemon of {self._paths.root} just starts or ends", hint="try again").as_dict()

    def status(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "pid": os.getpid(),
            "version": __version__,
            "user": self._user,
            "daemons": [
                {"pid": each.pid, "stage": each.stage, "seconds": round(now - each.since, 1)}
                for each in self._daemons()
            ],
            "restarts": self._restarts,
            "failures": self._failures,
            "last_end": self._last_end,
            "last_error": self._last_error,
            "next_start_seconds": None if self._resume_at is None else round(self._resume_at - now, 1),
        }

    def handed_on(self) -> dict[str, Any]:
        """For the keeper that this process becomes by execve(2): the daemon, and the numbers of descriptors."""
        if self._serving is None:
            raise NodeError("no daemon serves")
        return {
            "possessions": self.possessions().descriptors(),
            "control": self._control.fileno(),
            "own_lock": self._own_lock,
            "daemon": {
                "pid": self._serving.pid,
                "link": self._serving.link.fileno(),
                "ours": self._serving.ours,
            },
        }


def _guarded(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:  # a defect of the keeper must not cost every container of the node
        log.exception("the keeper goes on")


def _write_pid(lock: int, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{pid}\n".encode(), 0)


def _reply(asking: socket.socket, values: dict[str, Any]) -> None:
    with asking, suppress(OSError):
        link.send(asking, values)


def _drain(wake: socket.socket) -> None:
    with suppress(BlockingIOError):
        wake.recv(4096)
