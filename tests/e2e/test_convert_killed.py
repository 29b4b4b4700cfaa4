"""Conversions that are killed, lose their network or meet each other: the next run finishes, and nothing is wrong."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from converter import Settings, convert_image
from lazyfs.errors import StoreError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import StoreOptions, open_store, parse_reference
from lazyfs.stores._files import TEMP_PREFIX
from tests.faults import RESET, FaultServer, Reply, Seen
from tests.layouts import put_image
from tests.registry import Registry, needs_registry, run_registry
from tests.s3server import BUCKET, S3Server, forward, running_server
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

from .conftest import ENVIRONMENT, PATIENCE, lazyfs, succeed

LAYERS = 3
KILLS = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Layers that take a while each: 10 MB that do not compress, so that uploads go in chunks."""
    layers = [
        layer_tar(
            [Entry(b"%d/%d" % (n, m), content=Random(10 * n + m).randbytes(1_000_000)) for m in range(10)]
        )
        for n in range(LAYERS)
    ]
    return put_image(tmp_path_factory.mktemp("source"), layers)


class Place:
    """A destination, and what can be seen behind its back."""

    def __init__(self, reference: str, blobs: Callable[[], dict[str, bytes]]) -> None:
        self.reference = reference
        self.blobs = blobs
        """By the digests under which they are shown."""

    def check(self) -> None:
        """A registry may still be writing down what it was sent last."""
        wait_until(lambda: self._wrong() == [], "each blob to be what its name says")

    def _wrong(self) -> list[str]:
        return [digest for digest, data in self.blobs().items() if sha256_digest(data) != digest]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands, and for stores that the test opens itself."""
    for name, value in bucket.environment().items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["oci", pytest.param("docker", marks=needs_registry), "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    name = os.urandom(4).hex()
    if request.param == "oci":
        layout = tmp_path / "lazy"
        return Place(
            f"oci:{layout}:v1",
            lambda: {f"sha256:{path.name}": path.read_bytes() for path in layout.glob("blobs/sha256/*")},
        )
    if request.param == "docker":
        registry: Registry = request.getfixturevalue("registry")
        return Place(f"docker://{registry.host}/{name}:v1", lambda: blobs_of_registry(registry))
    bucket: S3Server = request.getfixturevalue("bucket")
    request.getfixturevalue("s3_environment")
    return Place(f"s3://{BUCKET}/{name}/app:v1", lambda: blobs_of_bucket(bucket, f"{name}/blobs/sha256/"))


def blobs_of_registry(registry: Registry) -> dict[str, bytes]:
    files = registry.storage.glob("docker/registry/v2/blobs/sha256/*/*/data")
    return {f"sha256:{path.parent.name}": path.read_bytes() for path in files}


def blobs_of_bucket(bucket: S3Server, prefix: str) -> dict[str, bytes]:
    listed = bucket.boto.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return {
        "sha256:" + item["Key"].removeprefix(prefix): bucket.boto.get_object(Bucket=BUCKET, Key=item["Key"])[
            "Body"
        ].read()
        for item in listed
    }


def started(source: str, target: str, *options: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "lazyfs.cli.main", "convert", *options, source, target]
    return subprocess.Popen(
        words,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def converted(source: str, target: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(succeed(lazyfs("convert", "--json", source, target)).stdout)
    return values


def test_killed_at_random_moments(source: str, place: Place, tmp_path: Path) -> None:
    other = "--chunk-size=256"  # so that nothing of it is used again
    began = time.monotonic()
    with started(source, place.reference + "-measured", other) as process:
        assert process.wait(PATIENCE) == 0
    duration = time.monotonic() - began
    rng = Random(os.urandom(8))
    finished = False
    for _ in range(KILLS):
        with started(source, place.reference) as process:
            try:
                finished = process.wait(rng.uniform(0.2, 0.7) * duration) == 0
            except subprocess.TimeoutExpired:
                process.kill()
        place.check()
        if finished:
            break
        if lazyfs("inspect", place.reference).returncode != 3:
            # Killed when all was done: a tag is never that of half an image.
            succeed(lazyfs("check", place.reference))
            break
    result = converted(source, place.reference)
    assert result["digest"] == converted(source, f"oci:{tmp_path}/whole:v1")["digest"]
    place.check()
    succeed(lazyfs("check", place.reference, "--against", source))
    assert not list(tmp_path.rglob(f"{TEMP_PREFIX}*"))


def test_a_second_run_uses_the_layers_of_the_first(source: str, place: Place) -> None:
    """Killed when its second layer is done."""
    with started(source, place.reference) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("layer 2/"):
                break
        process.kill()
    place.check()
    result = converted(source, place.reference)
    assert [layer["reused"] for layer in result["layers"]][:2] == [True, True]
    succeed(lazyfs("check", place.reference, "--against", source))
    again = converted(source, place.reference)
    assert again["digest"] == result["digest"]
    assert all(layer["reused"] for layer in again["layers"])


def test_two_runs_at_once(source: str, place: Place, request: pytest.FixtureRequest) -> None:
    if place.reference.startswith("s3:"):
        bucket: S3Server = request.getfixturevalue("bucket")
        if not bucket.is_minio:
            pytest.skip("moto answers 500 to writers of one object; MinIO is not here")
    with ExitStack() as stack:
        runs = [stack.enter_context(started(source, place.reference, "--json")) for _ in range(3)]
        ends = [run.communicate(timeout=2 * PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], [said for _, said in ends]
    assert len({json.loads(said)["digest"] for said, _ in ends}) == 1
    place.check()
    succeed(lazyfs("check", place.reference, "--against", source))


@pytest.mark.usefixtures("s3_environment")
def test_a_network_that_breaks_in_the_middle(source: str, bucket: S3Server) -> None:
    """For good after two layers; then it comes back."""
    right = forward(bucket)
    sent: dict[str, int] = {}  # by what it is of: what is sent again counts once

    def script(request: Seen) -> Reply:
        sent[request.target] = len(request.body)
        return RESET if sum(sent.values()) > 25_000_000 else right(request)

    name = os.urandom(4).hex()
    plain, target = parse_reference(source), parse_reference(f"s3://{BUCKET}/{name}/app:v1")
    with (
        FaultServer(script) as proxy,
        open_store(plain) as from_store,
        open_store(target, create=True, options=StoreOptions(endpoint_url=proxy.url, timeout=8)) as to_store,
        pytest.raises(StoreError, match="did not answer"),
    ):
        convert_image(from_store, plain, to_store, target, Settings())
    for digest, data in blobs_of_bucket(bucket, f"{name}/blobs/sha256/").items():
        assert sha256_digest(data) == digest
    with open_store(target) as store:
        assert store.tags() == [tag for tag in store.tags() if tag.startswith("sha256-")]
    report = converted(source, str(target))
    assert [layer["reused"] for layer in report["layers"]] == [True, True, False]
    succeed(lazyfs("check", str(target), "--against", source))
