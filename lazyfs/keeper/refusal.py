"""What a client of the control API hears while no daemon can be had: at once, and why."""

import json
import socket
from contextlib import suppress

from lazyfs.errors import LazyfsError

_PATIENCE = 0.2
_MAX_REQUEST = 64 << 10


def refuse(listener: socket.socket, error: LazyfsError) -> None:
    """Answer one connection of `listener` with the error, in HTTP."""
    with suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_PATIENCE)
            content = json.dumps(error.as_dict()).encode()
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(content)}\r\nConnection: close"
            # Unread bytes would make the end of the connection a reset, and the answer be lost.
            with suppress(TimeoutError):
                connection.recv(_MAX_REQUEST)
            connection.sendall(head.encode() + b"\r\n\r\n" + content)
