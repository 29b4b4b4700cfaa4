"""nerdctl, and BuildKit building on top of a lazy image, before containerd 2. `make clients` builds both."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.registry import Registry, needs_registry
from tests.waiting import wait_until

from .client import REPOSITORY, Service
from .engine import TIMEOUT, layers, push, shown
from .test_containerd_2 import Engine2, running_containerd_2

CLIENTS = REPOSITORY / ".cache/tools/clients"
pytestmark = [
    needs_registry,
    pytest.mark.skipif(
        not (CLIENTS / "buildkitd").exists(), reason="`make clients` builds nerdctl and BuildKit"
    ),
]

BUILDKIT = """
root = "{directory}/b"
[grpc]
  address = ["unix://{directory}/b.sock"]
[worker.oci]
  enabled = false
[worker.containerd]
  enabled = true
  address = "{directory}/c.sock"
  namespace = "buildkit"
  snapshotter = "{snapshotter}"
  networkMode = "host"
[registry."{host}"]
  http = true
"""


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return push(tmp_path_factory.mktemp("clients"), registry.host, "clients", layers(4))


@pytest.fixture
def known(service: Service, short_directory: Callable[[], Path]) -> Iterator[Service]:
    """A second service, for the same node, to be known as `stargz`: of such clients ask for remote snapshots."""
    service.start()
    wait_until(service.node.socket.exists, "the daemon")
    known = Service(short_directory())
    try:
        yield known.start("--node", str(service.node.root))
        assert "Traceback" not in known.log.read_text()
    finally:
        known.close()


@pytest.fixture
def engine(service: Service, known: Service, short_directory: Callable[[], Path]) -> Iterator[Engine2]:
    more = f'[proxy_plugins.stargz]\n  type = "snapshot"\n  address = "{known.socket}"\n'
    with running_containerd_2(short_directory(), service, more=more) as engine:
        yield engine


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


def nerdctl(engine: Engine2, snapshotter: str, *words: str) -> str:
    options = f"--snapshotter={snapshotter}", "--insecure-registry", "--cgroup-manager=cgroupfs"
    places = (
        f"--address={engine.socket}",
        f"--data-root={engine.directory}/n",
        f"--cni-netconfpath={engine.directory}/cni",
    )
    return run(CLIENTS / "nerdctl", *places, *options, *words)


@pytest.mark.parametrize(("snapshotter", "blobs"), [("stargz", 2), ("lazyfs", 6)])
def test_nerdctl(engine: Engine2, app: str, snapshotter: str, blobs: int) -> None:
    image = f"{app}:lazy"
    assert nerdctl(engine, snapshotter, "run", "--rm", "--net=none", image) == "ready\n"
    assert len(engine.blobs()) == blobs
    script = "echo new >/etc/new; cat /etc/layer2"
    assert (
        nerdctl(engine, snapshotter, "run", "--net=none", "--name=written", image, "sh", "-c", script) == "2"
    )
    assert "/etc/new" in nerdctl(engine, snapshotter, "diff", "written")
    nerdctl(engine, snapshotter, "rm", "written")
    nerdctl(engine, snapshotter, "rmi", image)
    wait_until(lambda: not engine.snapshots(), "the end of all snapshots")


@contextmanager
def running_buildkit(engine: Engine2, host: str, snapshotter: str) -> Iterator[str]:
    config = engine.directory / "buildkitd.toml"
    config.write_text(BUILDKIT.format(directory=engine.directory, host=host, snapshotter=snapshotter))
    log = engine.directory / "buildkit.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [CLIENTS / "buildkitd", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: b"running server on" in log.read_bytes(), "BuildKit")
        yield f"unix://{engine.directory}/b.sock"
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@pytest.mark.parametrize(("snapshotter", "lazily"), [("stargz", True), ("lazyfs", False)])
def test_buildkit(
    engine: Engine2,
    known: Service,
    registry: Registry,
    app: str,
    tmp_path: Path,
    snapshotter: str,
    lazily: bool,
) -> None:
    """A step on top of a lazy image, and the result pushed."""
    (tmp_path / "Dockerfile").write_text(f"FROM {app}:lazy\nRUN echo built >/etc/built && cat /etc/message\n")
    name = f"{registry.host}/built-{snapshotter}:v1"
    with running_buildkit(engine, registry.host, snapshotter) as address:
        run(
            *(CLIENTS / "buildctl", f"--addr={address}", "build", "--frontend=dockerfile.v0"),
            *(f"--local=context={tmp_path}", f"--local=dockerfile={tmp_path}"),
            f"--output=type=image,name={name},push=true,registry.insecure=true",
        )
        assert bool(shown(known)) == lazily
    said = nerdctl(engine, "lazyfs", "run", "--rm", "--net=none", name, "cat", "/etc/built", "/etc/message")
    assert said == "built\nready\n"
