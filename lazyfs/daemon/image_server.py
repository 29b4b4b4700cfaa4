"""The read side of the OCI distribution API (spec.md 1.1) on loopback, for stores that are no registries.

    GET, HEAD /v2/                            200
    GET, HEAD /v2/NAME/manifests/REFERENCE    manifests and indexes
    GET, HEAD /v2/NAME/blobs/DIGEST           whole, or one range
    GET       /v2/NAME/tags/list

NAME is `s3.lazyfs/BUCKET/…` or `oci.lazyfs/DIRECTORY/…`, or without its first part where that stands in the query
(`?ns=`): so engines ask whose hosts.toml leads here. A lazy start takes manifest and config this way, and its chunks
from the store itself; a plain pull takes all.
"""

import json
import logging
import re
import socket
import socketserver
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lazyfs.daemon.server_thread import ServerThread
from lazyfs.errors import LazyfsError, NodeError, NotFoundError, StoreError, UsageError
from lazyfs.stores.base import Store
from lazyfs.stores.node_stores import HOSTS
from lazyfs.stores.reference import DEFAULT_TAG, Reference, parse_reference
from lazyfs.stores.registry.hosts import is_loopback

log = logging.getLogger(__name__)

THREADS = 16
MAX_CONNECTIONS = 256
REQUEST_TIMEOUT = 60.0
_PIECE = 4 << 20
_TLS_HANDSHAKE = b"\x16"
_PATH = re.compile(r"/v2/(?P<name>.+)/(?:(?P<kind>manifests|blobs)/(?P<reference>[^/]+)|tags/list)")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")

FindStore = Callable[[Reference], tuple[Store, Reference]]


class ImageServer:
    """Serves until `close`. ``find`` gives the store of a name, and what the image is called in it."""

    def __init__(self, listen: tuple[str, int], find: FindStore) -> None:
        try:
            self._server = _Server(listen, find)
        except OSError as error:
            raise NodeError(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}",
                hint="choose another address: `listen`, section [stores] of the node's config.toml",
            ) from error
        self._thread = ServerThread(self._server, "images")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.socket.getsockname()[:2]
        return host, port

    def close(self) -> None:
        """End now; who is in the middle of a blob sees the connection break."""
        self._thread.close()
        self._server.hang_up()
        self._server.server_close()


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, listen: tuple[str, int], find: FindStore) -> None:
        self.address_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self.find = find
        self._connections: set[socket.socket] = set()
        super().__init__(listen, _Handler)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="images")

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            super().shutdown_request(request)
            return
        self._connections.add(request)
        self._pool.submit(self._work, request, client_address)

    def _work(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            log.debug("a client of the image server went away: %s", error)
        except Exception:  # the thread is everybody's
            log.exception("the image server")
        finally:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in self._connections.copy():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        # Who waits for a store hears of the end when that answers; the next daemon does not wait for it.
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Handler(BaseHTTPRequestHandler):
    # One request per connection: on loopback another costs nothing, and none waits for a client that says nothing.
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT
    server: _Server

    def handle(self) -> None:
        if self.connection.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
            # Docker asks so first, and without TLS once it sees a head of HTTP; its hello may end in no line at all.
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno TLS here\n")
            return
        super().handle()

    def do_GET(self) -> None:
        try:
            self._route()
        except NotFoundError as error:
            self._refuse(404, "MANIFEST_UNKNOWN" if "/manifests/" in self.path else "BLOB_UNKNOWN", error)
        except StoreError as error:
            self._refuse(503, "UNAVAILABLE", error)
        except LazyfsError as error:
            self._refuse(400, "NAME_INVALID", error)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _route(self) -> None:
        # A page in a browser may name an address of this machine, but only by a name of its own.
        if not is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""):
            raise UsageError("this server answers to a loopback address alone")
        path, query = urlsplit(self.path)[2:4]
        if path in ("/v2/", "/v2"):
            self._send(200, {"Content-Type": "application/json"}, b"{}")
            return
        match = _PATH.fullmatch(path)
        if match is None:
            raise NotFoundError(f"there is no {path[:200]}", hint="see the OCI distribution specification")
        # What containerd adds where a hosts.toml leads it elsewhere than to the registry that the image's name names.
        [registry] = parse_qs(query).get("ns", [""])[-1:]
        name = f"{registry}/{match['name']}" if registry in HOSTS else match["name"]
        store, reference = self.server.find(_reference(name, match["kind"], match["reference"]))
        match match["kind"]:
            case "manifests":
                self._manifest(store, reference)
            case "blobs":
                self._blob(store, str(reference.digest))
            case _:
                tags = {"name": name, "tags": store.tags()}
                self._send(200, {"Content-Type": "application/json"}, json.dumps(tags).encode())

    def _manifest(self, store: Store, reference: Reference) -> None:
        descriptor = store.resolve(reference.selector)
        headers = {"Content-Type": descriptor.media_type, "Docker-Content-Digest": descriptor.digest}
        self._send(200, headers, store.get_document(descriptor))

    def _blob(self, store: Store, digest: str) -> None:
        size = store.has(digest)
        if size is None:
            raise NotFoundError(f"{store.url} has no blob {digest}", hint="copy the image there again")
        headers = {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None:
            self._head(200, headers, size)
            self._body(store.stream(digest), size)
            return
        start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        if start > end:
            self._send(416, headers | {"Content-Range": f"bytes */{size}"}, b"")
            return
        self._head(206, headers | {"Content-Range": f"bytes {start}-{end}/{size}"}, end + 1 - start)
        self._body(_pieces(store, digest, start, end + 1), end + 1 - start)

    def _body(self, pieces: Iterator[bytes], length: int) -> None:
        if self.command == "HEAD":
            return
        try:
            # Never more than was said, so that the end of an answer is where the client looks for it.
            for piece in pieces:
                self.wfile.write(piece[:length])
                length -= len(piece)
        except LazyfsError as error:
            # It is too late for a status: the answer stays too short, and the client notices.
            log.warning("%s", error)

    def _refuse(self, status: int, code: str, error: LazyfsError) -> None:
        log.debug("%s %s: %s", self.command, self.path, error)
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._send(status, {"Content-Type": "application/json"}, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _reference(name: str, kind: str | None, tag_or_digest: str | None) -> Reference:
    """The image that a path names; of a blob the digest is the blob's own."""
    if name.partition("/")[0] not in HOSTS:
        raise UsageError(f"{name[:200]} is none of ours", hint=f"names here start with {' or '.join(HOSTS)}")
    text = tag_or_digest or DEFAULT_TAG
    separator = "@" if text.startswith("sha256:") else ":"
    if kind == "blobs" and separator == ":":
        raise UsageError(f"{text[:200]} is no digest")
    return parse_reference(f"docker://{name}{separator}{text}")


def _pieces(store: Store, digest: str, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, _PIECE):
        yield store.read(digest, at, min(_PIECE, end - at))
