"""An image that says it has the layers of another, and has other files."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.formats import toc
from lazyfs.formats.oci_descriptor import Descriptor, TocLocation
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_MANIFEST, TOC_ANNOTATION
from lazyfs.formats.seekable import SKIPPABLE_MAGIC_TOC, skippable_frame
from lazyfs.node.layers import load_toc
from lazyfs.stores import Image, LayoutStore, load_image, parse_reference, write_blob
from tests.registry import Registry, needs_registry, skopeo
from tests.waiting import wait_until

from .client import Service
from .engine import Engine, layers, push
from .test_remote import layers_of, offer_all

pytestmark = needs_registry

HONEST = b"honest\n"
HOSTILE = b"hostile\n"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("claims") / "images"


@pytest.fixture(scope="module")
def honest(layout: Path, registry: Registry) -> str:
    return push(layout, registry.host, "honest", layers(3, HONEST))


@pytest.fixture(scope="module")
def hostile(layout: Path, registry: Registry, honest: str) -> str:
    """Its manifest names its own layers, their TOCs name the DiffIDs of the honest one, and so does its config."""
    name = push(layout, registry.host, "hostile", layers(3, HOSTILE))
    with LayoutStore(layout) as store:
        theirs = load_image(store, parse_reference(f"oci:{layout}:honest-lazy"))
        own = load_image(store, parse_reference(f"oci:{layout}:hostile-lazy"))
        claiming = tuple(_claim(store, number, own, theirs) for number in range(3))
        config = store.put_document(theirs.config_bytes, OCI_CONFIG)
        manifest = replace(own.manifest, config=config, layers=claiming)
        store.put_tag("claim", store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    skopeo("copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:claim", f"docker://{name}:lazy")
    return name


def _claim(store: LayoutStore, number: int, own: Image, theirs: Image) -> Descriptor:
    layer, diff_id = own.layers[number]
    claimed = theirs.layers[number][1]
    decoded = load_toc(store, layer, diff_id)
    packed = toc.encode(replace(decoded, diff_id=bytes.fromhex(claimed.removeprefix("sha256:"))))
    blob = b"".join(store.stream(layer.digest)) + skippable_frame(SKIPPABLE_MAGIC_TOC, packed)
    digest, size = write_blob(store, blob)
    location = TocLocation(size - len(packed), len(packed), hashlib.sha256(packed).hexdigest())
    return replace(layer, digest=digest, size=size, annotations={TOC_ANNOTATION: location.format()})


def settle(service: Service, text: str) -> None:
    service.node.root.mkdir(parents=True, exist_ok=True)
    service.node.settings.write_text(text)


def test_what_is_claimed_twice_is_given_once(
    service: Service, layout: Path, honest: str, hostile: str
) -> None:
    """In two namespaces of containerd: who comes second has its own, unpacked and proved by containerd."""
    client = service.start().client()
    assert offer_all(client, layers_of(layout, "claim", f"{hostile}:lazy"), "one") == [True] * 3
    # The lower two have the same TOCs, only in other blobs.
    assert offer_all(client, layers_of(layout, "honest-lazy", f"{honest}:lazy"), "two") == [True, True, False]
    client.close()


def test_who_is_not_trusted_is_proved_first(
    service: Service, layout: Path, registry: Registry, honest: str, hostile: str
) -> None:
    settle(service, f'[snapshots]\ntrust = ["{honest}"]\n')
    client = service.start().client()
    claimed = layers_of(layout, "claim", f"{hostile}:lazy")
    assert offer_all(client, claimed, "one") == [False] * 3
    right = layers_of(layout, "honest-lazy", f"{honest}:lazy")
    assert offer_all(client, right, "two") == [True] * 3
    client.prepare("container", right[-1].chain_id)
    proved = service.node.proofs / "right"
    wait_until(lambda: proved.exists() and len(list(proved.iterdir())) == 3, "the proof")
    # What is proved is believed of whoever says it.
    skopeo_copy = f"{registry.host}/stranger:lazy"
    options = "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"
    skopeo("copy", *options, f"docker://{honest}:lazy", f"docker://{skopeo_copy}")
    assert offer_all(client, layers_of(layout, "honest-lazy", skopeo_copy), "three") == [True] * 3
    client.close()


def test_who_comes_second_has_its_own_bytes(
    service: Service, engine: Engine, honest: str, hostile: str
) -> None:
    engine.pull(f"{hostile}:lazy")
    engine.namespace = "other"
    engine.pull(f"{honest}:lazy")
    assert engine.run(f"{honest}:lazy", "c").encode() == HONEST
    engine.remove_all()


def test_the_background_finds_it_out(service: Service, engine: Engine, honest: str, hostile: str) -> None:
    """When all of the image is here it is judged; from then on nothing starts on it, until it is removed."""
    engine.pull(f"{hostile}:lazy")
    engine.run(f"{hostile}:lazy", "c")
    wrong = service.node.proofs / "wrong"
    wait_until(lambda: wrong.exists() and list(wrong.iterdir()), "the verdict")
    with pytest.raises(AssertionError, match="not what its image says"):
        engine.run(f"{hostile}:lazy", "d")
    engine.remove_all()
    # Not offered again: containerd downloads it, and finds out itself what is wrong with it.
    with pytest.raises(AssertionError, match="wrong diff id"):
        engine.pull(f"{hostile}:lazy")
    engine.remove_all()
    engine.pull(f"{honest}:lazy")
    assert engine.run(f"{honest}:lazy", "e").encode() == HONEST
