"""An image made ready for all ways: as it is, converted, with a launch pack, in one layout that a registry serves."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter import Settings, convert_image, copy_attached, copy_tree
from lazyfs.bench.plan import Subject
from lazyfs.bench.ways import LAZY, PACKED, PLAIN, Way
from lazyfs.errors import NodeError
from lazyfs.formats.profile import parse
from lazyfs.stores import Image, load_image, open_store, parse_reference
from lazyfs.stores.options import StoreOptions

DEFAULTS = StoreOptions()
_JOBS = 2
_TAIL = 500  # characters


def gather(reference: str, ways: Sequence[Way], layout: Path, options: StoreOptions = DEFAULTS) -> None:
    """Put what the ways pull into the layout, each with its tag; not yet what needs a recorded start."""
    plain, lazy = f"oci:{layout}:{PLAIN}", f"oci:{layout}:{LAZY}"
    _copy(reference, plain, options)
    for way in ways:
        if way.image:
            _copy(way.image, f"oci:{layout}:{way.tag}", options)
    if {way.tag for way in ways} & {LAZY, PACKED}:
        if is_lazy(_load(plain)):
            _copy(plain, lazy, DEFAULTS)
        else:
            _convert(plain, lazy)


def add_pack(subject: Subject, scratch: Path) -> None:
    """Record a start of the converted image, and put it into the layout with a launch pack."""
    lazy = f"oci:{subject.layout}:{LAZY}"
    profile = _record(lazy, subject, scratch)
    _convert(lazy, f"oci:{subject.layout}:{PACKED}", profile)


def documents(layout: Path, tags: Sequence[str]) -> frozenset[str]:
    """Digests of manifests and configs: what is asked for before any layer."""
    found = set()
    for tag in tags:
        image = _load(f"oci:{layout}:{tag}")
        found |= {image.descriptor.digest, image.manifest.config.digest}
    return frozenset(found)


def blobs(layout: Path, tag: str) -> list[Path]:
    """The files of all that a pull of this tag asks for."""
    manifest = _load(f"oci:{layout}:{tag}").manifest
    return [_blob(layout, each.digest) for each in (*manifest.layers, manifest.config)]


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return layout / "blobs" / algorithm / name


def describe(layout: Path, tags: Sequence[str]) -> dict[str, Any]:
    """What of an image is told in results."""
    image = _load(f"oci:{layout}:{PLAIN}")
    sizes = {tag: sum(each.size for each, _ in _load(f"oci:{layout}:{tag}").layers) for tag in tags}
    return {"config": image.manifest.config.digest, "layers": len(image.layers), "bytes": sizes}


def is_lazy(image: Image) -> bool:
    return all(layer.toc_location() is not None for layer, _ in image.layers)


def _load(reference: str) -> Image:
    parsed = parse_reference(reference)
    with open_store(parsed) as store:
        return load_image(store, parsed)


def _copy(source: str, target: str, options: StoreOptions) -> None:
    """This machine's platform alone, with what refers to it: signatures are of no use here, indexes of chunks are."""
    from_reference, to_reference = parse_reference(source), parse_reference(target)
    with (
        open_store(from_reference, options=options) as from_store,
        open_store(to_reference, create=True) as to_store,
    ):
        image = load_image(from_store, from_reference)
        top = copy_tree(from_store, image.descriptor, to_store, lambda *_: None)
        copy_attached(from_store, top, to_store, lambda *_: None)
        to_store.put_tag(to_reference.tag_to_write(), top)


def _convert(source: str, target: str, profile: bytes | None = None) -> None:
    from_reference, to_reference = parse_reference(source), parse_reference(target)
    with open_store(from_reference) as from_store, open_store(to_reference, create=True) as to_store:
        convert_image(
            from_store,
            from_reference,
            to_store,
            to_reference,
            replace(Settings(), jobs=_JOBS),
            profile=None if profile is None else parse(profile.decode()),
        )


def _record(lazy: str, subject: Subject, scratch: Path) -> bytes:
    """By `lazyfs profile`, as a user records it."""
    file = scratch / "profile"
    run = [f"--env={each}" for each in subject.env]
    words = list(subject.words)
    if words:
        run.append(f"--entrypoint={words.pop(0)}")
    command = [
        *(sys.executable, "-m", "lazyfs.cli.main", "--root", str(scratch / "recording"), "profile", "record"),
        *("--ready", subject.ready, "--timeout", str(subject.patience), "--no-attach", "--output", str(file)),
        *("--run", " ".join(run), lazy, "--", *words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(f"the start of {subject.name} could not be recorded: {done.stderr[-_TAIL:].strip()}")
    return file.read_bytes()
