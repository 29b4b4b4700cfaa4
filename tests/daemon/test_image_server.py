"""Stores that are no registries, shown to engines as one: over HTTP, to skopeo, and to the node itself."""

import hashlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import ensure_daemon
from lazyfs.daemon.image_server import ImageServer
from lazyfs.errors import NodeError
from lazyfs.mount.images import mount_view, unmount_image
from lazyfs.stores import LayoutStore, Store, load_image, open_store, parse_reference
from lazyfs.stores.node_stores import NodeStores
from lazyfs.stores.reference import Reference
from tests.registry import needs_registry, run_registry, skopeo
from tests.waiting import wait_until

from .conftest import LOWER
from .processes import MakePaths

Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(settings: NodeStores) -> Iterator[tuple[str, Ask]]:
    stores: list[Store] = []

    def find(reference: Reference) -> tuple[Store, Reference]:
        found = settings.locate(reference)
        stores.append(open_store(found))
        return stores[-1], found

    server = ImageServer(("127.0.0.1", 0), find)
    address = "{}:{}".format(*server.address)

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    try:
        yield address, ask
    finally:
        server.close()
        for store in stores:
            store.close()


@pytest.fixture
def served(made: Path) -> Iterator[tuple[str, Ask]]:
    with serving(NodeStores(served=(("oci", str(made)),))) as both:
        yield both


def test_manifests_are_found_by_tag_and_by_digest(served: tuple[str, Ask], made: Path) -> None:
    _, ask = served
    with LayoutStore(made) as store:
        image = load_image(store, parse_reference(f"oci:{made}:lazy"))
    for path in (
        f"/v2/oci.lazyfs{made}/manifests/lazy",
        f"/v2/oci.lazyfs{made}/manifests/{image.descriptor.digest}",
        f"/v2{made}/manifests/lazy?ns=oci.lazyfs",
    ):
        status, headers, body = ask(path)
        assert (status, body) == (200, image.manifest_bytes)
        assert headers["Content-Type"] == image.descriptor.media_type
        assert headers["Docker-Content-Digest"] == image.descriptor.digest
        status, seen, body = ask(path, "HEAD")
        assert (status, seen | {"Date": ""}, body) == (200, headers | {"Date": ""}, b"")
    tags = json.loads(ask(f"/v2/oci.lazyfs{made}/tags/list")[2])
    assert tags["name"] == f"oci.lazyfs{made}"
    assert {"app", "lazy"} <= set(tags["tags"])
    assert ask("/v2/")[0] == 200


def test_blobs_come_whole_and_in_ranges(served: tuple[str, Ask], made: Path) -> None:
    _, ask = served
    with LayoutStore(made) as store:
        layer, _ = load_image(store, parse_reference(f"oci:{made}:app")).layers[0]
        blob = b"".join(store.stream(layer.digest))
    path = f"/v2/oci.lazyfs{made}/blobs/{layer.digest}"
    status, headers, body = ask(path)
    assert (status, hashlib.sha256(body).hexdigest()) == (200, layer.digest[7:])
    assert ask(path, "HEAD")[1]["Content-Length"] == str(len(blob))
    for header, start, end in (("3-7", 3, 8), ("100000-", 100000, len(blob)), ("0-99999999", 0, len(blob))):
        status, headers, body = ask(path, Range=f"bytes={header}")
        assert (status, body) == (206, blob[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(blob)}"
    status, headers, _ = ask(path, Range=f"bytes={len(blob)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(blob)}")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/v2/oci.lazyfs/etc/manifests/latest", 400),
        ("/v2/oci.lazyfs/manifests/latest", 400),
        ("/v2/registry.example/app/manifests/latest", 400),
        ("/v2/{made}/manifests/latest", 400),
        ("/v2/oci.lazyfs{made}/manifests/absent", 404),
        ("/v2/oci.lazyfs{made}/../../etc/manifests/latest", 400),
        ("/v2/oci.lazyfs{made}/below/manifests/latest", 404),
        ("/v2/oci.lazyfs{made}/blobs/lazy", 400),
        ("/v2/oci.lazyfs{made}/blobs/sha256:../../../etc/passwd", 404),
        ("/v2/oci.lazyfs{made}/blobs/sha256:..%2f..%2fetc%2fpasswd", 400),
        (f"/v2/oci.lazyfs{{made}}/blobs/sha256:{'0' * 64}", 404),
        (f"/v2/oci.lazyfs{{made}}/manifests/sha256:{'0' * 64}", 404),
    ],
)
def test_what_is_not_there_or_not_served(served: tuple[str, Ask], made: Path, path: str, status: int) -> None:
    _, ask = served
    answer, _, body = ask(path.format(made=made))
    assert (answer, list(json.loads(body))) == (status, ["errors"])


def test_a_browser_is_not_answered_by_a_name_of_its_own(served: tuple[str, Ask], made: Path) -> None:
    _, ask = served
    assert ask(f"/v2/oci.lazyfs{made}/tags/list", Host="rebound.example")[0] == 400
    assert ask(f"/v2/oci.lazyfs{made}/tags/list", Host="localhost:1")[0] == 200


def test_who_speaks_tls_is_told_not_to(served: tuple[str, Ask]) -> None:
    """By a head of HTTP: then Docker tries again without."""
    host, _, port = served[0].partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_skopeo_copies_the_image(served: tuple[str, Ask], made: Path, tmp_path: Path) -> None:
    address, _ = served
    source = f"docker://{address}/oci.lazyfs{made}:lazy"
    skopeo("copy", "--src-tls-verify=false", "--preserve-digests", source, f"oci:{tmp_path}/copy:lazy")
    with LayoutStore(made) as store, LayoutStore(tmp_path / "copy") as copy:
        assert copy.resolve("lazy").digest == store.resolve("lazy").digest


def test_a_taken_port_is_named() -> None:
    with serving(NodeStores()) as (address, _), pytest.raises(NodeError, match=f"cannot listen on {address}"):
        ImageServer(("127.0.0.1", int(address.split(":")[1])), lambda _: pytest.fail("asked"))


@pytest.mark.root
def test_a_node_knows_its_stores_by_their_names_in_engines(paths: NodePaths, made: Path) -> None:
    write_settings(paths, f'serve = ["oci:{made.parent}"]')
    opened = ensure_daemon(paths).open_image(f"docker://oci.lazyfs{made}:lazy")
    assert opened["reference"] == f"oci:{made}:lazy"


@pytest.mark.root
def test_a_daemon_serves_though_its_port_is_taken(paths: NodePaths, made: Path) -> None:
    with serving(NodeStores()) as (address, _):
        write_settings(paths, f'listen = "{address}"\nserve = ["oci:{made}"]')
        ensure_daemon(paths).open_image(f"oci:{made}:lazy")
    assert f"images are not served: cannot listen on {address}" in paths.log.read_text()


def write_settings(paths: NodePaths, text: str) -> None:
    paths.root.mkdir(exist_ok=True)
    paths.settings.write_text(f"[stores]\n{text}\n")


@pytest.mark.root
@needs_registry
def test_bytes_come_from_a_mirror_and_from_the_registry_what_it_lacks(
    node_at: MakePaths, made: Path, target: Path, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    skopeo("copy", "--preserve-digests", f"oci:{made}:lazy", f"oci:{mirror}:lazy")
    first, second = node_at(tmp_path / "first"), node_at(tmp_path / "second")
    with run_registry(tmp_path / "registry") as registry:
        name = f"docker://{registry.host}/app:lazy"
        skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{made}:lazy", name)
        for paths in (first, second):
            by = f'["oci:{tmp_path}/none", "oci:{mirror}"]'
            write_settings(paths, f'[[stores.mirror]]\nof = "docker://{registry.host}"\nby = {by}')
        opened = ensure_daemon(first).open_image(name)
    with socket.socket() as port:
        # The registry is gone, and nobody else is given its port: what is read now comes from the mirror.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", registry.port))
        check_image(first, opened, target)
        with run_registry(tmp_path / "registry", port=registry.port):
            for blob in (mirror / "blobs" / "sha256").iterdir():
                blob.write_bytes(bytes(len(blob.read_bytes())))
            check_image(second, ensure_daemon(second).open_image(name), target)


def check_image(paths: NodePaths, opened: dict[str, Any], target: Path) -> None:
    mount_view(paths, opened, target)
    try:
        assert (target / "big").read_bytes() == LOWER[0].content
        assert (target / "text").read_text() == "upper"
    finally:
        unmount_image(paths, target)


@pytest.mark.root
@needs_registry
def test_a_mirror_that_is_dead_costs_little(
    paths: NodePaths, made: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket whose server does not answer is not asked for each read."""
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "REGION": "z"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    with run_registry(tmp_path / "registry") as registry:
        name = f"docker://{registry.host}/app:lazy"
        skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{made}:lazy", name)
        write_settings(
            paths, f'[[stores.mirror]]\nof = "docker://{registry.host}"\nby = ["s3://nowhere/app"]'
        )
        check_image(paths, ensure_daemon(paths).open_image(name), target)
        # The reads above had their bytes from the registry; the bucket's own deadline comes later.
        wait_until(lambda: "s3://nowhere/app is left alone" in paths.log.read_text())
