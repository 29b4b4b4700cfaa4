"""When a container is ready: a word in its output, an answer on a port, a command that succeeds, some seconds, its end.

    log:TEXT          a line of its output (standard output or error) has TEXT in it
    http:PORT/PATH    GET http://127.0.0.1:PORT/PATH is answered with a status below 400
    exec:COMMAND      `sh -c COMMAND` succeeds on this machine
    seconds:N         N seconds have passed
    exit              it has ended, with code 0

`Started` runs a command that runs a container, passes its output on and watches it.
"""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Self

from lazyfs.errors import NodeError, UsageError

_HTTP = re.compile(r"([0-9]{1,5})(/.*)?")
_HINT = "log:TEXT, http:PORT/PATH, exec:COMMAND, seconds:N or exit"
_PAUSE = 0.02
_EXEC_PAUSE = 0.05
_PROBE_SECONDS = 5.0
_MAX_LINE = 1 << 16
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    """How to tell that a container is ready; `kind` is the word before the colon."""

    kind: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.value else self.kind


def parse_probe(text: str) -> Probe:
    """Read what a user wrote; UsageError says what there is."""
    kind, colon, value = text.partition(":")
    match kind:
        case "exit" if not colon:
            return Probe("exit")
        case "log" | "exec" if value:
            return Probe(kind, value)
        case "seconds" if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value):
            return Probe(kind, value)
        case "http" if (match := _HTTP.fullmatch(value)) and 0 < int(match[1]) < 1 << 16:
            return Probe(kind, f"{match[1]}{match[2] or '/'}")
    raise UsageError(f"{text[:100]!r} says not when a container is ready", hint=_HINT)


def is_ready(probe: Probe) -> bool:
    """Whether something is ready now, by a probe that asks: before a start, something else than was meant."""
    match probe.kind:
        case "http":
            return _answers(probe.value)
        case "exec":
            return _succeeds(probe.value)
        case _:
            return False


class Started:
    """A command that was started just now; `began` is `time.monotonic`. In the end it is ended."""

    def __init__(self, command: Sequence[str], probe: Probe, output: BinaryIO | None = None) -> None:
        """What the command says goes to `output` (default: standard error) as well."""
        self.probe = probe
        self._output = output if output is not None else sys.stderr.buffer
        self._seen = threading.Event()
        self._said_at = 0.0
        self.began = time.monotonic()
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise NodeError(f"{command[0]}: {error.strerror}") from error
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        pipes = (self.process.stdout, self.process.stderr)
        self._readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def wait_ready(self, patience: float) -> float:
        """Seconds from start to ready. NodeError when it ends before, or is not ready after `patience` seconds."""
        deadline = self.began + patience
        match self.probe.kind:
            case "log":
                return self._until(self._has_said, deadline, 0.0)
            case "http":
                return self._until(partial(_answers, self.probe.value), deadline, _PAUSE)
            case "exec":
                return self._until(partial(_succeeds, self.probe.value), deadline, _EXEC_PAUSE)
            case "seconds":
                self._until(
                    lambda: time.monotonic() >= self.began + float(self.probe.value), deadline, _PAUSE
                )
                return time.monotonic() - self.began
            case _:
                return self._ended_well(deadline)

    def end(self) -> int:
        """End the command if it runs, as a terminal would; its exit code.

        A container whose first process does not heed SIGTERM (node, for one) is killed, and the command cleans up.
        """
        if self.process.poll() is None:
            self.process.terminate()
            for force in (self._kill_container, self.process.kill):
                try:
                    self.process.wait(_END_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    force()
        code = self.process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code

    def _kill_container(self) -> None:
        """What the runtime, which is the command's child, has started."""
        for runtime in _children(self.process.pid):
            for pid in _children(runtime):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _until(self, is_ready: Callable[[], bool], deadline: float, pause: float) -> float:
        while not is_ready():
            if self.process.poll() is not None:
                for reader in self._readers:  # its last words may be those that were waited for
                    reader.join()
                if self.probe.kind == "log" and self._seen.is_set():
                    break
                raise NodeError(
                    f"the container ended before it was ready ({self.probe}), with code {self.process.returncode}",
                    hint="see what it said above; --ready exit takes its end as the moment",
                )
            if time.monotonic() > deadline:
                raise NodeError(
                    f"the container did not get ready ({self.probe}) in time",
                    hint="see what it said above; --timeout gives it longer",
                )
            if pause:
                time.sleep(pause)
        return (self._said_at or time.monotonic()) - self.began

    def _has_said(self) -> bool:
        return self._seen.wait(_PAUSE)

    def _ended_well(self, deadline: float) -> float:
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise NodeError(
                "the container did not end in time",
                hint="--timeout gives it longer; --ready says when a server is ready",
            ) from None
        if code:
            raise NodeError(f"the container ended with code {code}")
        return time.monotonic() - self.began

    def _read(self, pipe: IO[bytes]) -> None:
        wanted = self.probe.value.encode() if self.probe.kind == "log" else None
        while line := pipe.readline(_MAX_LINE):
            if wanted is not None and not self._seen.is_set() and wanted in line:
                self._said_at = time.monotonic()
                self._seen.set()
            self._output.write(line)
            self._output.flush()


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _answers(place: str) -> bool:
    port, _, path = place.partition("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status < http.client.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _succeeds(command: str) -> bool:
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
