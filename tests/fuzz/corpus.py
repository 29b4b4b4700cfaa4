"""Inputs that once were findings, one file each: tests/fuzz/corpus/<parser>/<sha256>."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def keep(parser: str, data: bytes) -> Path:
    directory = CORPUS / parser.replace(" ", "-")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def kept(parser: str) -> Iterator[bytes]:
    directory = CORPUS / parser.replace(" ", "-")
    if directory.exists():
        for path in sorted(directory.iterdir()):
            yield path.read_bytes()
