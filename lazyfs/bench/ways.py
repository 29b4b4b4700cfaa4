"""What is measured side by side: ways to start one image."""

import re
from dataclasses import dataclass

from lazyfs.errors import UsageError

LAZY, PACKED, PLAIN = "lazy", "packed", "plain"
"""Tags of the image in the registry: converted, with a launch pack besides, and as its user gave it."""
_SNAPSHOTTER = re.compile(r"[a-z][a-z0-9-]{0,30}")
_HINT = "overlayfs, overlayfs-lazy, local or NAME=SOCKET,IMAGE"


@dataclass(frozen=True, slots=True)
class Way:
    """`snapshotter` is containerd's name of it, `tag` which image of the registry it pulls.

    `address` is the socket of a snapshotter that is the user's, or the command that starts it, and `image` what it
    pulls. A local start has the image of another way on its disk already, and a cold page cache.
    """

    name: str
    snapshotter: str
    tag: str
    address: str = ""
    image: str = ""
    is_local: bool = False

    @property
    def is_lazyfs(self) -> bool:
        return self.snapshotter == "lazyfs"


LAZYFS = Way("lazyfs", "lazyfs", LAZY)
WITH_PACK = Way("lazyfs-pack", "lazyfs", PACKED)
OVERLAYFS = Way("overlayfs", "overlayfs", PLAIN)
_KNOWN = {
    way.name: way
    for way in (
        OVERLAYFS,
        Way("overlayfs-lazy", "overlayfs", LAZY),
        Way("local", "overlayfs", PLAIN, is_local=True),
    )
}


def parse_against(text: str) -> Way:
    """One `--against`; UsageError says what there is."""
    if text in _KNOWN:
        return _KNOWN[text]
    name, equals, rest = text.partition("=")
    address, comma, image = rest.rpartition(",")
    if not (equals and comma and address and image and _SNAPSHOTTER.fullmatch(name)):
        raise UsageError(f"--against {text[:100]!r} is nothing that can be measured", hint=_HINT)
    if name == LAZYFS.snapshotter or name in _KNOWN:
        raise UsageError(f"--against {name}=… is a name of our own", hint="choose another one")
    return Way(name, name, name, address, image)
