"""Where a node keeps what it keeps, and the limits that protect it.

Everything of one node lies below one directory, so that several nodes can stand side by side on
one machine and removing the directory removes the node.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import UsageError

DEFAULT_ROOT = Path("/var/lib/lazyfs")
ROOT_VARIABLE = "LAZYFS_ROOT"

MIB = 1 << 20
MAX_ROOT = 480
"""Bytes. SQLite takes paths of 512; options of a mount are one page, and an overlay's name three below the root."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """36 characters that name this run of the kernel."""
    return _BOOT_ID.read_bytes().strip()


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The files and directories of one node. Mount points are kept short: overlayfs options are not long."""

    root: Path

    @classmethod
    def choose(cls, root: Path | None) -> "NodePaths":
        """`root` as given, else $LAZYFS_ROOT, else /var/lib/lazyfs; always absolute and without symlinks,
        as the kernel shows it in its table of mounts. UsageError when it is too long for overlayfs."""
        chosen = root or Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
        real = Path(os.path.realpath(chosen))
        if len(os.fsencode(real)) > MAX_ROOT:
            raise UsageError(
                f"the root {str(real)[:60]}… has more than {MAX_ROOT} characters",
                hint="choose a shorter --root",
            )
        return cls(real)

    @property
    def socket(self) -> Path:
        """The daemon's control API."""
        return self.root / "daemon.sock"

    @property
    def lock(self) -> Path:
        """Held by keeper and daemon together, so by whoever of them lives; names the daemon's process id."""
        return self.root / "daemon.lock"

    @property
    def keeper_socket(self) -> Path:
        return self.root / "keeper.sock"

    @property
    def keeper_lock(self) -> Path:
        """Held by the keeper alone."""
        return self.root / "keeper.lock"

    @property
    def start_lock(self) -> Path:
        """Held by who starts a daemon, and by the daemon until it is ready."""
        return self.root / "start.lock"

    @property
    def use_lock(self) -> Path:
        """Shared by commands between opening an image and mounting it; held while a daemon ends, or lets go."""
        return self.root / "use.lock"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def fuse(self) -> Path:
        """Mount point of the device files, one per layer."""
        return self.root / "fuse"

    @property
    def ladder(self) -> Path:
        """Which ways to mount images were found to work since this boot; see `mount.ladder`."""
        return self.root / "ladder.json"

    @property
    def images(self) -> Path:
        """One EROFS mount point per mounted image."""
        return self.root / "m"

    @property
    def settings(self) -> Path:
        """What the node's owner has chosen (TOML); see `read_settings`."""
        return self.root / "config.toml"

    @property
    def credentials(self) -> Path:
        """Passwords that an engine used for a pull, for the daemon's account alone; see `stores.registry.learned`."""
        return self.root / "credentials" / "auth.json"

    @property
    def seen(self) -> Path:
        """One record per image that was opened, so that the cache knows what its layers are of."""
        return self.root / "seen"

    @property
    def cache(self) -> Path:
        """One directory per layer: the device as a sparse file, and the map of what is there."""
        return self.root / "cache"

    @property
    def tocs(self) -> Path:
        """TOCs as they came, named by their sha256."""
        return self.root / "toc"

    @property
    def proofs(self) -> Path:
        """Which TOCs are of the stream that they say they are of, and which are not; see `daemon.verdicts`."""
        return self.root / "proofs"

    @property
    def documents(self) -> Path:
        """Manifests and configs as they came, named by their sha256."""
        return self.root / "documents"

    @property
    def signatures(self) -> Path:
        """Signatures of images that were found good; see `daemon.signatures`."""
        return self.root / "signatures"

    @property
    def packs(self) -> Path:
        """The indexes of launch packs, named by the packs' sha256."""
        return self.root / "pack"

    @property
    def state(self) -> Path:
        """What a daemon's successor must know: which number is which device, which images are open."""
        return self.root / "state"

    @property
    def bootstraps(self) -> Path:
        return self.root / "bootstrap"

    @property
    def containers(self) -> Path:
        return self.root / "containers"

    @property
    def mounts(self) -> Path:
        """One record per `lazyfs mount`, so that `lazyfs umount` knows what belongs to it."""
        return self.root / "mounts"


SECTIONS = ("cache", "fetch", "mount", "policy", "stores", "snapshots")
MAX_SETTINGS = 1 << 20


def read_settings(paths: NodePaths, section: str) -> dict[str, Any]:
    """One section of the node's `config.toml`, {} where there is none. UsageError when the file cannot be meant."""
    import tomllib

    try:
        data = paths.settings.read_bytes()
        if len(data) > MAX_SETTINGS:
            raise UsageError(f"{paths.settings} has {len(data)} bytes", hint=f"the limit is {MAX_SETTINGS}")
        tree = tomllib.loads(data.decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(
            f"{paths.settings}: {error.strerror}", hint="make it readable, or remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{paths.settings} is not TOML: {error}", hint="see docs/operations.md") from error
    for name, values in tree.items():
        if name not in SECTIONS or not isinstance(values, dict):
            raise UsageError(
                f"{paths.settings}: {name!r} is no section", hint=f"there are: {', '.join(SECTIONS)}"
            )
    found: dict[str, Any] = tree.get(section, {})
    return found
