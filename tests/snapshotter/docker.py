"""Docker Engine in front of a containerd of its own, driven by its HTTP API."""

import base64
import http.client
import io
import json
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.engines import docker
from tests.waiting import wait_until

from .engine import TIMEOUT, Engine

_HEADER = 8  # of each piece of a container's output


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


class Docker:
    """A running dockerd."""

    def __init__(self, socket_path: Path, log: Path) -> None:
        self._socket = socket_path
        self._log = log

    def call(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
        """The answer's JSON; of a stream of them a list; the answer itself where it is neither."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
        connection = _Connection(self._socket)
        connection.request(method, path, data, {"Content-Type": kind, **(headers or {})})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        log = self._log.read_text()[-2000:] if answer.status >= 400 else ""
        assert answer.status < 400, f"{method} {path}: {answer.status} {content.decode()}\n{log}"
        lines = [line for line in content.splitlines() if line.strip()]
        try:
            values = [json.loads(line) for line in lines]
        except ValueError:
            return content
        for value in values:
            assert not isinstance(value, dict) or "error" not in value, f"{method} {path}: {value}"
        return values[0] if len(values) == 1 else values

    def pull(self, name: str, tag: str) -> list[dict[str, Any]]:
        answer = self.call("POST", "/images/create?" + urlencode({"fromImage": name, "tag": tag}))
        assert isinstance(answer, list)
        return answer

    def push(self, name: str, tag: str) -> None:
        nobody = base64.urlsafe_b64encode(b"{}").decode()
        path = f"/images/{quote(name)}/push?tag={tag}"
        self.call("POST", path, headers={"X-Registry-Auth": nobody})

    def create(self, image: str, *words: str, **config: Any) -> str:
        """A container that is not started; its id."""
        host = {"NetworkMode": "host"}
        body = {"Image": image, "HostConfig": host, **({"Cmd": list(words)} if words else {}), **config}
        identity: str = self.call("POST", "/containers/create", body)["Id"]
        return identity

    def start(self, identity: str) -> tuple[int, str]:
        """Start, and wait for its end; its exit code and all that it said."""
        self.call("POST", f"/containers/{identity}/start")
        code: int = self.call("POST", f"/containers/{identity}/wait")["StatusCode"]
        said = self.call("GET", f"/containers/{identity}/logs?stdout=1&stderr=1")
        if not isinstance(said, bytes):
            return code, ""
        text = b""
        while said:
            length = int.from_bytes(said[4:_HEADER], "big")
            text += said[_HEADER : _HEADER + length]
            said = said[_HEADER + length :]
        return code, text.decode()

    def remove(self, identity: str) -> None:
        self.call("DELETE", f"/containers/{identity}?force=1")

    def run(self, image: str, *words: str) -> str:
        """What it says, and it ends well."""
        identity = self.create(image, *words)
        code, said = self.start(identity)
        assert code == 0, said
        self.remove(identity)
        return said

    def build(self, dockerfile: str, tag: str, files: dict[str, bytes] | None = None) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in {"Dockerfile": dockerfile.encode(), **(files or {})}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        query = urlencode({"t": tag, "networkmode": "host", "version": "1"})
        self.call("POST", f"/build?{query}", buffer.getvalue())


@contextmanager
def running_docker(directory: Path, engine: Engine, *options: str) -> Iterator[Docker]:
    program = docker() / "dockerd"
    directory.mkdir(exist_ok=True)
    path, log_path = directory / "d.sock", directory / "log"
    (directory / "daemon.json").write_text("{}")
    command: list[str | Path] = [
        *(program, "-H", f"unix://{path}", "--containerd", engine.socket, "--pidfile", directory / "pid"),
        *("--config-file", directory / "daemon.json"),
        *("--data-root", directory / "data", "--exec-root", directory / "exec", "--bridge", "none"),
        *("--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--storage-driver", "lazyfs"),
        *("--feature", "containerd-snapshotter=true", *options),
    ]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: b"API listen on" in log_path.read_bytes() or process.poll() is not None, "dockerd")
        assert process.poll() is None, log_path.read_text()
        yield Docker(path, log_path)
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        for entry in list_mounts(directory):
            unmount(entry.target, detach=True)
