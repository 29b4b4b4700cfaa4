"""That a link has the rate and the round trip of its name: downloads by one and by eight connections, and requests."""

import socket
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from lazyfs.bench.link import Link, LinkSpec, split_address
from lazyfs.bench.processes import cpu_of
from lazyfs.errors import NodeError


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
                with socket.create_connection(split_address(link.address)) as sock:
                    _ask(sock, 1)
                    connects.append(time.monotonic() - began)
                    for _ in range(4):
                        began = time.monotonic()
                        _ask(sock, 1)
                        trips.append(time.monotonic() - began)
    return Proof(spec, rate, parallel, cpu, statistics.median(trips), statistics.median(connects))


def _download_rate(address: str, size: int, connections: int) -> float:
    """From the first byte to the last: the wait before it is the round trip's matter."""
    socks = [socket.create_connection(split_address(address)) for _ in range(connections)]
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
            raise NodeError("the link broke")
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
