"""What people do with containers, on images that were not downloaded."""

import gzip
import hashlib
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.daemon.client import DaemonClient
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import LayoutStore, load_image, parse_reference, write_blob
from tests.daemon.processes import daemons, end, kill
from tests.registry import Registry, needs_registry, run_registry, skopeo
from tests.waiting import wait_until

from .client import Service
from .conftest import Show
from .engine import CONFIG_OF_IMAGE, Engine, busybox_layer, layers, push, running_engine, shown

pytestmark = needs_registry


def gone(service: Service) -> bool:
    """Nothing mounted, no directory, no record."""
    client = service.client()
    left = client.names(), shown(service), list((service.root / "snapshots").iterdir())
    client.close()
    return left == ([], [], []) and list_mounts(service.node.images) == []


def test_nothing_is_left_of_what_was_removed(engine: Engine, service: Service, app: str) -> None:
    engine.pull(f"{app}:lazy")
    engine.run(f"{app}:lazy", "c")
    engine.remove_all()
    wait_until(lambda: gone(service), "the end of what the image had here")


def test_written_to_and_committed_as_an_image(
    engine: Engine, service: Service, app: str, registry: Registry, images: Path
) -> None:
    """The new image is pulled with its lower layers lazy, and its uppermost one downloaded."""
    engine.pull(f"{app}:lazy")
    script = "echo new >/etc/new; rm /etc/layer3; mv /lower /moved; sleep 1000"
    engine.start(f"{app}:lazy", "writer", "sh", "-c", script)
    wait_until(lambda: "moved" in engine.execute("writer", "ls", "/"), "the container's work")
    engine.end("writer", keep=True)
    engine.ctr("snapshots", "--snapshotter", "lazyfs", "commit", "committed", engine.id("writer"))
    diff = subprocess.run(
        ["ctr", "--address", engine.socket, "snapshots", "--snapshotter", "lazyfs", "diff", "committed"],
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    reference = add_layer(images, "app-lazy", "derived", gzip.decompress(diff))
    name = f"{registry.host}/derived:v1"
    skopeo("copy", "--quiet", "--dest-tls-verify=false", reference, f"docker://{name}")
    engine.pull(name)
    said = engine.run(
        name,
        "reader",
        "sh",
        "-c",
        "cat /etc/new /moved/file /etc/message; ls /etc/layer3 /lower 2>/dev/null; true",
    )
    assert said == "new\nof a lower directory\nready\n"


def add_layer(layout: Path, tag: str, new: str, stream: bytes) -> str:
    """The image with an ordinary layer on top."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:{tag}"))
        layer = Descriptor(OCI_LAYER_GZIP, *write_blob(store, gzip.compress(stream, 1, mtime=0)))
        diff_ids = (*image.config.diff_ids, f"sha256:{hashlib.sha256(stream).hexdigest()}")
        config = store.put_document(replace(image.config, diff_ids=diff_ids).to_bytes(), OCI_CONFIG)
        manifest = replace(image.manifest, config=config, layers=(*image.manifest.layers, layer))
        store.put_tag(new, store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    return f"oci:{layout}:{new}"


def test_a_build_step_on_top(engine: Engine, service: Service, app: str, show: Show) -> None:
    """As BuildKit does it: prepare, write, commit, and the next step on that."""
    engine.pull(f"{app}:lazy")
    client = service.client()
    parents = {info.parent for batch in client.batches() for info in batch}
    (top,) = (name for name in client.names() if name not in parents)
    for number in range(3):
        target = show(client.prepare(f"step{number}", top))
        assert (target / "etc/message").read_text() == "ready\n"
        (target / f"etc/step{number}").write_text("done")
        top = f"done{number}"
        client.commit(top, f"step{number}")
    (mount,) = client.view("result", top)
    # The three steps, and the image as one.
    assert len(mount.options[0].split(":")) == 4
    seen = show([mount])
    assert [(seen / f"etc/step{number}").read_text() for number in range(3)] == ["done"] * 3
    assert (seen / "etc/layer5").read_text() == "5"
    client.close()


def test_views_of_a_lazy_image(engine: Engine, service: Service, app: str, show: Show) -> None:
    """Of any of its layers: all up to that one."""
    engine.pull(f"{app}:lazy")
    client = service.client()
    parent_of = {info.name: info.parent for batch in client.batches() for info in batch}
    (name,) = (name for name in parent_of if name not in parent_of.values())
    for number in reversed(range(12)):
        (mount,) = client.view(f"view{number}", name)
        assert (mount.type, list(mount.options)) == ("bind", ["ro", "rbind"])
        seen = show([mount])
        assert sorted(file.name for file in seen.glob("etc/layer*")) == sorted(
            f"layer{each}" for each in range(1, min(number, 10) + 1)
        )
        assert (seen / "etc/message").read_text() == ("ready\n" if number == 11 else "from below\n")
        name = parent_of[name]
    assert client.usage(next(iter(parent_of))) == (0, 0)
    client.close()


def test_people_and_roots(engine: Engine, app: str, registry: Registry, images: Path) -> None:
    config = replace(CONFIG_OF_IMAGE, user="app")
    user = push(images, registry.host, "user", layers(3), config=config)
    engine.pull(f"{user}:lazy")
    said = engine.run(
        f"{user}:lazy", "user", "sh", "-c", "id -u; id -g; touch /etc/x 2>/dev/null || cat /etc/message"
    )
    assert said == "1000\n1001\nready\n"
    reference = f"{app}:lazy"
    engine.pull(reference)
    said = engine.run(
        reference, "moved", "sh", "-c", "mv /lower /upper && cat /upper/file && ls /lower 2>/dev/null || true"
    )
    assert said == "of a lower directory\n"
    said = engine.run(
        reference, "ro", "sh", "-c", "touch /x 2>/dev/null || cat /etc/message", options=["--read-only"]
    )
    assert said == "ready\n"


def test_two_images_that_share_layers(
    engine: Engine, service: Service, app: str, registry: Registry, images: Path
) -> None:
    other = push(images, registry.host, "other", [*layers(12)[:6], busybox_layer()])
    engine.pull(f"{app}:lazy")
    engine.pull(f"{other}:lazy")
    assert len(engine.snapshots()) == 12 + 1
    assert engine.run(f"{app}:lazy", "c1") == "ready\n"
    assert engine.run(f"{other}:lazy", "c2") == "from below\n"
    # The busybox layer twice in one image and in both is one device.
    assert len(DaemonClient(service.node).status()["layers"]) == 12
    engine.ctr("images", "remove", "--sync", f"{app}:lazy")
    wait_until(lambda: len(DaemonClient(service.node).status()["layers"]) == 6, "the end of the other layers")
    assert engine.run(f"{other}:lazy", "c3") == "from below\n"


def test_an_image_is_deleted_while_its_container_runs(engine: Engine, service: Service, app: str) -> None:
    engine.pull(f"{app}:lazy")
    engine.start(f"{app}:lazy", "c", "sleep", "1000")
    engine.ctr("images", "remove", "--sync", f"{app}:lazy")
    assert engine.execute("c", "cat", "/etc/message", "/etc/layer7") == "ready\n7"
    engine.end("c")
    wait_until(lambda: gone(service), "the end of what the image had here")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_service_ends_and_starts_under_a_container(
    engine: Engine, service: Service, app: str, number: signal.Signals
) -> None:
    engine.pull(f"{app}:lazy")
    engine.start(f"{app}:lazy", "c", "sleep", "1000")
    service.stop(number)
    assert engine.execute("c", "cat", "/etc/layer1", "/etc/message") == "1ready\n"
    service.start()
    assert engine.execute("c", "cat", "/etc/layer2") == "2"
    # containerd waits a moment before it tries to connect again.
    wait_until(lambda: len(engine.snapshots(check=False)) == 13, "containerd's connection")
    assert engine.run(f"{app}:lazy", "d", "cat", "/etc/layer3") == "3"
    assert len(shown(service)) == 1
    engine.end("c")


def test_the_daemon_is_killed_under_a_container(engine: Engine, service: Service, app: str) -> None:
    """The keeper holds the kernel's connection, and starts another: whoever reads meanwhile waits."""
    engine.pull(f"{app}:lazy")
    engine.start(f"{app}:lazy", "c", "sleep", "1000")
    for number in range(1, 4):
        before = DaemonClient(service.node).status()["pid"]
        end(daemons(service.node))
        assert engine.execute("c", "cat", f"/etc/layer{number}", "/etc/message") == f"{number}ready\n"
        assert DaemonClient(service.node).status()["pid"] != before
    assert engine.run(f"{app}:lazy", "d", "cat", "/etc/layer9") == "9"
    engine.end("c")


def test_after_a_reboot_without_a_network(
    service: Service, tmp_path: Path, images: Path, short_directory: Callable[[], Path]
) -> None:
    """All mounts and processes are gone, the records are there, and the registry is not."""
    directory = short_directory()
    with run_registry(tmp_path / "registry") as registry:
        name = push(images, registry.host, "rebooted", layers(4)) + ":lazy"
        service.start()
        with running_engine(directory, service) as engine:
            engine.pull(name)
            assert engine.run(name, "c") == "ready\n"
    service.stop()
    kill(service.node)
    for entry in list_mounts(service.root):
        unmount(entry.target, detach=True)
    service.start()
    with running_engine(directory, service) as engine:
        assert len(engine.snapshots()) == 4
        assert engine.run(name, "d") == "ready\n"
        assert len(shown(service)) == 1


def test_an_image_in_two_namespaces(engine: Engine, service: Service, app: str) -> None:
    """Kubernetes and Docker beside each other have what they share once."""
    engine.pull(f"{app}:lazy")
    engine.namespace = "other"
    engine.pull(f"{app}:lazy")
    assert engine.run(f"{app}:lazy", "c") == "ready\n"
    client = service.client()
    assert len(client.names("kind==committed")) == 12
    client.close()
    engine.remove_all()
    engine.namespace = "default"
    assert engine.run(f"{app}:lazy", "c") == "ready\n"
    engine.remove_all()
    wait_until(lambda: gone(service), "the end of what the image had here")
