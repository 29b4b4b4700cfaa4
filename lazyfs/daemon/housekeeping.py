"""What is to be done a while after something was done: data made durable, limits kept. It sleeps while nothing is."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

SECONDS = 5.0
LONGEST_SLEEP = 3600.0
"""What only time brings (images that nobody has opened for days) is looked after so often."""


class Housekeeper:
    """A thread of its own. Thread safe."""

    def __init__(
        self,
        begin: Callable[[], None],
        work: Callable[[bool], bool],
        *,
        seconds: float = SECONDS,
        longest_sleep: float = LONGEST_SLEEP,
    ) -> None:
        """`begin` is called when it wakes, then `work` every so many seconds as long as something is done. The argument
        says that nothing was done since the last time; `work` says whether it wants to be called again all the same."""
        self._begin = begin
        self._work = work
        self._seconds = seconds
        self._longest_sleep = longest_sleep
        self._stirred = threading.Event()
        self._stirred.set()  # what was before may have left something to do
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def stir(self) -> None:
        """Something is done. For each read, so it must cost nothing."""
        if not self._stirred.is_set():
            self._stirred.set()

    def close(self) -> None:
        self._closed.set()
        self._stirred.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._stirred.wait(self._longest_sleep)
            if self._closed.is_set():
                return
            self._begin()
            again = True
            while again:
                self._stirred.clear()
                if self._closed.wait(self._seconds):
                    return
                quiet = not self._stirred.is_set()
                try:
                    again = self._work(quiet) or not quiet
                except Exception:  # what is to come must still be done
                    log.exception("housekeeping")
