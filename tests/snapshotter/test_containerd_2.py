"""containerd 2, configured by `lazyfs install`: its Transfer service, and images of a directory by their names."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.bench.link import split_address
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.install.containerd import Target, plan_containerd
from lazyfs.install.files import apply
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores.node_stores import DEFAULT_LISTEN
from tests.engines import containerd_2
from tests.registry import Registry, needs_registry, run_registry, skopeo
from tests.s3server import BUCKET, S3Place, free_address
from tests.stores.conftest import s3, s3_server
from tests.waiting import wait_until

from .client import Service
from .engine import TIMEOUT, Engine, layers, push

pytestmark = needs_registry
__all__ = ["s3", "s3_server"]  # fixtures

BASE = """
version = 3
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/t.sock"
"""


class Engine2(Engine):
    """A running containerd 2."""

    def __init__(self, directory: Path, tools: Path) -> None:
        super().__init__(directory)
        self.tools = tools

    def ctr(self, *words: str | Path, check: bool = True) -> str:
        return self._run(self.tools / "ctr", "--address", self.socket, *words, check=check)

    def transfer(self, reference: str, *options: str) -> str:
        """What `ctr` of containerd 2 does unless told otherwise: the daemon pulls, and not the client."""
        return self.ctr("images", "pull", "--plain-http", "--snapshotter", "lazyfs", *options, reference)


@contextmanager
def running_containerd_2(
    directory: Path, service: Service, listen: tuple[str, int] = DEFAULT_LISTEN, more: str = ""
) -> Iterator[Engine2]:
    tools = containerd_2()
    engine = Engine2(directory, tools)
    target = Target(directory / "machine", service.socket, service.root, listen)
    config = target.prefix / "etc/containerd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(BASE.format(directory=directory) + more)
    for change in plan_containerd(target).changes:
        apply(change)
    with engine.log.open("ab") as log:
        process = subprocess.Popen(
            [tools / "containerd", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
        )
    try:
        wait_until(lambda: b"successfully booted" in engine.log.read_bytes(), "containerd 2")
        yield engine
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        for entry in list_mounts(directory):
            unmount(entry.target, detach=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return push(tmp_path_factory.mktemp("app"), registry.host, "app", layers(4))


@pytest.fixture
def engine(service: Service, short_directory: Callable[[], Path]) -> Iterator[Engine2]:
    service.start()
    with running_containerd_2(short_directory(), service) as engine:
        yield engine


def test_pulled_lazily_by_the_transfer_service(engine: Engine2, app: str) -> None:
    engine.transfer(f"{app}:lazy")
    assert len(engine.snapshots()) == 4
    assert len(engine.blobs()) == 2
    assert engine.run(f"{app}:lazy", "c") == "ready\n"


def test_a_user_namespace_without_a_copy(engine: Engine2, service: Service, app: str) -> None:
    engine.transfer(f"{app}:lazy")
    mapping = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
    script = "id -u; stat -c '%u %g' / /etc/message; cat /proc/self/uid_map"
    script += "; echo x > /etc/message; touch /new"
    for directory in engine.directory.parents:
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o711)  # the container's root is nobody on the way to its file system
    engine.start(f"{app}:lazy", "c", "sleep", "600", options=mapping)
    said = engine.execute("c", "sh", "-c", script).splitlines()
    assert said[:3] == ["0", "0 0", "0 0"]
    assert said[3].split() == ["0", "100000", "65536"]
    [new] = (service.root / "snapshots").glob("*/fs/new")
    for path in (new, new.parent, new.parent / "etc/message"):
        assert (path.stat().st_uid, path.stat().st_gid) == (100000, 200000)
    # Only what was there: no snapshot with other owners was made of the image.
    assert len(engine.snapshots()) == 5
    engine.end("c")


def test_images_of_buckets_and_directories(
    service: Service,
    short_directory: Callable[[], Path],
    app: str,
    tmp_path: Path,
    s3: S3Place,
) -> None:
    """Named like any other; `hosts.toml` leads to the node, and chunks come from the store itself."""
    skopeo("copy", "--src-tls-verify=false", f"docker://{app}:lazy", f"oci:{tmp_path}/layout:v1")
    copy = ["copy", f"oci:{tmp_path}/layout:v1", f"s3://{s3.location}:v1"]
    subprocess.run([sys.executable, "-m", "lazyfs.cli.main", *copy], check=True, capture_output=True)
    listen = split_address(free_address())
    service.node.root.mkdir(parents=True)
    service.node.settings.write_text(
        f'[stores]\nserve = ["s3://{BUCKET}", "oci:{tmp_path}"]\nlisten = "{listen[0]}:{listen[1]}"\n'
    )
    service.start()
    ensure_daemon(service.node).status()  # when it answers, it shows its stores as well
    with running_containerd_2(short_directory(), service, listen) as engine:
        certs = engine.directory / "machine/etc/containerd/certs.d"
        for name in (f"s3.lazyfs/{s3.location}:v1", f"oci.lazyfs{tmp_path}/layout:v1"):
            engine.ctr("images", "pull", "--snapshotter", "lazyfs", "--hosts-dir", certs, name)
            assert engine.run(name, "c") == "ready\n"
    assert len(engine.blobs()) == 2
    images = " ".join(each["reference"] for each in DaemonClient(service.node).status()["images"])
    assert f"s3://{s3.location}@" in images


def test_an_image_that_was_not_converted(engine: Engine2, app: str) -> None:
    engine.transfer(f"{app}:plain")
    assert engine.run(f"{app}:plain", "c") == "ready\n"
