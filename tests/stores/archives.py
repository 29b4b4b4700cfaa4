"""Archives as others write them, made by hand."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import Store, load_image, open_store, parse_reference

from .samples import Sample, make_sample

Member = tuple[str, bytes] | tarfile.TarInfo

SAMPLE = make_sample("a")
CONFIG = "config.json"
LAYERS = ["base/layer.tar", "name/layer.tar"]


def tar_of(*members: Member, layout: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def manifest_json(*items: dict[str, Any]) -> Member:
    return "manifest.json", json.dumps(list(items)).encode()


def item(*names: str, config: str = CONFIG, layers: list[str] | None = None) -> dict[str, Any]:
    return {"Config": config, "RepoTags": list(names) or None, "Layers": LAYERS if layers is None else layers}


def files(sample: Sample = SAMPLE) -> list[Member]:
    return [(CONFIG, sample.config), *zip(LAYERS, sample.layers, strict=True)]


GOOD = tar_of(*files(), manifest_json(item("app:v1")))


def docker(path: Path) -> Store:
    return open_store(parse_reference(f"docker-archive:{path}"))


def oci(path: Path) -> Store:
    return open_store(parse_reference(f"oci-archive:{path}"))


def layers_of(store: Store, name: str | None = None) -> list[tuple[str, bytes]]:
    """Type and bytes of each layer, every digest proved."""
    reference = parse_reference(f"{store.url}:{name}" if name else store.url)
    layers = []
    for layer, _ in load_image(store, reference).layers:
        data = b"".join(store.stream(layer.digest))
        assert (sha256_digest(data), len(data)) == (layer.digest, layer.size)
        layers.append((layer.media_type, data))
    return layers
