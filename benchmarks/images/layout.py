"""Config, manifest and index of an OCI image layout (OCI image spec 1.1), around finished layers."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.images.layer import PackedLayer

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_INSTRUCTIONS = {
    "Env": "ENV",
    "User": "USER",
    "WorkingDir": "WORKDIR",
    "Entrypoint": "ENTRYPOINT",
    "Cmd": "CMD",
}


def architecture() -> str:
    """This machine's architecture, by the name that OCI has for it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def write_layout(
    directory: Path,
    tag: str,
    layers: Sequence[tuple[PackedLayer, Path, str]],
    config: Mapping[str, Any],
) -> None:
    """Write an image layout with one image, `tag`.

    Each layer is what was packed, the file that holds it (linked, not copied) and the command
    that made it; `config` is the config's own ``config`` object.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for packed, file, _ in layers:
        target = blobs / packed.digest.removeprefix("sha256:")
        if not target.exists():
            target.hardlink_to(file)
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    image = {
        "created": created,
        "architecture": architecture(),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [packed.diff_id for packed, _, _ in layers]},
        "history": _history(created, [command for _, _, command in layers], config),
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _put(blobs, _CONFIG, image),
        "layers": [
            {"mediaType": _LAYER, "digest": packed.digest, "size": packed.size} for packed, _, _ in layers
        ],
    }
    descriptor = _put(blobs, _MANIFEST, manifest)
    descriptor["platform"] = {"architecture": architecture(), "os": "linux"}
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [descriptor]}
    write_durably(directory / "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))
    write_durably(directory / "index.json", _encode(index))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whose bytes are on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _history(created: str, commands: Sequence[str], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    layers = [{"created": created, "created_by": command} for command in commands]
    settings = [
        {"created": created, "created_by": f"{word} {json.dumps(config[key])}", "empty_layer": True}
        for key, word in _INSTRUCTIONS.items()
        if key in config
    ]
    return [*layers, *settings]


def _put(blobs: Path, media_type: str, value: Mapping[str, Any]) -> dict[str, Any]:
    data = _encode(value)
    digest = hashlib.sha256(data).hexdigest()
    write_durably(blobs / digest, data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
