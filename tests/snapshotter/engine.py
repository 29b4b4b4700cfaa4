"""Debian's containerd with its own root, state and socket, beside our service; images in a real registry."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lazyfs.formats.oci import ImageConfig
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.layouts import convert, put_image
from tests.registry import skopeo
from tests.trees import DIRECTORY, SYMLINK, Entry, layer_tar
from tests.waiting import wait_until

from .client import Service

TIMEOUT = 120.0
CONFIG = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/c.sock"
[ttrpc]
address = "{directory}/t.sock"
[proxy_plugins.lazyfs]
type = "snapshot"
address = "{snapshotter}"
{more}
"""
NO_CRI = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'

PASSWD = b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"
CONFIG_OF_IMAGE = ImageConfig(
    (), architecture="amd64", os="linux", cmd=("cat", "/etc/message"), env=("PATH=/bin",)
)


def busybox_layer() -> bytes:
    busybox = Path("/bin/busybox")
    applets = subprocess.check_output([busybox, "--list"]).split()
    directories = [
        Entry(name, DIRECTORY, 0o755) for name in (b"bin", b"etc", b"dev", b"proc", b"sys", b"lower", b"tmp")
    ]
    files = [
        Entry(b"bin/busybox", mode=0o755, content=busybox.read_bytes()),
        Entry(b"etc/passwd", content=PASSWD),
        Entry(b"etc/message", content=b"from below\n"),
        Entry(b"lower/file", content=b"of a lower directory\n"),
    ]
    links = [Entry(b"bin/" + name, SYMLINK, target=b"busybox") for name in applets if name != b"busybox"]
    return layer_tar(directories + files + links)


def layers(count: int, message: bytes = b"ready\n") -> list[bytes]:
    """Busybox, and layers of a file each; the topmost says something else than those below."""
    return [
        busybox_layer(),
        *(
            layer_tar([Entry(b"etc/layer%d" % number, content=b"%d" % number)])
            for number in range(1, count - 1)
        ),
        layer_tar([Entry(b"etc/message", content=message)]),
    ]


def push(
    directory: Path,
    host: str,
    name: str,
    streams: Sequence[bytes],
    *options: str,
    config: ImageConfig = CONFIG_OF_IMAGE,
) -> str:
    """The image converted and plain, in the registry as `name`:lazy and `name`:plain; `host`/`name`."""
    source = put_image(directory, streams, f"{name}-source", config)
    lazy = convert(source, f"oci:{directory}:{name}-lazy")
    for reference, tag in ((source, "plain"), (lazy, "lazy")):
        skopeo(
            "copy", "--quiet", "--dest-tls-verify=false", *options, reference, f"docker://{host}/{name}:{tag}"
        )
    return f"{host}/{name}"


class Engine:
    """A running containerd."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "c.sock"
        self.log = directory / "log"
        self.namespace = "default"

    def ctr(self, *words: str | Path, check: bool = True) -> str:
        return self._run("ctr", *self._where(), *words, check=check)

    def pull(self, reference: str, *options: str) -> str:
        """Lazily, as `ctr-remote` does."""
        command = ["images", "rpull", "--plain-http", "--snapshotter", "lazyfs"]
        return self._run("ctr-remote", *self._where(), *command, *options, reference)

    def id(self, name: str) -> str:
        """Of the container `name`: runc keeps all of this machine in one place."""
        return f"lazyfs-test-{os.getpid()}-{self.directory.name}-{name}"

    def run(self, reference: str, name: str, *words: str, options: Sequence[str] = ()) -> str:
        """All that it says, on two streams in no order between them."""
        said = self._said()
        command = ["run", "--rm", "--log-uri", f"file://{said}", "--snapshotter", "lazyfs", *options]
        self.ctr(*command, reference, self.id(name), *words)
        return said.read_text()

    def start(self, reference: str, name: str, *words: str, options: Sequence[str] = ()) -> None:
        """A container that goes on until `end`."""
        self.ctr("run", "--detach", "--snapshotter", "lazyfs", *options, reference, self.id(name), *words)

    def execute(self, name: str, *words: str) -> str:
        said = self._said()
        command = ["tasks", "exec", "--log-uri", f"file://{said}", "--exec-id", said.name]
        self.ctr(*command, self.id(name), *words)
        return said.read_text()

    def _said(self) -> Path:
        """A file for what a container says: ctr itself may open the pipe when the container has ended."""
        return self.directory / f"said{time.monotonic_ns()}"

    def end(self, name: str, keep: bool = False) -> None:
        """Kill a container; `keep` leaves its snapshot."""
        self.ctr("tasks", "kill", "--signal", "SIGKILL", self.id(name))
        wait_until(lambda: "STOPPED" in self.ctr("tasks", "list"), "the end of the container")
        self.ctr("tasks", "delete", self.id(name), check=False)
        if not keep:
            self.ctr("containers", "delete", self.id(name))

    def end_all(self) -> None:
        """Containers of a test that failed."""
        for name in self.ctr("tasks", "list", "--quiet", check=False).split():
            if name.startswith("lazyfs-test-"):
                self.ctr("tasks", "delete", "--force", name, check=False)

    def snapshots(self, check: bool = True) -> list[str]:
        lines = self.ctr("snapshots", "--snapshotter", "lazyfs", "list", check=check).splitlines()[1:]
        return [line.split()[0] for line in lines]

    def blobs(self) -> list[Path]:
        """What containerd downloaded."""
        return list((self.directory / "root/io.containerd.content.v1.content/blobs/sha256").iterdir())

    def remove_all(self) -> None:
        """Every image, and what it held."""
        references = self.ctr("images", "list", "--quiet").split()
        if references:
            self.ctr("images", "remove", "--sync", *references)
        wait_until(lambda: not self.snapshots(), "the end of all snapshots")

    def _where(self) -> list[str | Path]:
        return ["--address", self.socket, "--namespace", self.namespace]

    def _run(self, *command: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self.log.read_text()[-3000:]}"
        return done.stdout if done.returncode == 0 else done.stderr


@contextmanager
def running_engine(directory: Path, service: Service, more: str = NO_CRI) -> Iterator[Engine]:
    directory.mkdir(exist_ok=True)
    engine = Engine(directory)
    config = directory / "config.toml"
    lines = CONFIG.format(directory=directory, snapshotter=service.socket, more="")
    # What is not in a table comes first.
    config.write_text(more + "\n" + lines if more == NO_CRI else lines + more)
    with engine.log.open("ab") as log:
        process = subprocess.Popen(
            ["containerd", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: b"successfully booted" in engine.log.read_bytes(), "containerd")
        yield engine
    finally:
        engine.end_all()
        process.terminate()
        process.wait(TIMEOUT)
        for entry in list_mounts(directory):
            unmount(entry.target, detach=True)


def shown(service: Service) -> list[Path]:
    """Where the service has images mounted."""
    return sorted(entry.target for entry in list_mounts(service.root / "snapshots"))
