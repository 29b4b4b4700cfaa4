"""The bundle: config.json of the OCI runtime specification (1.0.2), and the files of /etc it binds.

Everything the user did not ask for is as docker has it: capabilities, masked and read-only paths,
mounts, the device filter. Left out is docker's seccomp profile: it is a list of several hundred
system calls that changes with every kernel, and belongs to the engines that keep it up to date;
the capabilities and namespaces confine the container without it.
"""

import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lazyfs.errors import BadInputError, NodeError, UsageError
from lazyfs.run.cgroups import Cgroups
from lazyfs.run.command import check_command, command_line
from lazyfs.run.kernel import make_directories, open_in_root
from lazyfs.run.options import RunOptions, absolute_path
from lazyfs.run.users import resolve_user

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_OPEN_FILES = 1 << 20

_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
)  # fmt: skip
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_CLOSED = ("nosuid", "noexec", "nodev")
_MOUNTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", _CLOSED),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", (*_CLOSED, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", _CLOSED),
    ("/sys", "sysfs", (*_CLOSED, "ro")),
)


class ImageConfig(Protocol):
    """What a run reads of an image's config; `lazyfs.formats.oci.ImageConfig` is one."""

    @property
    def entrypoint(self) -> tuple[str, ...]: ...
    @property
    def cmd(self) -> tuple[str, ...]: ...
    @property
    def env(self) -> tuple[str, ...]: ...
    @property
    def working_dir(self) -> str: ...
    @property
    def user(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run takes place: ``directory`` becomes the bundle, ``token`` is unique on this machine."""

    rootfs: Path
    directory: Path
    token: str
    cgroups: Cgroups

    @property
    def cgroup_path(self) -> str:
        """Below the top, as docker's are: a limit of the caller's own cgroup does not hold there.

        Cgroups belong to no namespace: the name says of which process namespace the container is.
        """
        return f"/lazyfs-{Path('/proc/self/ns/pid').stat().st_ino}-{self.token}"


def write_bundle(options: RunOptions, image: ImageConfig, place: Place) -> None:
    """Write config.json and what it refers to into ``place.directory``.

    Looks at the image's users and its command, and makes the working directory where it is missing.
    """
    root = os.open(place.rootfs, os.O_PATH | os.O_DIRECTORY)
    try:
        hostname = options.hostname or (os.uname().nodename if options.network == "host" else place.token)
        config = {
            "ociVersion": "1.0.2",
            "process": _process(options, image, root, hostname, with_mknod=place.cgroups.usable),
            "root": {"path": str(place.rootfs), "readonly": options.read_only},
            "hostname": hostname,
            "mounts": _mounts(options, root, place, hostname),
            "linux": _linux(options, place),
        }
    finally:
        os.close(root)
    try:
        raw = json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise UsageError(
            f"not UTF-8: {near!r}", hint="the OCI runtime specification knows only UTF-8"
        ) from error
    (place.directory / "config.json").write_bytes(raw)


def _process(
    options: RunOptions, image: ImageConfig, root: int, hostname: str, *, with_mknod: bool
) -> dict[str, Any]:
    identity = resolve_user(root, options.user or image.user)
    args = command_line(image.entrypoint, image.cmd, override=options.entrypoint, args=options.args)
    env = _environment(options, image, hostname, identity.home)
    directory = absolute_path("/" + (options.workdir or image.working_dir)) or "/"
    for word in (*args, directory, *(f"{name}={value}" for name, value in env.items())):
        if "\0" in word:
            raise BadInputError(f"{word!r} contains a NUL, which no program can be given")
    if not _on_volume(options, directory):
        _make_workdir(root, directory)
    if not options.volumes:
        # A volume may bring the program: then it is for the runtime to find out.
        check_command(root, args[0], env.get("PATH", ""), directory)
    # Other users than root get none at once, only by programs that have them as file capabilities.
    capability_sets = ("bounding", "effective", "permitted") if identity.uid == 0 else ("bounding",)
    capabilities = [name for name in _CAPABILITIES if with_mknod or name != "CAP_MKNOD"]
    process: dict[str, Any] = {
        "terminal": options.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "umask": 0o022,
            "additionalGids": list(identity.groups),
        },
        "args": args,
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": directory,
        "capabilities": dict.fromkeys(capability_sets, capabilities),
        "rlimits": [_open_files()],
        "noNewPrivileges": False,
    }
    if options.tty:
        size = os.get_terminal_size(0)
        process["consoleSize"] = {"height": size.lines, "width": size.columns}
    return process


def _environment(options: RunOptions, image: ImageConfig, hostname: str, home: str) -> dict[str, str]:
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname} | ({"TERM": "xterm"} if options.tty else {})
    for entry in (*image.env, *options.env):
        name, equals, value = entry.partition("=")
        if equals and name:
            env[name] = value
        else:
            env.pop(name, None)
    env.setdefault("HOME", home)
    return env


def _on_volume(options: RunOptions, path: str) -> bool:
    return any(f"{path}/".startswith(f"{volume.target}/") for volume in options.volumes)


def _make_workdir(root: int, directory: str) -> None:
    if directory == "/":
        return
    try:
        make_directories(root, directory)
    except OSError as error:
        raise NodeError(
            f"cannot make the working directory {directory} in the container: {error.strerror}",
            hint="it has to be in the image already, or creatable; --workdir names another",
        ) from error


def _open_files() -> dict[str, Any]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    return {"type": "RLIMIT_NOFILE", "soft": limit, "hard": limit}


def _mounts(options: RunOptions, root: int, place: Place, hostname: str) -> list[dict[str, Any]]:
    mounts = [
        {"destination": target, "type": kind, "source": kind, "options": list(flags)}
        for target, kind, flags in _MOUNTS
    ]
    if place.cgroups.usable:
        flags = [*_CLOSED, "ro"]
        mounts.append(
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": flags}
        )
    for target, content in _etc_files(options, hostname).items():
        if _bindable(root, target):
            source = place.directory / Path(target).name
            source.write_bytes(content)
            source.chmod(0o644)
            mounts.append(_bind(source, target, read_only=options.read_only))
    asked_for = {volume.target for volume in options.volumes}
    mounts = [mount for mount in mounts if mount["destination"] not in asked_for]
    mounts += [_bind(each.source, each.target, read_only=each.read_only) for each in options.volumes]
    # What is mounted on a directory of another mount has to come after it.
    return sorted(mounts, key=lambda mount: mount["destination"].count("/"))


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    flags = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": str(source), "options": flags}


def _etc_files(options: RunOptions, hostname: str) -> dict[str, bytes]:
    """Copies, so that a container that writes to them does not write to the host's."""
    files = {"/etc/hostname": f"{hostname}\n".encode()}
    if options.network == "host":
        files["/etc/hosts"] = _content(Path("/etc/hosts"))
        files["/etc/resolv.conf"] = _content(Path("/etc/resolv.conf"))
    else:
        own = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t%s\n"
        files["/etc/hosts"] = (own % hostname).encode()
    return files


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _bindable(root: int, path: str) -> bool:
    """There is something to mount on, or the runtime can make it."""
    if not os.fstatvfs(root).f_flag & os.ST_RDONLY:
        return True
    try:
        os.close(open_in_root(root, path, os.O_PATH))
    except OSError:
        return False
    return True


def _linux(options: RunOptions, place: Place) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount", *(["network"] if options.network == "none" else [])]
    linux: dict[str, Any] = {"maskedPaths": list(_MASKED), "readonlyPaths": list(_READ_ONLY)}
    if options.memory is not None and not place.cgroups.memory:
        raise NodeError(
            "memory cannot be limited: this machine has no writable memory cgroup",
            hint="mount cgroups at /sys/fs/cgroup, or run without --memory",
        )
    if place.cgroups.usable:
        kinds.append("cgroup")
        linux["cgroupsPath"] = place.cgroup_path
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
        if options.memory is not None:
            # Docker's default: as much swap again, so the sum is twice the memory.
            swap = {"swap": 2 * options.memory} if place.cgroups.swap else {}
            linux["resources"]["memory"] = {"limit": options.memory, **swap}
    return linux | {"namespaces": [{"type": kind} for kind in kinds]}
