"""Docker Engine: lazily started images do what others do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.mountinfo import list_mounts
from tests.layouts import convert, put_image
from tests.registry import Registry, needs_registry, run_registry
from tests.s3server import free_address
from tests.waiting import wait_until

from .client import Service
from .docker import Docker, running_docker
from .engine import CONFIG_OF_IMAGE, layers, push
from .test_containerd_2 import Engine2, running_containerd_2

pytestmark = needs_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return push(tmp_path_factory.mktemp("app"), registry.host, "app", layers(4))


@pytest.fixture(scope="module")
def address() -> str:
    """Where the stores of the node are shown."""
    return free_address()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the image `lazy`."""
    directory = tmp_path_factory.mktemp("layout")
    convert(
        put_image(directory, layers(3, b"of a directory\n"), "plain", CONFIG_OF_IMAGE),
        f"oci:{directory}:lazy",
    )
    return directory


@pytest.fixture(scope="module")
def docker_service(short_directory: Callable[[], Path], layout: Path, address: str) -> Iterator[Service]:
    service = Service(short_directory())
    service.node.root.mkdir(parents=True)
    service.node.settings.write_text(f'[stores]\nserve = ["oci:{layout}"]\nlisten = "{address}"\n')
    try:
        yield service.start()
        assert "Traceback" not in service.log.read_text()
    finally:
        service.close()


@pytest.fixture
def service_root(docker_service: Service) -> Path:
    return docker_service.root


@pytest.fixture(scope="module")
def engine(docker_service: Service, short_directory: Callable[[], Path]) -> Iterator[Engine2]:
    with running_containerd_2(short_directory(), docker_service) as engine:
        yield engine


@pytest.fixture(scope="module")
def docker(engine: Engine2, registry: Registry, short_directory: Callable[[], Path]) -> Iterator[Docker]:
    with running_docker(short_directory(), engine, "--insecure-registry", registry.host) as docker:
        yield docker


def changes_of(docker: Docker, container: str) -> set[tuple[str, int]]:
    """Paths, with 0 for changed, 1 for new, 2 for removed."""
    answer = docker.call("GET", f"/containers/{container}/changes")
    return {(each["Path"], each["Kind"]) for each in answer}


def test_pulled_without_a_download_and_run(docker: Docker, engine: Engine2, app: str) -> None:
    docker.pull(app, "lazy")
    assert len(engine.blobs()) == 2
    assert docker.run(f"{app}:lazy") == "ready\n"
    info = docker.call("GET", "/info")
    assert info["Driver"] == "lazyfs"
    assert ["driver-type", "io.containerd.snapshotter.v1"] in info["DriverStatus"]


def test_an_image_that_was_not_converted(docker: Docker, app: str) -> None:
    docker.pull(app, "plain")
    assert docker.run(f"{app}:plain") == "ready\n"


def test_an_image_of_a_directory(
    docker: Docker, engine: Engine2, docker_service: Service, address: str, layout: Path
) -> None:
    """Its chunks do not pass through the server that shows it."""
    name = f"{address}/oci.lazyfs{layout}"
    before = len(engine.blobs())
    docker.pull(name, "lazy")
    assert len(engine.blobs()) == before + 2
    assert docker.run(f"{name}:lazy") == "of a directory\n"
    images = DaemonClient(docker_service.node).status()["images"]
    assert f"oci:{layout}@" in " ".join(each["reference"] for each in images)
    docker.pull(name, "plain")
    assert docker.run(f"{name}:plain") == "of a directory\n"


def test_what_is_written_is_seen_as_a_difference(docker: Docker, app: str) -> None:
    docker.pull(app, "lazy")
    script = "echo new > /etc/new; rm /etc/layer1; echo x >> /etc/message"
    container = docker.create(f"{app}:lazy", "sh", "-c", script)
    assert docker.start(container)[0] == 0
    assert changes_of(docker, container) == {
        ("/etc", 0),
        ("/etc/new", 1),
        ("/etc/layer1", 2),
        ("/etc/message", 0),
    }
    docker.remove(container)


def test_committed_pushed_and_pulled_again(
    docker: Docker, engine: Engine2, registry: Registry, app: str
) -> None:
    """Of the lazy layers nothing was ever downloaded: the registry has them, and takes them from the repository."""
    docker.pull(app, "lazy")
    container = docker.create(f"{app}:lazy", "sh", "-c", "echo mine > /etc/message; rm /etc/layer1")
    assert docker.start(container)[0] == 0
    docker.call(
        "POST", f"/commit?container={container}&repo={app}&tag=mine", {"Cmd": ["cat", "/etc/message"]}
    )
    docker.remove(container)
    assert docker.run(f"{app}:mine") == "mine\n"
    docker.push(app, "mine")
    docker.call("DELETE", f"/images/{app}:mine?force=1")
    docker.pull(app, "mine")
    script = "cat /etc/layer2 /etc/message; test -e /etc/layer1 || echo gone"
    assert docker.run(f"{app}:mine", "sh", "-c", script) == "2mine\ngone\n"


def test_built_on_top(docker: Docker, app: str) -> None:
    docker.pull(app, "lazy")
    docker.build(
        f"FROM {app}:lazy\nRUN echo built > /etc/message && rm -r /lower\nCOPY added /etc/\n"
        'CMD ["sh", "-c", "cat /etc/message /etc/added; ls -d /lower /etc/layer1"]\n',
        "built:v1",
        {"added": b"added\n"},
    )
    container = docker.create("built:v1")
    code, said = docker.start(container)
    assert code == 1
    # Two streams: in no order between them.
    errors = [line for line in said.splitlines() if "/lower: No such file" in line]
    assert len(errors) == 1
    assert [line for line in said.splitlines() if line not in errors] == ["built", "added", "/etc/layer1"]
    docker.remove(container)


def test_disk_usage_and_prune(docker: Docker, engine: Engine2, service_root: Path, app: str) -> None:
    docker.pull(app, "lazy")
    container = docker.create(f"{app}:lazy", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null")
    assert docker.start(container)[0] == 0
    usage = docker.call("GET", "/system/df")
    [found] = [each for each in usage["Containers"] if each["Id"] == container]
    assert 3 << 20 <= found["SizeRw"] < 4 << 20
    [image] = [each for each in usage["Images"] if f"{app}:lazy" in (each["RepoTags"] or [])]
    assert image["Size"] > 0
    docker.remove(container)
    docker.call("POST", '/images/prune?filters={"dangling":["false"]}')
    assert docker.call("GET", "/images/json") == []
    engine.ctr("--namespace", "moby", "content", "prune", "references")
    wait_until(lambda: not list_mounts(service_root / "snapshots"), "the end of all that was shown")


def test_an_image_deleted_while_its_container_runs(docker: Docker, app: str) -> None:
    docker.pull(app, "lazy")
    container = docker.create(f"{app}:lazy", "sh", "-c", "read line; cat /etc/message", OpenStdin=True)
    docker.call("POST", f"/containers/{container}/start")
    docker.call("DELETE", f"/images/{app}:lazy?force=1")
    command = {"Cmd": ["cat", "/etc/layer2"], "AttachStdout": True, "Tty": True}
    execution = docker.call("POST", f"/containers/{container}/exec", command)["Id"]
    assert docker.call("POST", f"/exec/{execution}/start", {"Tty": True}) == 2
    docker.remove(container)
