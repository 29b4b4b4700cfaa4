"""A node that starts only what was signed, with signatures as cosign makes them, in a layout and in a registry."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from converter import copy_tree
from lazyfs.errors import IntegrityError, LazyfsError, UsageError
from lazyfs.formats.oci import Index, Manifest, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from lazyfs.stores import LayoutStore, open_store, parse_reference, write_blob
from tests.registry import needs_registry, run_registry

from .open_node import OpenNode
from .processes import REPOSITORY

COSIGN = (
    shutil.which("cosign", path=f"{os.environ.get('PATH', '')}:{REPOSITORY / '.cache/tools/cosign'}") or ""
)
PATIENCE = 60.0
Private = ec.EllipticCurvePrivateKey


@pytest.fixture(scope="module")
def key() -> Private:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def payload(digest: str, kind: str = "cosign container image signature") -> bytes:
    """As cosign writes it."""
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": "registry.example/app"},
                "image": {"docker-manifest-digest": digest},
                "type": kind,
            },
            "optional": None,
        }
    ).encode()


def digest_of(layout: Path, tag: str = "lazy") -> str:
    with LayoutStore(layout) as store:
        return store.resolve(tag).digest


def sign(
    layout: Path, key: Private, digest: str, signed: bytes | None = None, *, damaged: bool = False
) -> None:
    """Put a signature of `digest` where cosign puts it."""
    signed = payload(digest) if signed is None else signed
    signature = key.sign(signed, ec.ECDSA(SHA256()))
    text = base64.b64encode(signature[::-1] if damaged else signature).decode()
    with LayoutStore(layout) as store:
        layer = Descriptor(
            "application/vnd.dev.cosign.simplesigning.v1+json",
            *write_blob(store, signed),
            annotations={"dev.cosignproject.cosign/signature": text},
        )
        config = store.put_document(
            b'{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}', OCI_CONFIG
        )
        document = store.put_document(Manifest(config, (layer,)).to_bytes(), OCI_MANIFEST)
        store.put_tag(digest.replace(":", "-") + ".sig", document)


class Signed:
    """A node with a policy."""

    def __init__(self, root: Path, *keys: bytes) -> None:
        self.root = root
        self.nodes: list[OpenNode] = []
        self.demand(*keys)

    def demand(self, *keys: bytes) -> None:
        self.root.mkdir(exist_ok=True)
        names = []
        for number, each in enumerate(keys):
            names.append(str(self.root / f"key{number}.pub"))
            Path(names[-1]).write_bytes(each)
        (self.root / "config.toml").write_text(f"[policy]\nrequire_signature = {json.dumps(names)}\n")

    def start(self) -> OpenNode:
        self.close()
        self.nodes.append(OpenNode(self.root / "."))
        return self.nodes[-1]

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def signed(tmp_path: Path, key: Private) -> Iterator[Signed]:
    node = Signed(tmp_path / "node", pem(key))
    yield node
    node.close()


def test_what_was_signed_starts(signed: Signed, layout: Path, key: Private) -> None:
    node = signed.start()
    with pytest.raises(IntegrityError, match="may not start here: it has no signature") as caught:
        node.open(layout)
    assert "cosign sign" in caught.value.hint
    sign(layout, key, digest_of(layout))
    assert node.devices(node.open(layout))


def test_it_starts_without_its_store_once_it_was_seen(signed: Signed, layout: Path, key: Private) -> None:
    digest = digest_of(layout)
    sign(layout, key, digest)
    right = signed.start().open(layout)
    shutil.rmtree(layout)
    assert signed.start().node.open_image(f"oci:{layout}@{digest}", Path("/"))["key"] == right["key"]
    # Not with another key, and not with what somebody wrote into the node's files.
    signed.demand(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(LazyfsError):
        signed.start().node.open_image(f"oci:{layout}@{digest}", Path("/"))
    signed.demand(pem(key))
    for record in (signed.root / "signatures").iterdir():
        record.write_text(record.read_text().replace('"digest": "sha256:', '"digest": "sha256:0'))
    with pytest.raises(LazyfsError):
        signed.start().node.open_image(f"oci:{layout}@{digest}", Path("/"))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("another key", "no signature is by a key of this node"),
        ("another image", "no signature is by a key of this node"),
        ("another kind", "no signature is by a key of this node"),
        ("damaged", "no signature is by a key of this node"),
        ("no payload", "signature"),
    ],
)
def test_what_is_no_signature_of_it_is_refused(
    signed: Signed, layout: Path, key: Private, what: str, reason: str
) -> None:
    digest = digest_of(layout)
    other = ec.generate_private_key(ec.SECP256R1())
    match what:
        case "another key":
            sign(layout, other, digest)
        case "another image":
            sign(layout, key, digest, payload("sha256:" + "0" * 64))
        case "another kind":
            sign(layout, key, digest, payload(digest, "atomic container signature"))
        case "damaged":
            sign(layout, key, digest, damaged=True)
        case "no payload":
            sign(layout, key, digest, b"[1]")
    with pytest.raises(IntegrityError, match=reason):
        signed.start().open(layout)


@pytest.mark.parametrize("damage", ["no base64", "no payload", "large payload"])
def test_one_that_cannot_be_read_hides_none_that_can(
    signed: Signed, layout: Path, key: Private, damage: str
) -> None:
    digest = digest_of(layout)
    sign(layout, key, digest)
    tag = digest.replace(":", "-") + ".sig"
    with LayoutStore(layout) as store:
        manifest = parse_manifest(store.get_document(store.resolve(tag)))
        bad = manifest.layers[0]
        match damage:
            case "no base64":
                bad = replace(bad, annotations={"dev.cosignproject.cosign/signature": "!"})
            case "no payload":
                bad = replace(bad, digest="sha256:" + "0" * 64)
            case "large payload":
                bad = replace(bad, size=1 << 30)
        both = replace(manifest, layers=(bad, *manifest.layers))
        path = layout / "blobs" / "sha256" / hashlib.sha256(both.to_bytes()).hexdigest()
        path.write_bytes(both.to_bytes())
        index = json.loads((layout / "index.json").read_bytes())
        for entry in index["manifests"]:
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
                entry |= {"digest": f"sha256:{path.name}", "size": len(both.to_bytes())}
        (layout / "index.json").write_text(json.dumps(index))
    node = signed.start()
    assert node.devices(node.open(layout))


def test_each_of_the_keys_will_do(signed: Signed, layout: Path, key: Private) -> None:
    signed.demand(pem(ec.generate_private_key(ec.SECP256R1())), pem(key))
    sign(layout, key, digest_of(layout))
    signed.start().open(layout)


def test_an_index_that_was_signed(signed: Signed, layout: Path, key: Private) -> None:
    with LayoutStore(layout) as store:
        image = replace(store.resolve("lazy"), annotations={})
        index = store.put_document(Index((image,), OCI_INDEX).to_bytes(), OCI_INDEX)
        store.put_tag("many", index)
    node = signed.start()
    with pytest.raises(IntegrityError, match="no signature"):
        node.open(layout, "many")
    sign(layout, key, index.digest)
    node.open(layout, "many")


def push(layout: Path, name: str, *tags: str) -> None:
    """Copy to the repository `name` what has these tags."""
    with LayoutStore(layout) as source:
        for tag in tags:
            with open_store(parse_reference(f"docker://{name}:{tag}"), create=True) as target:
                target.put_tag(tag, copy_tree(source, source.resolve(tag), target, _ignore))


@needs_registry
def test_in_a_registry(signed: Signed, layout: Path, key: Private, tmp_path: Path) -> None:
    sign(layout, key, digest_of(layout))
    with run_registry(tmp_path / "registry") as registry:
        push(layout, f"{registry.host}/app", "lazy", digest_of(layout).replace(":", "-") + ".sig")
        node = signed.start()
        assert node.devices(node.node.open_image(f"docker://{registry.host}/app:lazy", Path("/")))


def cosign(directory: Path, *words: str) -> None:
    environment = os.environ | {"COSIGN_PASSWORD": "", "HOME": str(directory)}
    done = subprocess.run(
        [COSIGN, *words], cwd=directory, env=environment, capture_output=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr.decode()


@needs_registry
@pytest.mark.skipif(not COSIGN, reason="cosign is not installed: `scripts/cosign.sh` builds it")
def test_signed_by_cosign(layout: Path, tmp_path: Path) -> None:
    """By the program itself: its key, its image, and neither another key's nor another image's nor none."""
    right, wrong = (tmp_path / name for name in ("right", "wrong"))
    for directory in (right, wrong):
        directory.mkdir()
        cosign(directory, "generate-key-pair")
    node = Signed(tmp_path / "node", (right / "cosign.pub").read_bytes())
    with run_registry(tmp_path / "registry") as registry:
        name, digest = f"{registry.host}/app", digest_of(layout)
        push(layout, name, "lazy", "app")
        sign_it = ("sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key", "cosign.key")

        def may_start(digest: str) -> bool:
            try:
                node.start().node.open_image(f"docker://{name}@{digest}", Path("/"))
            except IntegrityError as error:
                assert "may not start here" in error.message
                return False
            return True

        assert not may_start(digest)
        cosign(wrong, *sign_it, f"{name}@{digest}")
        assert not may_start(digest)
        cosign(right, *sign_it, f"{name}@{digest}")
        assert may_start(digest)
        # What was signed for one image is laid under another's tag.
        other = digest_of(layout, "app")
        with open_store(parse_reference(f"docker://{name}:x"), create=True) as store:
            signatures = store.resolve(f"{digest.replace(':', '-')}.sig")
            store.put_tag(f"{other.replace(':', '-')}.sig", signatures)
        assert not may_start(other)
    node.close()


def _ignore(blob: object, copied: bool) -> None:
    pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("require_signature = 1", "files with public keys"),
        ("require_signature = []", "files with public keys"),
        ("require = 'x'", "files with public keys"),
        ("require_signature = '/nonexistent.pub'", "No such file"),
        ("require_signature = '/dev/full'", "is not a regular file"),
        ("require_signature = '{fifo}'", "is not a regular file"),
        (r'require_signature = "a\u0000b"', "null"),
        ("require_signature = '{config}'", "is not a public key"),
        ("require_signature = '{rsa}'", "is not an ECDSA key on P-256"),
        ("require_signature = '{p384}'", "is not an ECDSA key on P-256"),
    ],
)
def test_a_policy_that_cannot_be_meant_starts_nothing(tmp_path: Path, text: str, words: str) -> None:
    root = tmp_path / "node"
    root.mkdir()
    for name, key in (
        ("rsa", rsa.generate_private_key(65537, 2048)),
        ("p384", ec.generate_private_key(ec.SECP384R1())),
    ):
        (root / name).write_bytes(pem(key))
    config, fifo = root / "config.toml", root / "fifo"
    os.mkfifo(fifo)
    names = {"config": config, "fifo": fifo, "rsa": root / "rsa", "p384": root / "p384"}
    config.write_text("[policy]\n" + text.format(**names))
    with pytest.raises(UsageError, match=words):
        OpenNode(root)
