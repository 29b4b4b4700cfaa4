"""A real S3 server on loopback for tests, with one bucket.

MinIO where it is installed (on PATH, or in .cache/tools: ``GOBIN=$PWD/.cache/tools go install
github.com/minio/minio@latest``); it checks signatures, regions and checksums. Elsewhere moto's server, which
does not, and is slower.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import IO, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from tests.faults import Reply, Seen

BUCKET = "lazyfs-images"
REGION = "eu-test-1"
ACCESS_KEY = "lazyfs-tests"
SECRET_KEY = "a-secret-that-no-message-may-hold"
_TOOLS = Path(__file__).parent.parent / ".cache" / "tools"


@dataclass(frozen=True)
class S3Server:
    url: str
    is_minio: bool
    boto: Any  # a client, for looking behind the back of what is tested

    def environment(self) -> dict[str, str]:
        """What a user of this server would have set."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }


@dataclass(frozen=True)
class S3Place:
    """A prefix in the bucket that nobody else uses; images go to the repository ``app`` below it."""

    server: S3Server
    prefix: str

    @property
    def location(self) -> str:
        return f"{BUCKET}/{self.prefix}/app"

    def objects(self) -> dict[str, Any]:
        """When each object was last written, by its key without the prefix, in order."""
        pages = self.server.boto.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"{self.prefix}/"
        )
        found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"].removeprefix(f"{self.prefix}/"): item["LastModified"] for item in found}

    def get(self, key: str) -> bytes:
        data = self.server.boto.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")["Body"].read()
        assert isinstance(data, bytes)
        return data

    def put(self, key: str, data: bytes) -> None:
        self.server.boto.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=data)


@contextmanager
def running_server(directory: Path) -> Iterator[S3Server]:
    minio = shutil.which("minio", path=f"{os.environ['PATH']}:{_TOOLS}")
    if minio:
        address = free_address()
        command = [minio, "server", "--address", address, str(directory)]
        ready, url = "API:", f"http://{address}"
    else:
        command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        ready, url = "Running on", ""
    environment = os.environ | {
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
        "MINIO_REGION": REGION,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = _line_with(process.stdout, ready)
            url = url or line.split()[-1]
            session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
            # moto hands out the checksum of a multipart upload's parts as that of the copied object's bytes.
            config = Config(response_checksum_validation="when_required")
            client = session.client("s3", endpoint_url=url, config=config)
            client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
            yield S3Server(url, bool(minio), client)
        finally:
            process.terminate()


def _line_with(output: IO[str], text: str) -> str:
    """Read up to the line that has ``text``; what follows is read away, so that the pipe never fills."""
    said: list[str] = []
    for line in output:
        said.append(line)
        if text in line:
            threading.Thread(target=output.read, daemon=True).start()
            return line
    raise AssertionError(f"the server ended: {''.join(said)}")


def free_address() -> str:
    """For a server that is told where to listen; nobody else is given the port of an address that nobody else uses."""
    host = f"127.{randrange(1, 256)}.{randrange(256)}.{randrange(1, 255)}"
    with socket.create_server((host, 0)) as server:
        return f"{host}:{server.getsockname()[1]}"


def forward(server: S3Server) -> Callable[[Seen], Reply]:
    """A script for `FaultServer` that lets the real server answer.

    Signatures hold, since what is signed names the FaultServer as the host.
    """

    def answer(request: Seen) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        connection.request(request.method, request.target, request.body, request.headers)
        response = connection.getresponse()
        body = response.read()
        headers = {
            name.title(): value
            for name, value in response.getheaders()
            if name.lower() not in ("connection", "transfer-encoding")
        }
        connection.close()
        return Reply(response.status, headers, body)

    return answer
