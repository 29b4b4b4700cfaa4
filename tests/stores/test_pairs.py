"""From every kind of store to every other: converted there, proved, and copied on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from converter import Settings, check_image, convert_image, copy_tree
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import Reference, load_image, open_store, parse_reference
from tests.layouts import put_image
from tests.registry import Registry, needs_registry, run_registry
from tests.s3server import S3Place
from tests.trees import Entry, layer_tar

from .samples import make_sample, put_sample

KINDS = ["oci", "oci-archive", "docker-archive", "s3", pytest.param("docker", marks=needs_registry)]

Naming = Callable[[str, str], Reference]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def named(tmp_path: Path, s3: S3Place, request: pytest.FixtureRequest) -> Naming:
    """A reference to an image of that name in a store of that kind."""

    def named(kind: str, name: str) -> Reference:
        if kind == "docker":
            # A repository of its own for each test, so that no layer was converted already.
            host, mark = request.getfixturevalue("registry").host, sha256_digest(str(tmp_path).encode())[7:15]
            return parse_reference(f"docker://{host}/{mark}/{name}:v1")
        texts = {
            "oci": f"oci:{tmp_path}/{name}:v1",
            "oci-archive": f"oci-archive:{tmp_path}/{name}.oci.tar:v1",
            "docker-archive": f"docker-archive:{tmp_path}/{name}.docker.tar:{name}:v1",
            "s3": f"s3://{s3.location}/{name}:v1",
        }
        return parse_reference(texts[kind])

    return named


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_an_image_is_converted_from_store_to_store(source: str, target: str, named: Naming) -> None:
    plain, lazy, copied = named(source, "plain"), named(target, "lazy"), named(source, "copied")
    sample = make_sample("a")
    with open_store(plain, create=True) as store:
        put_sample(store, sample, plain.tag_to_write())
    with open_store(plain) as from_store, open_store(lazy, create=True) as to_store:
        report = convert_image(from_store, plain, to_store, lazy, Settings())
    with open_store(lazy) as store:
        assert check_image(store, lazy).total("layers") == len(sample.layers)
        assert store.resolve(lazy.tag).digest == report.digest
        assert load_image(store, lazy).manifest.config.digest == sha256_digest(sample.config)
        with open_store(copied, create=True) as copy:
            copy.put_tag(copied.tag_to_write(), copy_tree(store, store.resolve(lazy.tag), copy))
    with open_store(copied) as store:
        assert store.resolve(copied.tag).digest == report.digest
        check_image(store, copied)


def test_the_command_line_converts_into_a_bucket(named: Naming, s3: S3Place) -> None:
    plain, lazy = named("docker-archive", "plain"), named("s3", "lazy")
    with open_store(plain, create=True) as store:
        put_sample(store, make_sample("a"), plain.tag_to_write())

    def lazyfs(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "lazyfs.cli.main", *arguments, "--json"]
        ended = subprocess.run(command, check=True, capture_output=True, timeout=300, env=os.environ)
        answer = json.loads(ended.stdout)
        assert isinstance(answer, dict)
        return answer

    def blobs() -> dict[str, object]:
        return {key: written for key, written in s3.objects().items() if "blobs" in key}

    first = lazyfs("convert", str(plain), str(lazy))
    before = blobs()
    again = lazyfs("convert", str(plain), str(lazy))
    assert first["digest"] == again["digest"]
    assert before == blobs()
    assert lazyfs("check", str(lazy))["layers"] == 2


@pytest.mark.parametrize("target", ["s3", pytest.param("docker", marks=needs_registry)])
def test_no_scratch_where_the_destination_takes_a_stream(target: str, named: Naming, tmp_path: Path) -> None:
    """The kernel refuses the converter every file of more than 64 KiB, one without a name as well."""
    stream = layer_tar([Entry(b"large", content=Random(1).randbytes(40_000_000))])
    source, lazy = put_image(tmp_path / "source", [stream]), str(named(target, "lazy"))
    command = [sys.executable, "-B", "-m", "lazyfs.cli.main", "convert", "--json", source, lazy]
    # Before exec, and for good: nothing that runs then can take it back.
    limited = ["prlimit", f"--fsize={1 << 16}", *command]
    ended = subprocess.run(limited, check=False, capture_output=True, timeout=300, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["layers"][0]["size"] > 40_000_000
    with open_store(parse_reference(lazy)) as store:
        assert check_image(store, parse_reference(lazy)).total("layers") == 1
