"""An image layout served as a registry, by nginx: a server that is never in the way of the readers that are measured.

docker-registry gives about 250 small ranges a second, nginx as many as a client can ask for: 116 KB in 0.2 ms. With
`tcp_nopush` a third of the answers come 44 ms late on loopback, whose segments are as large as 64 KB. The layout is
served as it was at the start: documents by tag and digest, blobs in ranges, referrers of what the layout's index names.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lazyfs.bench.processes import UNTIL_WE_END
from lazyfs.errors import NodeError
from lazyfs.formats.oci_types import OCI_INDEX, OCI_MANIFEST, REF_NAME_ANNOTATION

_START_SECONDS = 10.0
_PAUSE = 0.02
_NGINX = """
daemon off;
user root;
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    etag off;
    open_file_cache max=10000 inactive=1h;
    client_body_temp_path {root}/tmp; proxy_temp_path {root}/tmp; fastcgi_temp_path {root}/tmp;
    uwsgi_temp_path {root}/tmp; scgi_temp_path {root}/tmp;
    types {{ }}
    default_type application/octet-stream;
    map_hash_bucket_size 512;
    map $uri $document_type {{ default {manifest}; {types} }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root}/tree;
        location = /v2/ {{ return 200; }}
        location ~ /manifests/ {{ default_type ""; add_header Content-Type $document_type; }}
        location ~ /referrers/ {{ default_type {index}; error_page 404 =200 /no-referrers; }}
        location = /no-referrers {{ default_type {index}; }}
    }}
}}
"""


@contextmanager
def serve_layout(layout: Path, name: str) -> Iterator[str]:
    """HOST:PORT of a registry that has the layout's images as NAME:TAG, for as long as the context lasts."""
    root = Path(tempfile.mkdtemp(prefix="lazyfs-blobs-"))
    try:
        types = _link_tree(layout.absolute(), root / "tree", name)
        (root / "tmp").mkdir()
        port = _free_port()
        config = root / "nginx.conf"
        config.write_text(
            _NGINX.format(root=root, port=port, manifest=OCI_MANIFEST, index=OCI_INDEX, types=" ".join(types))
        )
        command = [*UNTIL_WE_END, find_nginx(), "-c", str(config), "-e", str(root / "error.log")]
        with subprocess.Popen(command) as process:
            try:
                _await(f"http://127.0.0.1:{port}/v2/", process, root / "error.log")
                yield f"127.0.0.1:{port}"
            finally:
                process.terminate()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def find_nginx() -> str:
    """The program; NodeError where there is none."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise NodeError(
            "nginx is not here, which serves the images that are measured", hint="apt-get install nginx-light"
        )
    return found


def _link_tree(layout: Path, tree: Path, name: str) -> list[str]:
    """The registry's paths as links into the layout; returns nginx's map of the types of indexes."""
    repository = tree / "v2" / name
    for kind in ("blobs", "manifests", "referrers"):
        (repository / kind).mkdir(parents=True)
    (tree / "no-referrers").write_text(_index([]))
    for blob in (layout / "blobs" / "sha256").iterdir():
        (repository / "blobs" / f"sha256:{blob.name}").symlink_to(blob)
    types: list[str] = []
    referrers: dict[str, list[dict[str, Any]]] = {}
    waiting = json.loads((layout / "index.json").read_bytes())["manifests"]
    while waiting:
        entry = waiting.pop()
        digest, media_type = entry["digest"], entry["mediaType"]
        blob = layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
        document = json.loads(blob.read_bytes())
        tag = entry.get("annotations", {}).get(REF_NAME_ANNOTATION)
        for reference in filter(None, (digest, tag)):
            path = repository / "manifests" / reference
            with suppress(FileExistsError):
                path.symlink_to(blob)
                if media_type != OCI_MANIFEST:
                    types.append(f'"/{path.relative_to(tree)}" {media_type};')
        waiting += document.get("manifests", [])
        if subject := document.get("subject"):
            kept = {key: entry[key] for key in ("mediaType", "digest", "size")}
            kept["artifactType"] = document.get("artifactType") or document["config"]["mediaType"]
            kept["annotations"] = document.get("annotations", {})
            if kept not in referrers.setdefault(subject["digest"], []):
                referrers[subject["digest"]].append(kept)
    for digest, entries in referrers.items():
        (repository / "referrers" / digest).write_text(_index(entries))
    return types


def _index(manifests: list[dict[str, Any]]) -> str:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"nginx does not answer: {log.read_text()}") from error
            time.sleep(_PAUSE)
