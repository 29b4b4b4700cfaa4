"""The ways to show an image, best first, and which of them this kernel can.

    file    EROFS on bootstrap and devices, all of them files            Linux 6.12
    loop    EROFS on a loop device over one file that joins them         each EROFS (loop: Linux 5.8)
    tree    every file a FUSE file                                       each FUSE

Versions say little of what a distribution's kernel was built with, so each way is tried (`probe`), once for each
boot of the kernel.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from lazyfs.config import NodePaths, boot_id, read_settings
from lazyfs.errors import UnsupportedError, UsageError

log = logging.getLogger(__name__)

AUTO = "auto"
FILE = "file"
LOOP = "loop"
TREE = "tree"
MODES = (AUTO, FILE, LOOP, TREE)

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to show images; ``reason`` says what was found when it was tried."""

    mode: str
    works: bool
    reason: str


def choose_mode(paths: NodePaths, wanted: str = "") -> str:
    """The best mode that works below this root, or the ``wanted`` one; without one what the node's settings say.

    Raises UsageError for a mode that there is none of, UnsupportedError for one that this kernel does not have.
    """
    wanted = wanted or preferred_mode(paths)
    if wanted not in MODES:
        raise UsageError(f"there is no mount mode {wanted[:40]!r}", hint=f"modes: {', '.join(MODES)}")
    rungs = look(paths)
    for rung in rungs:
        if rung.mode == wanted and not rung.works:
            raise UnsupportedError(f"mount mode {wanted}: {rung.reason}", hint="see lazyfs doctor")
        if rung.works and wanted in (AUTO, rung.mode):
            return rung.mode
    raise UnsupportedError(
        "this machine can show no image: " + "; ".join(f"{each.mode}: {each.reason}" for each in rungs),
        hint="see lazyfs doctor",
    )


def preferred_mode(paths: NodePaths) -> str:
    """`mode` in section [mount] of the node's `config.toml`, else "auto"."""
    values = read_settings(paths, "mount")
    mode = values.pop("mode", AUTO)
    if values or not isinstance(mode, str):
        raise UsageError(f"{paths.settings}: [mount] has `mode` alone", hint=f"modes: {', '.join(MODES)}")
    return mode


def look(paths: NodePaths) -> list[Rung]:
    """What each rung is good for, as it was found since this boot. NodeError where only root can look."""
    boot = boot_id().decode()
    known = _remembered(paths.ladder, boot)
    if known is not None:
        return known
    from lazyfs.mount.probe import probe  # it needs what a command that knows the answer need not load

    rungs = probe(paths.root)
    record = {"version": _VERSION, "boot": boot, "rungs": [asdict(rung) for rung in rungs]}
    try:
        temporary = paths.ladder.with_name(f".new-{paths.ladder.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record))
        temporary.replace(paths.ladder)
    except OSError as error:
        log.warning("%s: %s", paths.ladder, error.strerror)
    return rungs


def _remembered(path: Path, boot: str) -> list[Rung] | None:
    try:
        record = json.loads(path.read_bytes())
        if (record["version"], record["boot"]) != (_VERSION, boot):
            return None
        return [Rung(**rung) for rung in record["rungs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
