"""A link of a given round trip and rate: a TCP proxy, in a process of its own, before a server on this machine.

    python -m benchmarks.link 1gbit,2ms            proves itself: a download through it, and a round trip
    python -m benchmarks.link 1gbit,2ms HOST:PORT  stands before that server until it is interrupted

    with Link(parse_link("100mbit,20ms"), "127.0.0.1:5000") as link:
        ...  link.address instead of 127.0.0.1:5000 ...
        print(link.counts().requests, link.counts().down)

Each direction is one queue that all connections share: what was read from one end leaves at the rate, and arrives
half a round trip later. A connection is made in one round trip more. There is no loss and no slow start: a link that
has been in use for a while.
"""

import argparse
import ctypes
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Self

from benchmarks.process import UNTIL_WE_END, cpu_of
from benchmarks.report import Row

_UNITS = {"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
_SPEC = re.compile(r"([0-9.]+)(kbit|mbit|gbit),([0-9.]+)ms")
_BACKLOG = 0.002
"""Seconds of data that wait for the link; what more there is stays with its sender, so connections share fairly."""
_CREDIT = 0.01
"""Seconds that a busy link makes up for when this process did not run in time."""
_PIECE_SECONDS = 0.0005
_MIN_PIECE, _MAX_PIECE = 4096, 65536
_MAX_BLOCKED = 4 << 20
_LONG = 3600.0
_REQUEST = b" HTTP/1.1\r\n"
_OWN_DELAY = 0.00012
"""Seconds that a message takes through this process besides."""
_NICE = -10
_PR_SET_TIMERSLACK = 29
_CAN_SEND = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_UP, _DOWN = 0, 1


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """Bytes a second, and seconds there and back."""

    rate: float
    round_trip: float
    name: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the link stands: HTTP requests seen, bytes to the server, bytes from it, connections made."""

    requests: int
    up: int
    down: int
    connections: int

    def since(self, earlier: "Counts") -> "Counts":
        return Counts(
            self.requests - earlier.requests,
            self.up - earlier.up,
            self.down - earlier.down,
            self.connections - earlier.connections,
        )


def parse_link(text: str) -> LinkSpec:
    """`1gbit,2ms`, `100mbit,20ms`, `50mbit,100ms`."""
    found = _SPEC.fullmatch(text)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is not a link: write RATE,ROUND-TRIP, for example 100mbit,20ms")
    return LinkSpec(float(found[1]) * _UNITS[found[2]], float(found[3]) / 1e3, text)


FAST = parse_link("1gbit,2ms")
MIDDLING = parse_link("100mbit,20ms")
FAR = parse_link("50mbit,100ms")


class Link:
    """The proxy as a process; its address stands for the server's."""

    def __init__(self, spec: LinkSpec, target: str) -> None:
        self.spec = spec
        command = [*UNTIL_WE_END, sys.executable, "-m", "benchmarks.link", spec.name, target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process_id = self._process.pid
        self.address = self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def counts(self) -> Counts:
        assert self._process.stdin is not None
        self._process.stdin.write("counts\n")
        self._process.stdin.flush()
        return Counts(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the link {self.spec.name} ended")
        return line


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


class _Proxy:
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
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._main.register(self._listener, select.EPOLLIN)
        for reader in self._readers:
            self._main.register(reader, select.EPOLLIN)

    def counts(self) -> Counts:
        return Counts(self._requests, self._counted[_UP], self._counted[_DOWN], self._connections)

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
            self._requests += data.count(_REQUEST)
        end.ended = not data
        end.paused = end.peer.blocked_bytes > _MAX_BLOCKED
        if end.ended or end.paused:
            self._readers[direction].unregister(end.sock)

    def _deliver(self, now: float) -> None:
        for queue in self._queues:
            while queue and queue[0][0] <= now:
                _, end, data = queue.popleft()
                if end.closed:
                    continue
                if data:
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


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _serve(spec: LinkSpec, target: str) -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # what delays it delays the link
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    proxy = _Proxy(spec, _split(target))
    print(proxy.address, flush=True)

    def answer() -> None:
        for _ in sys.stdin:
            print(json.dumps(asdict(proxy.counts())), flush=True)

    threading.Thread(target=answer, daemon=True).start()
    proxy.serve()


@dataclass(frozen=True, slots=True)
class Proof:
    """A link as it was measured: bytes a second of plain downloads, a round trip, CPU of the proxy over the wall."""

    spec: LinkSpec
    rate: float
    parallel_rate: float
    cpu: float
    round_trip: float
    connect: float


def prove(spec: LinkSpec, seconds: float = 3.0) -> Proof:
    """Download by one and by eight connections, and ask for one byte many times."""
    size = int(spec.rate * seconds)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=_give, args=(listener,), daemon=True).start()
        with Link(spec, f"127.0.0.1:{listener.getsockname()[1]}") as link:
            rate = _download_rate(link.address, size, 1)
            began, used = time.monotonic(), cpu_of(link.process_id)
            parallel = _download_rate(link.address, size, 8)
            cpu = (cpu_of(link.process_id) - used) / (time.monotonic() - began)
            connects, trips = [], []
            for _ in range(5):
                began = time.monotonic()
                with socket.create_connection(_split(link.address)) as sock:
                    _ask(sock, 1)
                    connects.append(time.monotonic() - began)
                    for _ in range(4):
                        began = time.monotonic()
                        _ask(sock, 1)
                        trips.append(time.monotonic() - began)
    return Proof(spec, rate, parallel, cpu, statistics.median(trips), statistics.median(connects))


def rows(proofs: Sequence[Proof]) -> list[Row]:
    made = []
    for proof in proofs:
        rates = (proof.rate, proof.parallel_rate)
        off = max(abs(rate / proof.spec.rate - 1) for rate in rates)
        late = abs(proof.round_trip / proof.spec.round_trip - 1)
        made += [
            Row(f"link {proof.spec.name}: a download is off its rate by", off * 100, "%", 3),
            Row(f"link {proof.spec.name}: its round trip is off by", late * 100, "%", 10),
        ]
    return made


def _download_rate(address: str, size: int, connections: int) -> float:
    """From the first byte to the last: the wait before it is the round trip's matter."""
    socks = [socket.create_connection(_split(address)) for _ in range(connections)]
    firsts = [0.0] * connections
    got = [0] * connections

    def take(number: int) -> None:
        share = size // connections
        got[number], firsts[number] = _ask(socks[number], share)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - min(firsts)
    for sock in socks:
        sock.close()
    return sum(got) / elapsed


def _ask(sock: socket.socket, size: int) -> tuple[int, float]:
    """Bytes that came, and when the first did."""
    sock.sendall(b"%d\n" % size)
    buffer = bytearray(1 << 18)
    got, first = 0, 0.0
    while got < size:
        count = sock.recv_into(buffer)
        if not count:
            raise RuntimeError("the link broke")
        first = first or time.monotonic()
        got += count
    return got, first


def _give(listener: socket.socket) -> None:
    zeros = bytes(1 << 18)

    def serve(sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file, suppress(OSError):
            for line in file:
                left = int(line)
                while left:
                    left -= sock.send(zeros[: min(left, len(zeros))])

    with suppress(OSError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__)
    parser.add_argument("link", type=parse_link, help="RATE,ROUND-TRIP, for example 100mbit,20ms")
    parser.add_argument("target", nargs="?", help="HOST:PORT of the server; without it the link is measured")
    arguments = parser.parse_args()
    if arguments.target:
        with suppress(KeyboardInterrupt):
            _serve(arguments.link, arguments.target)
        return 0
    proof = prove(arguments.link)
    print(f"one connection     {proof.rate * 8 / 1e6:9.1f} Mbit/s  {proof.rate / proof.spec.rate:6.3f}")
    print(
        f"eight connections  {proof.parallel_rate * 8 / 1e6:9.1f} Mbit/s  {proof.parallel_rate / proof.spec.rate:6.3f}"
    )
    print(f"CPU of the proxy   {proof.cpu * 100:9.1f} %")
    print(
        f"round trip         {proof.round_trip * 1e3:9.2f} ms      {proof.round_trip / proof.spec.round_trip:6.3f}"
    )
    print(f"connect and ask    {proof.connect * 1e3:9.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
