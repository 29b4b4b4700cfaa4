"""What reads bytes of strangers, and inputs for it that are nearly right.

A parser either takes its input or raises a `LazyfsError`; anything else it does is a finding.
"""

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from shutil import rmtree
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from .mutate import change_bytes, change_document

Make = Callable[[Random], bytes]


@dataclass(frozen=True, slots=True)
class Parser:
    """`make` gives an input; `take`, which is in `code`, reads it."""

    name: str
    make: Make
    take: Callable[[bytes], object]
    code: tuple[ModuleType, ...]


@cache
def version(code: tuple[ModuleType, ...]) -> str:
    """A digest of the source of these modules, and of what they take from their own packages."""
    found: dict[str, bytes] = {}
    asked = list(code)
    while asked:
        module = asked.pop()
        if module.__name__ not in found:
            found[module.__name__] = Path(str(module.__file__)).read_bytes()
            asked += _neighbours(module)
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:16]


def _neighbours(module: ModuleType) -> list[ModuleType]:
    package = module.__name__.rpartition(".")[0]
    names = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in vars(module).values()
    }
    return [sys.modules[name] for name in names if name and name.rpartition(".")[0] == package]


def any_json(documents: Sequence[Any]) -> Make:
    """One of the documents, with some of its values changed."""

    def make(rng: Random) -> bytes:
        document = rng.choice(documents)
        for _ in range(rng.randint(1, 3)):
            document = change_document(document, rng)
        data = json.dumps(document).encode("utf-8", "surrogatepass")
        return change_bytes(data, rng) if rng.random() < 0.2 else data

    return make


def any_text(texts: list[bytes]) -> Make:
    """One of the texts, with some of its bytes changed."""
    return lambda rng: change_bytes(rng.choice(texts), rng)


@cache
def _directory(_process: int) -> Path:
    directory = Path(mkdtemp(prefix="lazyfs-fuzz-"))
    atexit.register(rmtree, directory, ignore_errors=True)
    return directory


def scratch(name: str) -> Path:
    """A directory of this process, which goes with it."""
    directory = _directory(os.getpid()) / name
    directory.mkdir(exist_ok=True)
    return directory
