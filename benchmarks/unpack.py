"""An image unpacked in full, as an engine does after a pull: each layer by tar as root, whiteouts applied.

The other side of every comparison, and the referee of what a mounted image must look like. It uses the
system's tar and none of lazyfs.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

_GZIP_MAGIC = b"\x1f\x8b"
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


def image_layers(layout: Path, tag: str) -> tuple[list[Path], dict[str, object]]:
    """The layer blobs of an image in an OCI layout, lowest first, and its config."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_bytes())
    name = "org.opencontainers.image.ref.name"
    (manifest_entry,) = [each for each in index["manifests"] if each.get("annotations", {}).get(name) == tag]
    manifest = json.loads((blobs / manifest_entry["digest"].removeprefix("sha256:")).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    return [blobs / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]], config


def unpack(layers: list[Path], target: Path) -> int:
    """Unpack the layers into `target`; returns the bytes of blob that were read. Needs root."""
    target.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        _apply_whiteouts(layer, target)
        subprocess.run(
            ["tar", "--extract", f"--file={layer}", f"--directory={target}", *_OPTIONS, *_decompress(layer)],
            check=True,
            capture_output=True,
        )
    return sum(layer.stat().st_size for layer in layers)


_OPTIONS = (
    "--numeric-owner",
    "--same-owner",
    "--preserve-permissions",
    "--xattrs",
    "--xattrs-include=*",
    "--exclude=.wh.*",
    "--no-wildcards-match-slash",
)


def _decompress(layer: Path) -> list[str]:
    with layer.open("rb") as file:
        return ["--gzip"] if file.read(2) == _GZIP_MAGIC else []


def _apply_whiteouts(layer: Path, target: Path) -> None:
    """Remove from `target` what the layer hides of the layers below."""
    for name in _whiteouts(layer):
        directory, base = target / Path(name).parent, Path(name).name
        if base == _OPAQUE:
            for path in directory.iterdir() if directory.is_dir() else ():
                _remove(path)
        elif os.path.lexists(directory / base.removeprefix(_WHITEOUT)):
            _remove(directory / base.removeprefix(_WHITEOUT))


def _whiteouts(layer: Path) -> list[str]:
    listed = subprocess.run(
        ["tar", "--list", "--quoting-style=literal", f"--file={layer}", *_decompress(layer)],
        check=True,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    return [line for line in listed.stdout.splitlines() if Path(line).name.startswith(_WHITEOUT)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
