"""Waiting for what other processes and threads bring about."""

import time
from collections.abc import Callable

PATIENCE = 40.0
_PAUSE = 0.003


def wait_until(
    condition: Callable[[], object], what: str = "it to come true", patience: float = PATIENCE
) -> None:
    """Return as soon as ``condition`` holds; fails with ``what`` after ``patience`` seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited too long for: {what}"
        time.sleep(_PAUSE)
