"""The simulated link: what it says of itself, and what it counts."""

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from lazyfs.bench.inside import off
from lazyfs.bench.link import Link, LinkSpec, Trip, parse_link, split_address
from lazyfs.bench.link_proof import prove
from lazyfs.bench.results import Measured
from lazyfs.errors import UsageError

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)


def test_a_link_that_is_not_what_it_says() -> None:
    link = parse_link("1gbit,2ms")
    for rate, round_trip, expected in (
        (1.0, 1.05, 0.0),
        (1.0, 1.12, 0.07),
        (0.96, 1.0, 0.04),
        (1.0, 0.9, 0.05),
    ):
        assert max(0.0, off(Measured(link.name, rate, round_trip), link)) == pytest.approx(expected)


@contextmanager
def answering() -> Iterator[str]:
    """A server that answers each request, told by its end, with a thousand bytes."""

    def serve(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            data = b""
            while piece := sock.recv(1000):
                data += piece
                while b"\r\n\r\n" in data:
                    data = data.partition(b"\r\n\r\n")[2]
                    sock.sendall(ANSWER)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def ask(sock: socket.socket, path: str) -> None:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    left = len(ANSWER)
    while left:
        left -= len(sock.recv(left))


def test_reads_links() -> None:
    assert parse_link("100mbit,20ms") == LinkSpec(12.5e6, 0.02, "100mbit,20ms")
    assert parse_link("0.5gbit,0ms").rate == 62.5e6
    assert parse_link("loopback").rate == math.inf


@pytest.mark.parametrize(
    "text", ["", "1gbit", "fast,2ms", "0mbit,2ms", "1gbit,2", "1.2.3gbit,2ms", "-1gbit,2ms"]
)
def test_says_what_a_link_is(text: str) -> None:
    with pytest.raises(UsageError, match="is not a link"):
        parse_link(text)


@pytest.mark.parametrize("name", ["loopback", "50mbit,30ms"])
def test_counts_requests_and_bytes(name: str) -> None:
    with answering() as server, Link(parse_link(name), server) as link:
        with socket.create_connection(split_address(link.address)) as sock:
            before = link.counts()
            ask(sock, "/v2/first")
            ask(sock, "/v2/second")
            counts = link.counts().since(before)
        first, second = link.trips()
    assert (counts.requests, counts.down) == (2, 2 * len(ANSWER))
    assert (first.method, first.path, second.path) == ("GET", "/v2/first", "/v2/second")
    assert first.size == second.size == len(ANSWER)
    assert first.began < first.ended <= second.began < second.ended
    assert spans(first, link.spec)


def spans(trip: Trip, spec: LinkSpec) -> bool:
    """Whether it took the round trip at least, but for what the proxy itself takes off."""
    return trip.ended - trip.began >= spec.round_trip * 0.9


def test_a_link_is_no_quicker_than_it_says() -> None:
    """However busy the machine is: who is kept waiting besides only takes longer."""
    spec, requests = parse_link("20mbit,10ms"), 500
    left = requests * len(ANSWER)
    least = left / spec.rate + spec.round_trip
    with (
        answering() as server,
        Link(spec, server) as link,
        socket.create_connection(split_address(link.address)) as sock,
    ):
        began = time.monotonic()
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * requests)
        while left:
            left -= len(sock.recv(left))
        took = time.monotonic() - began
    assert took >= 0.95 * least


def test_a_link_proves_itself() -> None:
    """How near it comes to its rate is the machine's affair, and measured by `make bench`."""
    proof = prove(parse_link("20mbit,10ms"), seconds=0.5)
    assert proof.rate > 0.05 * proof.spec.rate
    assert proof.round_trip >= 0.9 * proof.spec.round_trip
