"""The process of a link: `python -m lazyfs.bench.link_proxy 1gbit,2ms HOST:PORT` stands before that server.

Its first line of output is its own address. For each line of input it writes one of JSON: `counts`, or `trips`.
"""

import ctypes
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from lazyfs.bench.link import Counts, LinkSpec, parse_link, split_address

_BACKLOG = 0.002
"""Seconds of data that wait for the link; what more there is stays with its sender, so connections share fairly."""
_CREDIT = 0.01
"""Seconds that a busy link makes up for when this process did not run in time."""
_PIECE_SECONDS = 0.0005
_MIN_PIECE, _MAX_PIECE = 4096, 65536
_MAX_BLOCKED = 4 << 20
_MAX_TRIPS = 200_000
_LONG = 3600.0
_REQUEST = re.compile(rb"([A-Z]{3,7}) (\S{1,4096}) HTTP/1\.1\r\n")
_OWN_DELAY = 0.00012
"""Seconds that a message takes through this process besides."""
_NICE = -10
_PR_SET_TIMERSLACK = 29
_CAN_SEND = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_UP, _DOWN = 0, 1


@dataclass(slots=True)
class _Trip:
    """See `link.Trip`."""

    method: str
    path: str
    began: float
    ended: float
    size: int = 0


@dataclass(slots=True, eq=False)
class _End:
    """One socket of a connection; what was read from it goes to `peer`."""

    sock: socket.socket
    direction: int
    ready_at: float
    peer: "_End" = field(init=False)
    blocked: deque[memoryview] = field(default_factory=deque)
    blocked_bytes: int = 0
    ended: bool = False
    """Its own data has ended."""
    finishing: bool = False
    """Nothing more will be sent to it."""
    paused: bool = False
    """It is not read, since its peer does not take what there is."""
    closed: bool = False
    trip: "_Trip | None" = None
    """The request that a client waits for."""


class Proxy:
    """One thread: reads an end when its direction has room, delivers what is due."""

    def __init__(self, spec: LinkSpec, target: tuple[str, int]) -> None:
        self._spec = spec
        self._target = target
        self._delay = max(0.0, spec.round_trip / 2 - _OWN_DELAY)
        self._piece = int(min(max(spec.rate * _PIECE_SECONDS, _MIN_PIECE), _MAX_PIECE))
        self._main = select.epoll()
        self._readers = (select.epoll(), select.epoll())
        self._open = [True, True]
        self._free_at = [0.0, 0.0]
        self._busy = [False, False]
        self._queues: tuple[deque[tuple[float, _End, bytes]], ...] = (deque(), deque())
        self._ends: dict[int, _End] = {}
        self._counted = [0, 0]
        self._requests = self._connections = 0
        self._trips: deque[_Trip] = deque(maxlen=_MAX_TRIPS)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._main.register(self._listener, select.EPOLLIN)
        for reader in self._readers:
            self._main.register(reader, select.EPOLLIN)

    def counts(self) -> Counts:
        return Counts(self._requests, self._counted[_UP], self._counted[_DOWN], self._connections)

    def trips(self) -> list[list[str | float | int]]:
        return [[each.method, each.path, each.began, each.ended, each.size] for each in self._trips.copy()]

    def serve(self) -> None:
        while True:
            # Not epoll's own timeout, which counts in milliseconds.
            select.select([self._main], [], [], self._patience(time.monotonic()))
            for descriptor, events in self._main.poll(0):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._ends and events & _CAN_SEND:
                    self._send(self._ends[descriptor])
            for direction in (_UP, _DOWN):
                self._read_all(direction)
            self._deliver(time.monotonic())

    def _patience(self, now: float) -> float:
        """Seconds until something is due; opens and closes the directions to readers meanwhile."""
        wait = _LONG
        for direction, reader in enumerate(self._readers):
            queue = self._queues[direction]
            if queue:
                wait = min(wait, queue[0][0] - now)
            room_in = self._free_at[direction] - now - _BACKLOG
            if room_in > 0:
                wait = min(wait, room_in)
            if (room_in <= 0) != self._open[direction]:
                self._open[direction] = room_in <= 0
                if self._open[direction]:
                    self._main.register(reader, select.EPOLLIN)
                else:
                    self._main.unregister(reader)
        return max(0.0, wait)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                ready_at = time.monotonic() + self._spec.round_trip
                near, far = _End(client, _UP, ready_at), _End(server, _DOWN, ready_at)
                near.peer, far.peer = far, near
                for end in (near, far):
                    end.sock.setblocking(False)
                    end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._ends[end.sock.fileno()] = end
                    self._readers[end.direction].register(end.sock, select.EPOLLIN)
                self._connections += 1

    def _read_all(self, direction: int) -> None:
        """A piece from each end that has some, until the backlog is full."""
        now = time.monotonic()
        while self._free_at[direction] - now <= _BACKLOG:
            ready = self._readers[direction].poll(0)
            if not ready:
                self._busy[direction] = False
                return
            for descriptor, _ in ready:
                end = self._ends.get(descriptor)
                if end is not None:
                    self._read(end, now)
        self._busy[direction] = True

    def _read(self, end: _End, now: float) -> None:
        direction = end.direction
        try:
            data = end.sock.recv(self._piece)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        earliest = now - _CREDIT if self._busy[direction] else now
        leaves = max(earliest, self._free_at[direction]) + len(data) / self._spec.rate
        self._free_at[direction] = leaves
        arrives = max(leaves, end.ready_at) + self._delay
        self._queues[direction].append((arrives, end.peer, data))
        self._counted[direction] += len(data)
        if direction == _UP:
            self._note_requests(end, data, now)
        end.ended = not data
        end.paused = end.peer.blocked_bytes > _MAX_BLOCKED
        if end.ended or end.paused:
            self._readers[direction].unregister(end.sock)

    def _note_requests(self, end: _End, data: bytes, now: float) -> None:
        for found in _REQUEST.finditer(data):
            self._requests += 1
            end.trip = _Trip(found[1].decode(), found[2].decode(errors="replace"), now, now)
            self._trips.append(end.trip)

    def _deliver(self, now: float) -> None:
        for queue in self._queues:
            while queue and queue[0][0] <= now:
                _, end, data = queue.popleft()
                if end.closed:
                    continue
                if data:
                    if end.trip is not None:
                        end.trip.ended = now
                        end.trip.size += len(data)
                    end.blocked.append(memoryview(data))
                    end.blocked_bytes += len(data)
                else:
                    end.finishing = True
                if len(end.blocked) <= 1:
                    self._send(end)

    def _send(self, end: _End) -> None:
        try:
            while end.blocked:
                sent = end.sock.send(end.blocked[0])
                end.blocked_bytes -= sent
                if sent == len(end.blocked[0]):
                    end.blocked.popleft()
                else:
                    end.blocked[0] = end.blocked[0][sent:]
        except BlockingIOError:
            with suppress(FileExistsError):
                self._main.register(end.sock, select.EPOLLOUT)
            return
        except OSError:
            self._close(end)
            return
        with suppress(FileNotFoundError):
            self._main.unregister(end.sock)
        if end.peer.paused and not end.peer.ended and not end.peer.closed:
            end.peer.paused = False
            self._readers[end.peer.direction].register(end.peer.sock, select.EPOLLIN)
        if end.finishing:
            if end.ended:
                self._close(end)
            else:
                with suppress(OSError):
                    end.sock.shutdown(socket.SHUT_WR)

    def _close(self, end: _End) -> None:
        """Both ends: a server must see that its client has gone away."""
        for each in (end, end.peer):
            if not each.closed:
                each.closed = True
                del self._ends[each.sock.fileno()]
                each.sock.close()


def serve(spec: LinkSpec, target: str) -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # what delays it delays the link
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    proxy = Proxy(spec, split_address(target))
    print(proxy.address, flush=True)

    def answer_all() -> None:
        for word in sys.stdin:
            answer = proxy.trips() if word.strip() == "trips" else asdict(proxy.counts())
            print(json.dumps(answer), flush=True)

    threading.Thread(target=answer_all, daemon=True).start()
    proxy.serve()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve(parse_link(sys.argv[1]), sys.argv[2])
