"""Signatures of images as cosign makes them, with a key pair (ECDSA on P-256).

After sigstore's SIGNATURE_SPEC.md (github.com/sigstore/cosign, specs/): beside the image with digest `sha256:<hex>`
lies, under the tag `sha256-<hex>.sig`, an OCI image whose layers are *simple signing* payloads
(github.com/containers/image, docs/containers-signature.5.md), each with its signature in base64 as an annotation. A
payload names the digest of what is signed; the signature is of the payload's bytes: ASN.1 DER, over SHA-256.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lazyfs.errors import BadInputError, UsageError
from lazyfs.formats import strict_json
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
KIND = "cosign container image signature"
MAX_PAYLOAD = 64 << 10
MAX_SIGNATURES = 64
_MAX_SIGNATURE = 1024

Key = EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Signature:
    payload: bytes
    signature: bytes


def signature_tag(digest: str) -> str:
    """The tag under which the signatures of an image lie."""
    return f"sha256-{parse_digest(digest)}.sig"


def read_key(pem: bytes, name: str) -> Key:
    """A public key; UsageError names the file when it holds none of the right kind."""
    hint = "`cosign generate-key-pair` writes one to cosign.pub"
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise UsageError(f"{name} is not a public key in PEM", hint=hint) from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise UsageError(f"{name} is not an ECDSA key on P-256", hint=hint)
    return key


def signature_of(layer: Descriptor) -> str | None:
    """The signature, as text, of the payload that a layer is; None where it is none."""
    return layer.annotations.get(SIGNATURE_ANNOTATION) if layer.media_type == PAYLOAD_TYPE else None


def read_signature(text: str) -> bytes:
    """BadInputError where it is no base64."""
    try:
        return base64.b64decode(text[: 2 * _MAX_SIGNATURE], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInputError(f"{SIGNATURE_ANNOTATION} is not base64", hint="sign the image again") from error


def is_of(signature: Signature, digest: str, keys: Sequence[Key]) -> bool:
    """Has one of these keys signed that image? BadInputError for a payload that was signed and says nothing."""
    if not any(_has_signed(key, signature) for key in keys):
        return False
    critical = strict_json.load(signature.payload, "signature", MAX_PAYLOAD).required_child("critical")
    image = critical.required_child("image")
    return (
        critical.text("type", required=True) == KIND
        and image.text("docker-manifest-digest", required=True) == digest
    )


def _has_signed(key: Key, signature: Signature) -> bool:
    try:
        key.verify(signature.signature, signature.payload, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
