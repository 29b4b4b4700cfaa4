"""Signals that end a command: what it made until then is undone, to the end.

Without this SIGTERM would end the process on the spot, and a second SIGINT would break off the undoing.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal came; not an Exception, so that nothing takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Raises `Interrupted` in the main thread when the first signal comes; while held, not before `release`."""

    def __init__(self) -> None:
        self._received = 0
        self._held = False

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        if self._received:
            self._raise()

    def handle(self, number: int, _: FrameType | None) -> None:
        self._received = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        self._held = True  # the next one must not disturb what this one sets off
        raise Interrupted(self._received)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Take the signals that end a command, except those that the caller was told to ignore (nohup)."""
    interrupts = Interrupts()
    taken = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, interrupts.handle)) for number in taken]
    try:
        yield interrupts
    finally:
        for number, handler in before:
            signal.signal(number, handler)
