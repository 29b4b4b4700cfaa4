"""Archives that are damaged, or made to do harm: each is refused in one line."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import (
    BadInputError,
    LazyfsError,
    LimitError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from lazyfs.formats.oci import Index
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import archive_file, load_image, parse_reference

from .archives import (
    CONFIG,
    GOOD,
    LAYERS,
    SAMPLE,
    Member,
    docker,
    files,
    item,
    link,
    manifest_json,
    oci,
    tar_of,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.tar"


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        (
            [*files(), ("../evil", b""), manifest_json(item())],
            BadInputError,
            "climbs out",
        ),
        ([*files(), *files(), manifest_json(item())], BadInputError, "two members config.json"),
        ([("/manifest.json", b"[]")], NotFoundError, "no manifest.json"),
        ([*files()[1:], manifest_json(item())], BadInputError, "there is no member config.json"),
        ([*files()[:2], manifest_json(item())], BadInputError, "there is no member name/layer.tar"),
        (
            [*files()[:2], link(LAYERS[1], "../../etc/passwd"), manifest_json(item())],
            BadInputError,
            "no member",
        ),
        ([*files()[:2], link(LAYERS[1], "/etc/passwd"), manifest_json(item())], BadInputError, "no member"),
        (
            [*files()[:2], link(LAYERS[1], "../x"), link("x", LAYERS[1]), manifest_json(item())],
            BadInputError,
            "in a circle",
        ),
        ([*files(), manifest_json(item(layers=LAYERS[:1]))], BadInputError, "1 layers, but the config has 2"),
        (
            [
                (CONFIG, SAMPLE.config.replace(sha256_digest(SAMPLE.layers[1]).encode(), b"x")),
                *files()[1:],
                manifest_json(item()),
            ],
            BadInputError,
            "rootfs.diff_ids",
        ),
        ([*files(), ("manifest.json", b"[")], BadInputError, "is not JSON"),
        ([*files(), ("manifest.json", b"{}")], BadInputError, "must be a list"),
        ([*files(), ("manifest.json", b'[{"Config": 1}]')], BadInputError, "must be a text"),
        ([*files(), ("manifest.json", b"[" * 100_000)], BadInputError, "nested"),
        ([*files(), ("manifest.json", b" " * (5 << 20))], LimitError, "limit"),
        ([*files(), manifest_json(item("App:v1"))], UsageError, "App"),
        ([*files()[:2], (LAYERS[1], b"\xfd7zXZ\x00"), manifest_json(item())], UnsupportedError, "xz"),
        ([], NotFoundError, "not a docker-archive"),
    ],
)
def test_what_is_no_docker_archive(
    path: Path, members: list[Member], error: type[LazyfsError], message: str
) -> None:
    path.write_bytes(tar_of(*members))
    with pytest.raises(error, match=message) as caught, docker(path) as store:
        store.resolve(None)
    assert "images.tar" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([("index.json", b"{}")], NotFoundError, "no oci-layout"),
        ([("oci-layout", b"{}"), ("index.json", b"{}")], BadInputError, "imageLayoutVersion"),
        (
            [("oci-layout", b'{"imageLayoutVersion": "2.0.0"}'), ("index.json", b"{}")],
            UnsupportedError,
            r"2\.0\.0",
        ),
        (
            [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", b"{}")],
            BadInputError,
            "schemaVersion",
        ),
        (
            [
                ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
                ("index.json", Index((SAMPLE.descriptor,)).to_bytes()),
            ],
            NotFoundError,
            SAMPLE.descriptor.digest,
        ),
    ],
)
def test_what_is_no_oci_archive(
    path: Path, members: list[Member], error: type[LazyfsError], message: str
) -> None:
    path.write_bytes(tar_of(*members))
    with pytest.raises(error, match=message) as caught, oci(path) as store:
        load_image(store, parse_reference(f"oci-archive:{path}"))
    assert "images.tar" in caught.value.message


def test_an_archive_of_the_other_kind_is_named(path: Path) -> None:
    path.write_bytes(GOOD)
    with pytest.raises(NotFoundError) as caught:
        oci(path)
    assert caught.value.hint == f"name it docker-archive:{path}"
    path.write_bytes(tar_of(("oci-layout", b"{}"), ("index.json", b"{}")))
    with pytest.raises(NotFoundError) as caught:
        docker(path)
    assert caught.value.hint == f"name it oci-archive:{path}"


def test_what_is_no_file_of_ours(path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"images\.tar"):
        docker(path)
    path.mkdir()
    with pytest.raises(StoreError, match="not a regular file"):
        docker(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a regular file"):
        docker(path)
    path.unlink()
    path.write_bytes(b"\x7fELF" + bytes(2000))
    with pytest.raises(BadInputError, match=r"images\.tar"):
        docker(path)
    for data, tool in [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz")]:
        path.write_bytes(data)
        with pytest.raises(UnsupportedError, match=tool):
            docker(path)


def test_two_layers_cannot_have_one_digest(path: Path) -> None:
    twice = json.loads(SAMPLE.config)
    twice["rootfs"]["diff_ids"][1] = twice["rootfs"]["diff_ids"][0]
    longer = SAMPLE.layers[1] + bytes(512)
    path.write_bytes(
        tar_of(
            (CONFIG, json.dumps(twice).encode()),
            (LAYERS[0], SAMPLE.layers[0]),
            (LAYERS[1], longer),
            manifest_json(item()),
        )
    )
    with pytest.raises(BadInputError, match="is two layers"):
        docker(path)


def test_a_sparse_member_is_refused(path: Path, tmp_path: Path) -> None:
    holes = tmp_path / CONFIG
    holes.touch()
    os.truncate(holes, 1 << 20)
    subprocess.run(["tar", "--sparse", "-cf", path, "-C", tmp_path, CONFIG], check=True)
    with pytest.raises(UnsupportedError, match="sparse"):
        docker(path)


def test_headers_without_end_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_MAX_HEADERS", 100 * 512)
    path.write_bytes(tar_of(*[(f"{number}", b"") for number in range(200)]))
    with pytest.raises(LimitError, match="headers"):
        docker(path)
    path.write_bytes(GOOD)
    os.truncate(path, 1 << 30)
    with pytest.raises(LimitError, match="headers"):
        docker(path)


def test_a_bomb_does_not_fill_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_FREE_SPOOL", 1 << 20)
    path.write_bytes(gzip.compress(tar_of(("zeros", bytes(16 << 20)))))
    with pytest.raises(LimitError, match="unpacks to more"):
        docker(path)


def test_a_file_that_shrinks_while_it_is_read(path: Path) -> None:
    path.write_bytes(GOOD)
    with docker(path) as store:
        layer = sha256_digest(SAMPLE.layers[1])
        os.truncate(path, 2000)
        with pytest.raises(StoreError, match="shrank"):
            store.read(layer, 0, len(SAMPLE.layers[1]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8)), max_size=6),
    st.data(),
)
def test_any_damage_is_an_error_of_ours(
    tmp_path: Path, edits: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    archive = bytearray(GOOD)
    for at, patch in edits:
        archive[at : at + len(patch)] = patch
    cut = data.draw(st.integers(0, len(archive)))
    path = tmp_path / "images.tar"
    path.write_bytes(archive[: cut or len(archive)])
    for store in (docker, oci):
        try:
            with store(path) as opened:
                image = load_image(opened, parse_reference(opened.url))
                for layer, _ in image.layers:
                    assert len(b"".join(opened.stream(layer.digest))) == layer.size
        except LazyfsError as error:
            assert "\n" not in error.message
