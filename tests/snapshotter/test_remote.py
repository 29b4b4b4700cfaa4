"""Layers that need not be downloaded: what is accepted, and what is left to containerd."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from lazyfs.daemon.client import DaemonClient
from lazyfs.stores import LayoutStore, load_image, parse_reference
from snapshotter.labels import wanted_layer
from tests.registry import (
    HTPASSWD,
    PASSWORD,
    USER,
    needs_registry,
    run_registry,
    skopeo,
    write_auth,
)

from .client import PATIENCE, PROGRAM, Client, Service, code_of
from .engine import layers, push, running_engine, shown

pytestmark = needs_registry

REF = "containerd.io/snapshot.ref"
CRI = "containerd.io/snapshot/cri."
STARGZ = "containerd.io/snapshot/remote/stargz."
TOC = "containerd.io/snapshot/lazyfs.toc"


@dataclass(frozen=True)
class Layer:
    chain_id: str
    labels: dict[str, str]


def layers_of(layout: Path, tag: str, name: str, kind: str = "cri") -> list[Layer]:
    """The labels that a client gives with each layer of the image, pulled as `name`."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:{tag}"))
    chain_id = ""
    found = []
    for descriptor, diff_id in image.layers:
        text = f"{chain_id} {diff_id}"
        chain_id = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chain_id else diff_id
        labels = {REF: chain_id, **descriptor.annotations}
        if kind == "cri":
            labels |= {
                f"{CRI}image-ref": name,
                f"{CRI}layer-digest": descriptor.digest,
                f"{CRI}manifest-digest": image.descriptor.digest,
            }
        else:
            labels |= {f"{STARGZ}reference": name, f"{STARGZ}digest": descriptor.digest}
        found.append(Layer(chain_id, labels))
    return found


def offer(client: Client, layer: Layer, parent: str, key: str = "key") -> bool:
    """Was the layer taken, so that it need not be downloaded?"""
    try:
        client.prepare(key, parent, layer.labels)
    except grpc.RpcError as error:
        assert code_of(error) == "ALREADY_EXISTS", error.details()
        return True
    client.remove(key)
    return False


def offer_all(client: Client, offered: list[Layer], key: str = "default") -> list[bool]:
    """As containerd does: what is taken is the next one's parent, what is not is unpacked."""
    parent = ""
    taken = []
    for number, layer in enumerate(offered):
        taken.append(offer(client, layer, parent))
        if taken[-1]:
            parent = layer.chain_id
        else:
            client.prepare("unpack", parent)
            parent = f"{key}/{number}/{layer.chain_id}"
            client.commit(parent, "unpack")
    return taken


@pytest.mark.parametrize("kind", ["cri", "stargz"])
def test_a_chain(service: Service, app: str, images: Path, kind: str) -> None:
    client = service.start().client()
    offered = layers_of(images, "app-lazy", f"{app}:lazy", kind)
    assert offer_all(client, offered) == [True] * 12
    # What containerd asks next.
    for below, layer in zip([Layer("", {}), *offered], offered, strict=False):
        filter_ = f'labels."{REF}"=={layer.chain_id},parent=="{below.chain_id}"'
        assert client.names(filter_) == [layer.chain_id]
        info = client.stat(layer.chain_id)
        assert info.kind == 3
        assert dict(info.labels) == {**layer.labels, "containerd.io/snapshot/remote": "remote snapshot"}
        assert client.usage(layer.chain_id) == (0, 0)
    # Asked again, it is there already.
    assert offer(client, offered[5], offered[4].chain_id)
    assert len(client.names()) == 12
    client.close()


def test_its_launch_pack_comes_before_the_first_answer(
    service: Service, app: str, images: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile"
    profile.write_text("# lazyfs profile 1\nbin/busybox 0-9\netc/message 0\n")
    skopeo("copy", "--quiet", f"oci:{images}:app-lazy", f"oci:{tmp_path}/packed:packed")
    lazyfs = Path(sys.executable).with_name("lazyfs")
    target = f"oci:{tmp_path}/packed:packed"
    subprocess.run(
        [lazyfs, "profile", "attach", profile, target], check=True, capture_output=True, timeout=60
    )
    name = f"{app.partition('/')[0]}/packed:packed"
    subprocess.run([lazyfs, "copy", target, f"docker://{name}"], check=True, capture_output=True, timeout=60)
    client = service.start().client()
    offered = layers_of(tmp_path / "packed", "packed", name)
    assert offer(client, offered[0], "")
    (launch,) = DaemonClient(service.node).status()["launches"]
    assert launch["image"] == offered[0].labels[f"{CRI}manifest-digest"]
    assert launch["state"] != "refused"
    client.close()


def test_what_is_not_taken(service: Service, app: str, images: Path) -> None:
    client = service.start().client()
    offered = layers_of(images, "app-lazy", f"{app}:lazy")
    first, second = offered[:2]

    without_toc = Layer(first.chain_id, {k: v for k, v in first.labels.items() if k != TOC})
    assert not offer(client, without_toc, "")
    assert not offer(client, Layer(first.chain_id, {TOC: first.labels[TOC], REF: first.chain_id}), "")
    # A layer of another image, a chain ID that is not the image's, an image that is not there, a name that is none.
    assert not offer(
        client, Layer("", first.labels | {f"{CRI}layer-digest": second.labels[f"{CRI}layer-digest"]}), ""
    )
    assert not offer(client, Layer("", first.labels | {REF: "sha256:" + "0" * 64}), "")
    elsewhere = first.labels | {f"{CRI}image-ref": f"{app}x:lazy", f"{CRI}manifest-digest": ""}
    assert not offer(client, Layer("", elsewhere), "")
    assert not offer(client, Layer("", first.labels | {f"{CRI}image-ref": "no name:"}), "")
    # Not the layer that comes next on this parent.
    assert not offer(client, second, "")
    assert offer(client, first, "")
    assert not offer(client, offered[2], first.chain_id)
    # And without the label that says what it is for.
    assert not offer(client, Layer("", {k: v for k, v in first.labels.items() if k != REF}), "")
    assert client.names() == [first.chain_id]
    client.close()


def test_on_what_was_unpacked(service: Service, app: str, images: Path, tmp_path: Path) -> None:
    """The layers below may have come another way: the chain ID says that they are the same."""
    client = service.start().client()
    offered = layers_of(images, "app-lazy", f"{app}:lazy")
    client.prepare("unpack")
    below = f"default/1/{offered[0].chain_id}"
    client.commit(below, "unpack")
    assert offer(client, offered[1], below)
    client.close()


def test_64_callers_of_the_same_layers(service: Service, app: str, images: Path) -> None:
    service.start()
    offered = layers_of(images, "app-lazy", f"{app}:lazy")
    barrier = threading.Barrier(64, timeout=PATIENCE)

    def pull(number: int) -> list[bool]:
        client = service.client()
        barrier.wait()
        taken = []
        parent = ""
        for layer in offered:
            taken.append(offer(client, layer, parent, f"key{number}"))
            parent = layer.chain_id
        client.close()
        return taken

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(pull, range(64))) == [[True] * 12] * 64
    client = service.client()
    assert len(client.names()) == 12
    client.cleanup()
    assert len(list((service.root / "snapshots").iterdir())) == 12
    client.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A registry that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_registry_that_is_silent_or_away(service: Service, app: str, images: Path, silent: str) -> None:
    client = service.start(program=PROGRAM).client()
    for host in (silent, "127.0.0.1:1"):
        offered = layers_of(images, "app-lazy", f"{host}/app:lazy")
        began = time.monotonic()
        assert offer_all(client, offered, host) == [False] * 12
        # All of the layers together, in some 3 s and what a busy machine adds: the second one does not wait again.
        assert time.monotonic() - began < 15.0
    client.close()
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 15.0
    assert "containerd downloads it" in service.log.read_text()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[str]:
    """An image in a registry that wants a password."""
    directory = tmp_path_factory.mktemp("private")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    with run_registry(directory / "registry", auth=auth) as registry:
        yield push(images, registry.host, "private", layers(3), f"--dest-creds={USER}:{PASSWORD}") + ":lazy"


def test_with_credentials(
    service: Service, private: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has its own: those of Docker's configuration."""
    (tmp_path / "docker").mkdir()
    write_auth(tmp_path / "docker/config.json", private.partition("/")[0])
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    service.start()
    with running_engine(tmp_path / "engine", service) as engine:
        engine.pull(private, "--user", f"{USER}:{PASSWORD}")
        assert len(engine.blobs()) == 2
        assert engine.run(private, "c") == "ready\n"
        assert len(shown(service)) == 1


def test_without_credentials(
    service: Service, private: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd has a password and the node has not: so containerd downloads the image."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    service.start()
    with running_engine(tmp_path / "engine", service) as engine:
        engine.pull(private, "--user", f"{USER}:{PASSWORD}")
        assert len(engine.blobs()) == 5
        assert engine.run(private, "c") == "ready\n"
        assert shown(service) == []


@pytest.mark.parametrize(
    ("labels", "reference"),
    [
        ({f"{CRI}image-ref": "host/a:tag"}, "docker://host/a:tag"),
        ({f"{CRI}image-ref": "host:5000/a/b:tag"}, "docker://host:5000/a/b:tag"),
        ({f"{CRI}image-ref": "docker.io/library/a:tag", f"{CRI}manifest-digest": "sha256:" + "1" * 64},
         "docker://docker.io/library/a@sha256:" + "1" * 64),
        ({f"{CRI}image-ref": "host:5000/a@sha256:" + "2" * 64}, "docker://host:5000/a@sha256:" + "2" * 64),
        ({f"{CRI}image-ref": "host:5000/a:tag@sha256:" + "2" * 64}, "docker://host:5000/a@sha256:" + "2" * 64),
        ({f"{CRI}image-ref": "host/A b:tag"}, None),
        ({f"{CRI}image-ref": ""}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_names_of_images(labels: Mapping[str, str], reference: str | None) -> None:
    wanted = wanted_layer({REF: "sha256:0", TOC: "1:2:3", f"{CRI}layer-digest": "sha256:1", **labels})
    assert (wanted.reference if wanted else None) == reference
    if reference and "1" * 64 not in reference:
        renamed = {
            name.replace("cri.image-ref", "remote/stargz.reference"): value for name, value in labels.items()
        }
        again = wanted_layer({REF: "sha256:0", TOC: "1:2:3", f"{STARGZ}digest": "sha256:1", **renamed})
        assert again == wanted
