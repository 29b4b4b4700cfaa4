"""Kubernetes' CRI of Debian's containerd and of containerd 2: pods on images that were not downloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.mount.mountinfo import list_mounts
from tests.layouts import convert, put_image
from tests.registry import Registry, needs_registry, run_registry, skopeo
from tests.s3server import free_address
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

from .client import Service
from .cri import Cri
from .engine import CONFIG_OF_IMAGE, Engine, busybox_layer, layers, push, running_engine
from .test_containerd_2 import running_containerd_2

pytestmark = needs_registry

VERSION_1 = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "lazyfs"
    disable_snapshot_annotations = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
"""
VERSION_2 = """
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{certs}"
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return push(tmp_path_factory.mktemp("app"), registry.host, "app", layers(4))


@pytest.fixture(scope="module")
def pause(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What holds a pod together: an ordinary image, whose lowest layer is not that of the others."""
    config = replace(CONFIG_OF_IMAGE, cmd=("sleep", "1000000"))
    lowest = layer_tar([Entry(b"pause", content=b"pause")])
    source = put_image(tmp_path_factory.mktemp("pause"), [lowest, busybox_layer()], "v1", config)
    skopeo("copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{registry.host}/pause:v1")
    return f"{registry.host}/pause:v1"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("layout")
    source = put_image(directory, layers(3, b"of a directory\n"), "plain", CONFIG_OF_IMAGE)
    convert(source, f"oci:{directory}:lazy")
    return directory


@contextmanager
def _engine_of_version(
    version: int, directory: Path, service: Service, pause: str, address: str
) -> Iterator[Engine]:
    certs = directory / "certs"
    (certs / "oci.lazyfs").mkdir(parents=True)
    (certs / "oci.lazyfs/hosts.toml").write_text(
        f'server = "http://{address}"\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    values = {"pause": pause, "certs": certs}
    if version == 1:
        with running_engine(directory, service, VERSION_1.format(**values)) as engine:
            yield engine
    else:
        with running_containerd_2(directory, service, more=VERSION_2.format(**values)) as engine:
            yield engine


@pytest.fixture(params=[1, 2], ids=["containerd 1.6", "containerd 2"])
def engine(
    request: pytest.FixtureRequest,
    service: Service,
    short_directory: Callable[[], Path],
    pause: str,
    layout: Path,
) -> Iterator[Engine]:
    address = free_address()
    service.node.root.mkdir(parents=True)
    service.node.settings.write_text(f'[stores]\nserve = ["oci:{layout}"]\nlisten = "{address}"\n')
    service.start()
    ensure_daemon(service.node).status()  # when it answers, it shows its stores as well
    with _engine_of_version(request.param, short_directory(), service, pause, address) as engine:
        yield engine


@pytest.fixture
def cri(engine: Engine) -> Iterator[Cri]:
    cri = Cri(engine.socket)
    yield cri
    cri.close()


def test_a_pod_on_an_image_that_is_not_there(
    cri: Cri, engine: Engine, service: Service, app: str, tmp_path: Path
) -> None:
    cri.pull(f"{app}:lazy")
    assert len(engine.blobs()) == 2
    pod = cri.run_pod("first", tmp_path)
    container = pod.start(f"{app}:lazy", "app", "sh", "-c", "cat /etc/message; exec sleep 600")
    assert pod.execute(container, "cat", "/etc/layer1") == b"1"
    wait_until(lambda: b"ready" in (tmp_path / "app.log").read_bytes(), "the log of the container")
    cri.remove_image(f"{app}:lazy")
    assert pod.execute(container, "sh", "-c", "echo x > /etc/message && cat /etc/layer2") == b"2"
    pod.stop(container)
    pod.remove()
    wait_until(lambda: not list_mounts(service.root / "snapshots"), "the end of all that was shown")


def test_a_pod_on_an_image_of_a_directory(
    cri: Cri, engine: Engine, service: Service, layout: Path, tmp_path: Path
) -> None:
    name = f"oci.lazyfs{layout}:lazy"
    cri.pull(name)
    assert len(engine.blobs()) == 2
    pod = cri.run_pod("second", tmp_path)
    container = pod.start(name, "app", "sleep", "600")
    assert pod.execute(container, "cat", "/etc/message") == b"of a directory\n"
    images = " ".join(each["reference"] for each in DaemonClient(service.node).status()["images"])
    assert f"oci:{layout}@" in images
    pod.stop(container)
    pod.remove()
