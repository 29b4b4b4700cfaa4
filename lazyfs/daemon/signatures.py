"""The policy that a node starts only what was signed: section `[policy]` of `config.toml`.

[policy]
require_signature = "/etc/lazyfs/cosign.pub"     # or a list of files: any of the keys will do

What a signature is says `formats.signature`. Signatures that were good are kept, so that an image can be opened without
a network; whether they still are, by the keys of today, is looked at each time.

    <root>/signatures/<sha256 of the manifest>     JSON: `digest` that was signed, `payload` and `signature` in base64
"""

import base64
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import (
    BadInputError,
    IntegrityError,
    LazyfsError,
    LimitError,
    NodeError,
    NotFoundError,
    UsageError,
)
from lazyfs.formats.oci import parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.signature import (
    MAX_PAYLOAD,
    MAX_SIGNATURES,
    Key,
    Signature,
    is_of,
    read_key,
    read_signature,
    signature_of,
    signature_tag,
)
from lazyfs.node.files import remove_torn, write_new
from lazyfs.stores import Store
from lazyfs.stores.base import named

log = logging.getLogger(__name__)

MAX_KEY = 64 << 10
"""Bytes read of a file with a public key; one has some 200."""


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    keys: tuple[Key, ...]
    directory: Path

    @classmethod
    def read(cls, paths: NodePaths) -> "SignaturePolicy":
        """UsageError when what is set cannot be meant: a node that should check does not start without keys."""
        values = read_settings(paths, "policy")
        asked = values.pop("require_signature", None)
        files = [asked] if isinstance(asked, str) else asked
        where = f"{paths.settings}: [policy]"
        if values or not (isinstance(files, list) and files and all(isinstance(each, str) for each in files)):
            raise UsageError(f"{where} has `require_signature` alone: files with public keys")
        keys = []
        for name in files:
            try:
                keys.append(read_key(_content(name), name))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise UsageError(
                    f"{where}: {name!r}: {reason}", hint="the daemon's user must be able to read it"
                ) from error
        paths.signatures.mkdir(parents=True, exist_ok=True)
        remove_torn(paths.signatures)
        return cls(tuple(keys), paths.signatures)

    def require(self, store: Store, manifest: str, *others: str) -> None:
        """IntegrityError unless the image with this manifest was signed: it, or one of the `others`, the digests of
        indexes that led to it."""
        if self._is_known(manifest):
            return
        reason = "it has no signature"
        for digest in (manifest, *others):
            for layer, text in _signatures(store, digest):
                # One that cannot be read hides none that can: whoever may push may add one.
                try:
                    signature = Signature(store.get_document(layer, MAX_PAYLOAD), read_signature(text))
                    if is_of(signature, digest, self.keys):
                        self._keep(manifest, digest, signature)
                        return
                    reason = "no signature is by a key of this node, for this digest"
                except (BadInputError, IntegrityError, LimitError, NotFoundError) as error:
                    reason = error.message
        raise IntegrityError(
            f"{manifest} in {store.url} may not start here: {reason}",
            hint="sign it (`cosign sign --key`), or see [policy] in the node's config.toml",
        )

    def _is_known(self, manifest: str) -> bool:
        with suppress(OSError, ValueError, KeyError, TypeError, LazyfsError):
            record = json.loads(self._path(manifest).read_bytes())
            signature = Signature(base64.b64decode(record["payload"]), base64.b64decode(record["signature"]))
            return is_of(signature, record["digest"], self.keys)
        return False

    def _keep(self, manifest: str, digest: str, signature: Signature) -> None:
        record = {
            "digest": digest,
            "payload": base64.b64encode(signature.payload).decode(),
            "signature": base64.b64encode(signature.signature).decode(),
        }
        try:
            write_new(self._path(manifest), json.dumps(record).encode())
        except NodeError as error:
            log.warning("%s", error)

    def _path(self, manifest: str) -> Path:
        return self.directory / parse_digest(manifest)


def _content(name: str) -> bytes:
    """The beginning of a file, which is all of a key; nothing of what has no end, or would be waited for.

    A link may lead to it: it is named by who owns the node, unlike files of stores.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{name} is not a regular file", hint="name the file of a public key")
        return file.read(MAX_KEY)


def _signatures(store: Store, digest: str) -> Iterator[tuple[Descriptor, str]]:
    """The payloads, each with its signature as text."""
    try:
        found = store.resolve(signature_tag(digest))
    except NotFoundError:
        return
    with named(f"the signatures of {digest} in {store.url}"):
        layers = parse_manifest(store.get_document(found)).layers
    for layer in layers[:MAX_SIGNATURES]:
        text = signature_of(layer)
        if text is not None:
            yield layer, text
