"""How often a registry is asked for an image of 12 layers, and that nobody waits for one TOC to ask for the next."""

import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lazyfs.daemon.client import DaemonClient
from tests.registry import Registry, needs_registry
from tests.waiting import wait_until

from .client import Service
from .test_remote import layers_of, offer, offer_all

pytestmark = needs_registry

LAYERS = 12
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


class CountingProxy(ThreadingHTTPServer):
    """Before a registry. It answers no request for part of a blob before `together` of them have come."""

    daemon_threads = True

    def __init__(self, registry: str, together: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.registry = registry
        self.gate = threading.Barrier(together)
        self.asked: Counter[str] = Counter()
        self.counting = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CountingProxy

    def do_GET(self) -> None:
        connection = http.client.HTTPConnection(self.server.registry)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kind = "toc" if "Range" in self.headers else self.path.split("/")[-2]
        with self.server.counting:
            self.server.asked[kind] += 1
        if kind == "toc":
            self.server.gate.wait(30)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def counting(registry: Registry, together: int) -> Iterator[CountingProxy]:
    with CountingProxy(registry.host, together) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.gate.abort()
            proxy.shutdown()
            thread.join()


def test_twelve_layers_in_one_round_trip(
    service: Service, app: str, images: Path, registry: Registry
) -> None:
    with counting(registry, LAYERS) as proxy:
        client = service.start().client()
        name = app.replace(registry.host, proxy.host)
        assert offer_all(client, layers_of(images, "app-lazy", f"{name}:lazy")) == [True] * LAYERS
        assert proxy.asked["toc"] == LAYERS
        # The manifest, its config, and whether there is a launch pack (by the API, else by a tag).
        assert proxy.asked["manifests"] + proxy.asked["referrers"] <= 3
        assert proxy.asked["blobs"] == 1
        client.close()


def test_the_others_ask_nothing(service: Service, app: str, images: Path) -> None:
    client = service.start().client()
    offered = layers_of(images, "app-lazy", f"{app}:lazy")
    assert offer(client, offered[0], "")
    daemon = DaemonClient(service.node)
    wait_until(lambda: len(daemon.status()["layers"]) == LAYERS, "all TOCs")
    before = daemon.status()
    for below, layer in itertools.pairwise(offered):
        assert offer(client, layer, below.chain_id)
    assert daemon.status()["requests"] == before["requests"]
    client.close()
