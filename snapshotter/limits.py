"""How much a container may write.

Label `containerd.io/snapshot/lazyfs.limit` of its snapshot says it, such as `10G`, else the default of the node
(`settings`); `none` where there shall be no limit.

By project quota where the file system of the snapshots has it. Elsewhere the snapshot's directory is a file system of
that size in a file of its own, which takes on disk what is written to it.
"""

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lazyfs.errors import NodeError, UsageError
from lazyfs.mount.loop import mount_file
from lazyfs.node.cache_settings import Limit
from snapshotter import quota
from snapshotter.labels import TARGET

LIMIT = "containerd.io/snapshot/lazyfs.limit"
NO_LIMIT = "none"
MIN_LIMIT = 4 << 20
_IMAGE = "limited.img"
_KIND = "ext4"
_OPTIONS = b"discard"
_MS_NOATIME = 1024
_SECONDS = 60.0


def wanted_limit(labels: Mapping[str, str], default: int | None) -> int | None:
    """In bytes, None where there is none. A layer that is unpacked has no limit but by its own label."""
    if LIMIT in labels:
        return parse_limit(labels[LIMIT])
    return None if TARGET in labels else default


def parse_limit(text: str) -> int | None:
    if text == NO_LIMIT:
        return None
    size = Limit.parse(text).bytes
    if size is None or size < MIN_LIMIT:
        raise UsageError(
            f"{text!r} cannot be the limit of a container's disk", hint="such as 10G, and not below 4M"
        )
    return size


class Limiter(Protocol):
    """Limits what is written to a snapshot's directory, which holds `fs` and `work`."""

    def limit(self, directory: Path, number: int, size: int) -> None:
        """A directory that is being made for snapshot `number`, which nobody uses yet."""
        ...

    def show(self, directory: Path) -> None:
        """Be sure that a directory, wherever it may have gone since, can be used: after a reboot for example."""
        ...

    def forget(self, directory: Path, number: int) -> None:
        """The snapshot is gone; its directory is about to be."""
        ...


def choose_limiter(base: Path) -> Limiter:
    return ProjectLimiter() if quota.has_project_quota(base) else ImageLimiter()


class ProjectLimiter:
    def limit(self, directory: Path, number: int, size: int) -> None:
        quota.limit_tree(directory, quota.FIRST_PROJECT + number, size)

    def show(self, directory: Path) -> None:
        pass

    def forget(self, directory: Path, number: int) -> None:
        with suppress(OSError):
            quota.forget_limit(directory, quota.FIRST_PROJECT + number)


class ImageLimiter:
    """The file lies in the directory that it is mounted on: where it can be seen, it is not mounted."""

    def limit(self, directory: Path, number: int, size: int) -> None:
        image, content = directory / _IMAGE, directory / "content"
        try:
            content.mkdir()
            for path in list(directory.iterdir()):
                if path != content:
                    path.rename(content / path.name)
            with image.open("xb") as file:
                file.truncate(size)
            _make_file_system(image, content)
            # Nobody shall write to what is not the file system by mistake.
            shutil.rmtree(content)
        except OSError as error:
            raise NodeError(f"{image}: {error.strerror}", hint="free some space") from error

    def show(self, directory: Path) -> None:
        image = directory / _IMAGE
        if image.exists():
            mount_file(image, directory, _KIND, _MS_NOATIME, _OPTIONS)

    def forget(self, directory: Path, number: int) -> None:
        pass


def _make_file_system(image: Path, content: Path) -> None:
    command = ["mke2fs", "-q", "-F", "-t", _KIND, "-m", "0", "-d", str(content)]
    command += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", str(image)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise NodeError("mke2fs is not installed", hint="apt-get install e2fsprogs") from error
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"{image}: mke2fs took more than {_SECONDS:.0f} s") from error
    if done.returncode:
        raise NodeError(f"{image}: mke2fs: {done.stderr.strip()[-200:]}", hint="free some space")
