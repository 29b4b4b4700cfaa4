"""One run from start to end: claim a name, write the bundle, start, wait, leave nothing behind.

    <state_dir>/<name>/          locked (flock) by the lazyfs process that runs it, and by its guard
        config.json, hosts, ...  the bundle
        runtime/                 the runtime's own state (its --root)
        runtime.log              what the runtime says of itself
        run.json                 how to clean up: the runtime and the cgroup

A directory that nobody locks belongs to a run whose processes were killed: `cleanup_stale` ends its
container and removes it. Whoever claims a name or cleans up holds the lock of <state_dir> meanwhile.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import BusyError, NodeError, UsageError
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.run.bundle import ImageConfig, Place, write_bundle
from lazyfs.run.cgroups import remove_cgroup, survey
from lazyfs.run.options import RunOptions
from lazyfs.run.process import (
    Guard,
    Signals,
    Terminal,
    View,
    guarded,
    no_signals,
    spawn,
    supervise,
    taken_signals,
    wait,
)
from lazyfs.run.runtime import Runtime, failure, find_runtime, log_of, state_of

_IMAGE_MOUNTS = ("erofs", "overlay", "fuse")


def run_container(options: RunOptions, image_config: ImageConfig, rootfs: Path, state_dir: Path) -> int:
    """Run a container on the mounted tree ``rootfs`` and return its exit code, 128 + n if signal n ended it.

    ``state_dir`` holds one directory per running container. The standard streams are the caller's;
    standard input only with ``interactive`` or ``tty``. Call it from the main thread, without others.

    Raises `CommandNotFoundError` and `CommandNotExecutableError` for the program, `BusyError` for a
    name that is taken, `NotFoundError` for a user the image does not have, `UsageError` and
    `BadInputError` for what cannot be meant, and `NodeError` with the runtime's own words.
    """
    if options.tty and not os.isatty(0):
        raise UsageError("a terminal was asked for, and standard input is none", hint="leave out -t")
    cgroups = survey()
    runtime = find_runtime(options.runtime, cgroups)
    token = os.urandom(6).hex()
    state_dir = state_dir.absolute()
    terminal = Terminal() if options.tty else None
    try:
        with (
            taken_signals() as signals,
            _claimed(state_dir, options.name or token, signals, terminal) as (claim, guard),
        ):
            place = Place(rootfs.resolve(), claim.directory, token, cgroups)
            write_bundle(options, image_config, place)
            claim.record(runtime, place.cgroup_path if cgroups.usable else "")
            return _run(options, runtime, place, signals, terminal, guard)
    except OSError as error:
        raise NodeError(f"cannot run a container: {error}") from error
    finally:
        if terminal is not None:
            terminal.close()


def stale_containers(state_dir: Path) -> list[str]:
    """The names of containers whose lazyfs process was killed, in alphabetical order."""
    stale: list[str] = []
    if not state_dir.is_dir():
        return stale
    with _locked(state_dir):
        for name in _names(state_dir):
            lock = _try_lock(state_dir / name)
            if lock is not None:
                os.close(lock)
                stale.append(name)
    return stale


def cleanup_stale(state_dir: Path) -> list[str]:
    """End and remove the containers whose lazyfs process was killed; their names.

    Does not touch what anyone owns, so it can be called at any time, from any thread. Raises
    `NodeError` for the first that could not be removed, after it has been through all of them.
    """
    state_dir = state_dir.absolute()
    if not state_dir.is_dir():
        return []
    removed, failed = [], []
    with _locked(state_dir):
        for name in _names(state_dir):
            lock = _try_lock(state_dir / name)
            if lock is None:
                continue
            try:
                _Claim(state_dir / name, lock).end(no_signals())
                removed.append(name)
            except NodeError as error:
                failed.append(error)
            except OSError as error:
                failed.append(NodeError(f"cannot remove container {name}: {error}"))
            finally:
                os.close(lock)
    if failed:
        raise failed[0]
    return removed


@dataclass(frozen=True, slots=True)
class _Claim:
    """A container's directory, and the descriptor of it that holds the lock."""

    directory: Path
    lock: int

    def record(self, runtime: Runtime, cgroup: str) -> None:
        values = {
            "program": runtime.program,
            "options": runtime.options,
            "hide": str(runtime.hide or ""),
            "cgroup": cgroup,
        }
        self._record.write_text(json.dumps(values))

    def end(self, signals: Signals) -> None:
        """Kill and remove the container if it is still there, then its cgroup, then the directory."""
        try:
            values = json.loads(self._record.read_bytes())
        except (FileNotFoundError, ValueError):
            values = {}  # cut short while it was written: then nothing was started
        if values:
            hide = Path(values["hide"]) if values["hide"] else None
            runtime = Runtime(values["program"], tuple(values["options"]), hide)
            if _has_entries(state_of(self.directory)):
                self._delete(runtime, signals)
            if values["cgroup"]:
                remove_cgroup(values["cgroup"])
        _remove(self.directory)

    def _delete(self, runtime: Runtime, signals: Signals) -> None:
        command = runtime.command(self.directory, "delete", "--force", self.directory.name)
        view = View(runtime.hide) if runtime.hide else None
        pid = spawn(command, signals, log=log_of(self.directory), closed=(0, 1, 2), view=view)
        # What it could not do shows in what is left: processes in the cgroup.
        wait(pid)

    @property
    def _record(self) -> Path:
        return self.directory / "run.json"


def _run(
    options: RunOptions,
    runtime: Runtime,
    place: Place,
    signals: Signals,
    terminal: Terminal | None,
    guard: Guard,
) -> int:
    attached = options.interactive or options.tty
    # Only the terminal's foreground group may read from it.
    own_group = not (attached and os.isatty(0))
    directory = place.directory
    pid = spawn(
        runtime.command(directory, "run", "--bundle", str(directory), directory.name),
        signals,
        log=log_of(directory),
        closed=() if attached else (0,),
        own_group=own_group,
        view=_view(runtime, options, place),
        guard=guard,
    )
    code = supervise(pid, signals, own_group=own_group, terminal=terminal)
    if (failed := failure(runtime, directory, code)) is not None:
        raise failed
    return code


def _view(runtime: Runtime, options: RunOptions, place: Place) -> View | None:
    """The runtime's own view of the mounts, where it needs one.

    The other images and containers of this machine are let go in it: else they could not end
    before this container does.
    """
    if runtime.hide is None:
        return None
    needed = [place.rootfs, place.directory, Path(runtime.program)]
    needed += [volume.source.resolve() for volume in options.volumes]
    others = [
        entry.target
        for entry in list_mounts(Path("/"))
        if entry.kind.split(".")[0] in _IMAGE_MOUNTS
        and not any(path.is_relative_to(entry.target) or entry.target.is_relative_to(path) for path in needed)
    ]
    return View(runtime.hide, tuple(others))


@contextlib.contextmanager
def _claimed(
    state_dir: Path, name: str, signals: Signals, terminal: Terminal | None
) -> Iterator[tuple[_Claim, Guard]]:
    """Own the name; at the end, also by SIGKILL, everything of the container is removed."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim = _claim(state_dir, name, signals)

    def clean_up() -> None:
        if terminal is not None:
            terminal.restore()
        with _locked(state_dir):
            claim.end(signals)

    try:
        with guarded(clean_up) as guard:
            try:
                yield claim, guard
            finally:
                clean_up()
    finally:
        os.close(claim.lock)


def _claim(state_dir: Path, name: str, signals: Signals) -> _Claim:
    directory = state_dir / name
    with _locked(state_dir):
        if directory.is_dir():
            lock = _try_lock(directory)
            if lock is None:
                raise BusyError(f"a container named {name} is running", hint="give this one another --name")
            _Claim(directory, lock).end(signals)
            os.close(lock)
        directory.mkdir(mode=0o700)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _Claim(directory, lock)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(directory: Path) -> int | None:
    """The descriptor that locks it, or None if another process does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _names(state_dir: Path) -> list[str]:
    return sorted(entry.name for entry in state_dir.iterdir() if entry.is_dir())


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _remove(directory: Path) -> None:
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            Path(folder, name).unlink()
        Path(folder).rmdir()
