"""The little that a service says to systemd: sd_notify(3) and its file descriptor store.

What is in the store comes back when the service is started again, after a crash of the keeper or a restart
of the unit: so the mount lives on although every process that served it has ended. Without systemd
($NOTIFY_SOCKET) nothing of this happens.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

_FIRST_DESCRIPTOR = 3


def notify(*lines: str, descriptors: Sequence[int] = ()) -> bool:
    """Tell systemd; False where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker, suppress(OSError):
        speaker.connect(address)
        socket.send_fds(speaker, ["\n".join(lines).encode()], descriptors)
        return True
    return False


def keep(name: str, descriptor: int) -> bool:
    """Put a descriptor into the store."""
    return notify("FDSTORE=1", f"FDNAME={name}", descriptors=[descriptor])


def forget(name: str) -> None:
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def stored() -> dict[str, int]:
    """What the store gives back, by name; this process's from now on, and no child's."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found = {}
    for number, name in zip(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count), names, strict=False):
        os.set_inheritable(number, False)
        found[name] = number
    return found
