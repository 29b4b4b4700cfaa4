"""Real servers for tests of registries: Debian's docker-registry, a token server, certificates.

Each listens on a loopback port of its own and ends with its context.
"""

import base64
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="docker-registry is not installed"
)

USER, PASSWORD = "somebody", "correct horse"
BASIC = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
# bcrypt, the only kind that docker-registry takes
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"
_LISTENING = re.compile(rb"listening on [^ ]*:([0-9]+)")
_SERVICE, _ISSUER = "the registry", "the token server"


@dataclass
class Registry:
    """A running docker-registry; ``storage`` is where it keeps what it has."""

    host: str
    storage: Path
    log: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def uploads(self) -> list[Path]:
        """Uploads that were begun and neither finished nor given up."""
        # It leaves some debris of each, but never this file.
        return list(self.storage.glob("docker/registry/v2/repositories/**/_uploads/*/startedat"))


@contextmanager
def run_registry(
    directory: Path,
    *,
    auth: dict[str, Any] | None = None,
    tls: dict[str, Any] | None = None,
    port: int = 0,
) -> Iterator[Registry]:
    directory.mkdir(parents=True, exist_ok=True)
    storage = directory / "storage"
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "validation": {"manifests": {"urls": {"allow": [".*"]}}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "for tests", **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
    }
    path = directory / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = ["docker-registry", "serve", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        reader = None
        try:
            assert process.stderr is not None
            seen: list[bytes] = []
            for line in process.stderr:
                seen.append(line)
                if found := _LISTENING.search(line):
                    break
            else:
                raise AssertionError(b"".join(seen).decode())
            registry = Registry(f"127.0.0.1:{int(found[1])}", storage, seen)
            reader = threading.Thread(target=seen.extend, args=(process.stderr,))
            reader.start()
            yield registry
        finally:
            process.kill()
            if reader is not None:
                reader.join()


@dataclass(frozen=True)
class Certificate:
    path: Path
    key: Path


def openssl(*arguments: object, data: bytes = b"") -> bytes:
    command = ["openssl", *(str(argument) for argument in arguments)]
    return subprocess.run(command, input=data, check=True, capture_output=True, timeout=300).stdout


def make_authority(directory: Path, kind: str = "ec") -> Certificate:
    """A certificate authority, as two files."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Certificate(directory / "ca.crt", directory / "ca.key")
    algorithm = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else [kind]
    openssl(
        *("req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=authority of the tests"),
        *("-newkey", *algorithm, "-keyout", made.key, "-out", made.path),
    )
    return made


def issue(authority: Certificate, directory: Path, name: str) -> Certificate:
    """A certificate for 127.0.0.1, good for a server and for a client."""
    made = Certificate(directory / f"{name}.cert", directory / f"{name}.key")
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    openssl(
        *("req", "-new", "-nodes", "-subj", f"/CN={name}", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", made.key, "-out", request),
    )
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", request, "-CA", authority.path, "-CAkey", authority.key),
        *("-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", made.path),
    )
    return made


class TokenServer:
    """Gives RS256 tokens that docker-registry believes, to who knows the password or the refresh token."""

    refresh_token = "an identity token"

    def __init__(self, directory: Path) -> None:
        self._signer = make_authority(directory, "rsa:2048")
        der = openssl("x509", "-in", self._signer.path, "-outform", "DER")
        self._chain = [base64.b64encode(der).decode()]
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        self.actions = {"pull", "push"}
        self.url = ""

    def registry_auth(self) -> dict[str, Any]:
        bundle = str(self._signer.path)
        return {
            "token": {"realm": self.url, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": bundle}
        }

    @contextmanager
    def running(self) -> Iterator["TokenServer"]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fields = parse_qs(urlsplit(self.path).query)
                self._answer("GET", fields, self.headers.get("Authorization") == BASIC)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = parse_qs(body)
                known = fields["refresh_token"] == [outer.refresh_token]
                fields["scope"] = fields["scope"][0].split()
                self._answer("POST", fields, known and fields["grant_type"] == ["refresh_token"])

            def _answer(self, method: str, fields: dict[str, list[str]], known: bool) -> None:
                outer.requests.append((method, fields))
                body = outer.token(fields["scope"]) if known else b"{}"
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}/token"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def token(self, scopes: list[str]) -> bytes:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = sorted(self.actions & set(actions.split(",")))
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {"iss": _ISSUER, "sub": USER, "aud": _SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now}
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = f"{_packed(header)}.{_packed(claims | {'jti': 'x', 'access': access})}"
        signature = openssl("dgst", "-sha256", "-sign", self._signer.key, data=signed.encode())
        return json.dumps({"token": f"{signed}.{_base64url(signature)}", "expires_in": 300}).encode()


def _packed(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def skopeo(*arguments: str) -> bytes:
    return subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True, timeout=300
    ).stdout


def write_auth(path: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """A file of passwords as `skopeo login` writes it."""
    packed = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": packed}}}))
    return path
