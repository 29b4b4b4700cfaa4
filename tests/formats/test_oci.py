"""OCI documents: round trips without loss, and nothing but our errors for what a stranger wrote."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, LazyfsError, LimitError, UnsupportedError
from lazyfs.formats import oci_types
from lazyfs.formats.oci import (
    ImageConfig,
    Index,
    Manifest,
    pair_layers,
    parse_config,
    parse_document,
    parse_index,
    parse_manifest,
)
from lazyfs.formats.oci_descriptor import (
    MAX_TOC,
    Descriptor,
    Platform,
    TocLocation,
    parse_digest,
    sha256_digest,
)
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_LAYER_ZSTD, TOC_ANNOTATION, layer_compression

DIGEST = sha256_digest(b"")

# A loaded machine is no failure.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
filled_words = words.filter(bool)
word_maps = st.dictionaries(words, words, max_size=3)
word_lists = st.lists(words, max_size=3).map(tuple)
sizes = st.integers(0, 2**63 - 1)
digests = st.binary(max_size=8).map(sha256_digest)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(words, below, max_size=3),
    max_leaves=8,
)
# Keys that no specification knows: a value must carry them along.
extras = st.dictionaries(words.map(lambda word: f"x-{word}"), json_values, max_size=2)
platforms = st.builds(
    Platform,
    architecture=words,
    os=words,
    variant=words,
    os_version=words,
    os_features=word_lists,
    extra=extras,
)
descriptors = st.builds(
    Descriptor,
    media_type=filled_words,
    digest=digests,
    size=sizes,
    annotations=word_maps,
    platform=st.none() | platforms,
    artifact_type=words,
    extra=extras,
)
manifests = st.builds(
    Manifest,
    config=descriptors,
    layers=st.lists(descriptors, max_size=3).map(tuple),
    media_type=st.sampled_from(sorted(oci_types.MANIFEST_TYPES)),
    annotations=word_maps,
    artifact_type=words,
    subject=st.none() | descriptors,
    extra=extras,
)
indexes = st.builds(
    Index,
    manifests=st.lists(descriptors, max_size=3).map(tuple),
    media_type=st.sampled_from(sorted(oci_types.INDEX_TYPES)),
    annotations=word_maps,
    artifact_type=words,
    subject=st.none() | descriptors,
    extra=extras,
)
name_sets = st.sets(words, max_size=3).map(lambda names: tuple(sorted(names)))
configs = st.builds(
    ImageConfig,
    diff_ids=st.lists(digests, max_size=3).map(tuple),
    architecture=words,
    os=words,
    variant=words,
    entrypoint=word_lists,
    cmd=word_lists,
    env=word_lists,
    working_dir=words,
    user=words,
    labels=word_maps,
    stop_signal=words,
    volumes=name_sets,
    exposed_ports=name_sets,
    extra=extras,
)
documents: st.SearchStrategy[tuple[Callable[[bytes], Any], Any]] = st.one_of(
    st.tuples(st.just(parse_manifest), manifests),
    st.tuples(st.just(parse_index), indexes),
    st.tuples(st.just(parse_document), manifests | indexes),
    st.tuples(st.just(parse_config), configs),
)


def manifest_json(**changes: Any) -> dict[str, Any]:
    layer = Descriptor(OCI_LAYER_ZSTD, DIGEST, 7)
    manifest = Manifest(Descriptor(OCI_CONFIG, DIGEST, 3), (layer, layer, layer)).to_json()
    return manifest | changes


def config_json(**changes: Any) -> dict[str, Any]:
    return ImageConfig((DIGEST,), cmd=("sh",), labels={"a": "b"}).to_json() | changes


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@calm
@given(documents)
def test_a_value_survives_its_bytes(case: tuple[Callable[[bytes], Any], Any]) -> None:
    parse, value = case
    data = value.to_bytes()
    assert parse(data) == value
    assert parse(data).to_bytes() == data


@calm
@given(documents, st.data())
def test_a_document_is_rewritten_without_loss(
    case: tuple[Callable[[bytes], Any], Any], data: st.DataObject
) -> None:
    parse, value = case
    tree = value.to_json()
    # Anything optional may also be null or empty, and keep being so.
    for key in data.draw(st.sets(st.sampled_from(["annotations", "artifactType", "subject", "config"]))):
        if key not in tree:
            tree[key] = None
    assert json.loads(parse(encoded(tree)).to_bytes()) == tree


def test_null_and_empty_fields_of_real_images_are_kept() -> None:
    tree = config_json(
        config={
            "Cmd": ["sh"],
            "Entrypoint": None,
            "Volumes": None,
            "OnBuild": [],
            "Labels": {},
            "Healthcheck": {},
        },
        history=[{"created_by": "COPY . /", "empty_layer": True}],
        created="2024-01-01T00:00:00Z",
    )
    config = parse_config(encoded(tree))
    assert (config.cmd, config.entrypoint, config.volumes) == (("sh",), (), ())
    assert json.loads(config.to_bytes()) == tree
    assert json.loads(replace(config, entrypoint=("/init",)).to_bytes())["config"]["Entrypoint"] == ["/init"]


@calm
@given(st.binary(max_size=200) | json_values.map(encoded))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    for parse in (parse_manifest, parse_index, parse_document, parse_config):
        try:
            parse(data)
        except LazyfsError as error:
            assert "\n" not in error.message


@calm
@given(documents, json_values, st.data())
def test_a_document_with_one_strange_field_gives_a_value_or_our_error(
    case: tuple[Callable[[bytes], Any], Any], strange: Any, data: st.DataObject
) -> None:
    parse, value = case
    tree = json.loads(value.to_bytes())
    spots: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        spots += [(node, key) for key in keys]
        todo += [node[key] for key in keys if isinstance(node[key], dict | list) and node[key]]
    node, key = data.draw(st.sampled_from(spots))
    node[key] = strange
    try:
        parsed = parse(encoded(tree))
    except LazyfsError as error:
        assert "\n" not in error.message
    else:
        assert parse(parsed.to_bytes()) == parsed


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (manifest_json(layers=[{"mediaType": "a", "digest": DIGEST, "size": -1}]), "manifest.layers[0].size"),
        (
            manifest_json(layers=[{"mediaType": "a", "digest": DIGEST, "size": True}]),
            "manifest.layers[0].size",
        ),
        (
            manifest_json(layers=[{"mediaType": "a", "digest": DIGEST, "size": 1e3}]),
            "manifest.layers[0].size",
        ),
        (
            manifest_json(layers=[{"mediaType": "a", "digest": DIGEST, "size": 2**63}]),
            "manifest.layers[0].size",
        ),
        (
            manifest_json(layers=[{"mediaType": "a", "digest": "sha256:ab", "size": 1}]),
            "manifest.layers[0].digest",
        ),
        (manifest_json(layers=[{"mediaType": "a", "digest": DIGEST}]), "manifest.layers[0].size"),
        (manifest_json(layers=[{"digest": DIGEST, "size": 1}]), "manifest.layers[0].mediaType"),
        (manifest_json(layers=["x"]), "manifest.layers[0]"),
        (manifest_json(layers={}), "manifest.layers"),
        (manifest_json(config=[]), "manifest.config"),
        (manifest_json(annotations={"a": 1}), "manifest.annotations.a"),
        (manifest_json(annotations={"a": "b\0c"}), "manifest.annotations.a"),
        (manifest_json(annotations={"two\nlines": 1}), "manifest.annotations['two\\nlines']"),
        (manifest_json(schemaVersion=3), "manifest.schemaVersion"),
        (manifest_json(schemaVersion="2"), "manifest.schemaVersion"),
        (manifest_json(mediaType="text/plain"), "manifest.mediaType"),
        (manifest_json(mediaType=oci_types.OCI_INDEX), "manifest.mediaType"),
        (manifest_json(manifests=[]), "manifest.manifests"),
        ({"schemaVersion": 2}, "manifest.layers"),
        ([], "manifest"),
    ],
)
def test_a_bad_manifest_is_named_by_its_field(tree: Any, path: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_manifest(encoded(tree))
    assert caught.value.message.startswith(f"{path} ")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (config_json(rootfs=None), "config.rootfs"),
        (config_json(rootfs={"type": "tree", "diff_ids": []}), "config.rootfs.type"),
        (config_json(rootfs={"type": "layers"}), "config.rootfs.diff_ids"),
        (config_json(rootfs={"type": "layers", "diff_ids": [DIGEST, 5]}), "config.rootfs.diff_ids[1]"),
        (
            config_json(rootfs={"type": "layers", "diff_ids": ["sha256:" + "A" * 64]}),
            "config.rootfs.diff_ids[0]",
        ),
        (config_json(config={"Entrypoint": "sh -c"}), "config.config.Entrypoint"),
        (config_json(config={"Env": [None]}), "config.config.Env[0]"),
        (config_json(config={"Volumes": {"/data": 5}}), "config.config.Volumes./data"),
        (config_json(config={"Env": ["A=\0"]}), "config.config.Env[0]"),
        ({}, "config.rootfs"),
    ],
)
def test_a_bad_config_is_named_by_its_field(tree: Any, path: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config(encoded(tree))
    assert caught.value.message.startswith(f"{path} ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"schemaVersion": 2, "schemaVersion": 2}', "'schemaVersion' 2 times"),
        (b'{"schemaVersion": NaN}', "not JSON"),
        (b'{"schemaVersion": 1e999}', "not JSON"),
        (b'{"schemaVersion": 1', "not JSON"),
        (b'{"schemaVersion": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"mediaType": "\\ud800"}', "not UTF-8"),
        (b'{"mediaType": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"schemaVersion": 2}', "not JSON"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper"),
        (b"", "not JSON"),
        (b"null", "must be an object, not null"),
    ],
)
def test_json_that_can_be_read_in_two_ways_or_not_at_all(data: bytes, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        parse_manifest(data)


def test_a_document_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(LimitError, match="4194304"):
        parse_manifest(b" " * (4 << 20) + b"{}")
    with pytest.raises(LimitError):
        parse_config(encoded(config_json()), limit=10)


def test_what_is_not_supported_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError) as schema1:
        parse_document(b'{"schemaVersion": 1, "name": "busybox", "fsLayers": []}')
    assert "skopeo" in schema1.value.hint
    with pytest.raises(UnsupportedError, match=r"manifest.config.digest is a 'sha512' digest"):
        parse_manifest(
            encoded(manifest_json(config={"mediaType": "a", "digest": f"sha512:{'0' * 128}", "size": 1}))
        )
    with pytest.raises(UnsupportedError):
        layer_compression("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")


def test_an_index_and_a_manifest_are_told_apart() -> None:
    index = Index((Descriptor(oci_types.OCI_MANIFEST, DIGEST, 1),)).to_json()
    manifest = manifest_json()
    del index["mediaType"], manifest["mediaType"]
    assert isinstance(parse_document(encoded(index)), Index)
    assert isinstance(parse_document(encoded(manifest)), Manifest)
    with pytest.raises(BadInputError, match=r"^index\.layers"):
        parse_document(encoded(index | {"layers": []}))


def test_docker_documents_are_read() -> None:
    tree = manifest_json(mediaType=oci_types.DOCKER_MANIFEST)
    tree["config"]["mediaType"] = oci_types.DOCKER_CONFIG
    for layer in tree["layers"]:
        layer["mediaType"] = oci_types.DOCKER_LAYER_GZIP
    manifest = parse_manifest(encoded(tree))
    assert manifest.is_image()
    assert [layer_compression(layer.media_type) for layer in manifest.layers] == ["gzip"] * 3


def test_layers_and_diff_ids_must_be_as_many() -> None:
    manifest = parse_manifest(encoded(manifest_json()))
    with pytest.raises(BadInputError, match=r"has 3 layers, but config.rootfs.diff_ids has 1"):
        pair_layers(manifest, parse_config(encoded(config_json())))
    assert len(pair_layers(manifest, ImageConfig((DIGEST,) * 3))) == 3


@pytest.mark.parametrize("text", ["", "sha256", f"sha256:{'g' * 64}", f"{DIGEST}\n", f"sha256:../{'a' * 61}"])
def test_a_digest_that_is_none(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_digest(text)


def test_a_digest_gives_its_hex() -> None:
    assert parse_digest(DIGEST) == DIGEST.removeprefix("sha256:")


@calm
@given(st.integers(0, 2**62), st.integers(1, MAX_TOC), st.binary(min_size=32, max_size=32).map(bytes.hex))
def test_a_toc_location_survives_its_text(offset: int, length: int, sha256: str) -> None:
    location = TocLocation(offset, length, sha256)
    assert TocLocation.parse(location.format()) == location


@calm
@given(words | st.from_regex(r"[0-9]{0,22}:[0-9]{0,22}:[0-9a-f]{62,66}"))
def test_any_toc_location_is_in_bounds_or_our_error(text: str) -> None:
    try:
        location = TocLocation.parse(text)
    except (BadInputError, LimitError):
        return
    assert 0 < location.length <= MAX_TOC
    assert location.format() == text


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (f"0:{MAX_TOC + 1}:{'0' * 64}", LimitError),
        (f"9223372036854775807:2:{'0' * 64}", LimitError),
        (f"0:0:{'0' * 64}", BadInputError),
        (f"01:1:{'0' * 64}", BadInputError),
        (f"-1:1:{'0' * 64}", BadInputError),
        (f"١:1:{'0' * 64}", BadInputError),
        (f"95:6:{'0' * 64}", BadInputError),
    ],
)
def test_a_toc_location_out_of_bounds(value: str, error: type[LazyfsError]) -> None:
    layer = Descriptor(OCI_LAYER_ZSTD, DIGEST, 100, annotations={TOC_ANNOTATION: value})
    with pytest.raises(error):
        layer.toc_location()


def test_the_toc_of_a_layer() -> None:
    layer = Descriptor(OCI_LAYER_ZSTD, DIGEST, 100)
    assert layer.toc_location() is None
    location = TocLocation(94, 6, "0" * 64)
    assert replace(layer, annotations={TOC_ANNOTATION: location.format()}).toc_location() == location
