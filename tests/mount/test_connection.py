"""The first request of kernels that are not this one."""

import socket
import struct

import pytest

from lazyfs.errors import UnsupportedError
from lazyfs.mount import connection

HEADER = struct.Struct("<IIQQIIIHH")
INIT = 26


def answer_to(major: int, minor: int, more: bytes = b"") -> tuple[int, ...]:
    """Length, error, unique, major, minor of what `connection` says to a kernel of this protocol."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        body = struct.pack("<4I", major, minor, 128 << 10, 0x3FFFFFB) + more
        ours.send(HEADER.pack(HEADER.size + len(body), INIT, 7, 0, 0, 0, 0, 0, 0) + body)
        connection._agree(theirs.fileno())
        said = ours.recv(4096)
        assert len(said) == struct.unpack_from("<I", said)[0]
        return struct.unpack_from("<IiQII", said)


@pytest.mark.parametrize(
    ("minor", "more"), [(31, b""), (32, b""), (34, b""), (36, bytes(48)), (44, bytes(48))]
)
def test_short_and_long_first_requests(minor: int, more: bytes) -> None:
    """Up to Linux 5.16 it ends behind the flags."""
    _, error, unique, major, agreed = answer_to(7, minor, more)
    assert (error, unique, major, agreed) == (0, 7, 7, 31)


@pytest.mark.parametrize(("major", "minor"), [(7, 27), (8, 0)])
def test_a_protocol_that_is_not_spoken(major: int, minor: int) -> None:
    with pytest.raises(UnsupportedError, match=f"speaks FUSE {major}.{minor}"):
        answer_to(major, minor)
