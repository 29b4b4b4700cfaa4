"""What `lazyfs inspect` tells of an image."""

from typing import Any

import numpy as np

from lazyfs.cli.common import short
from lazyfs.draw.svg import byte_words
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.node.layers import load_toc
from lazyfs.stores import Reference, Store, load_image


def describe_image(store: Store, reference: Reference, platform: str | None = None) -> dict[str, Any]:
    """The image's documents and each layer's TOC in figures, JSON-able. Sizes in bytes."""
    image = load_image(store, reference, platform)
    config = image.config
    return {
        "reference": str(reference),
        "digest": image.descriptor.digest,
        "config_digest": image.manifest.config.digest,
        "platform": f"{config.os}/{config.architecture}" + (f"/{config.variant}" if config.variant else ""),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": list(config.env),
        "working_dir": config.working_dir,
        "user": config.user,
        "layers": [_describe_layer(store, layer, diff_id) for layer, diff_id in image.layers],
    }


def _describe_layer(store: Store, layer: Descriptor, diff_id: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "digest": layer.digest,
        "media_type": layer.media_type,
        "size": layer.size,
        "diff_id": diff_id,
        "lazy": False,
    }
    location = layer.toc_location()
    if location is not None:
        toc = load_toc(store, layer, diff_id)
        lengths = np.diff(toc.chunks.start)
        values |= {
            "lazy": True,
            "toc": {
                "digest": f"sha256:{location.sha256}",
                "offset": location.offset,
                "size": location.length,
            },
            "codec": toc.codec,
            "chunks": len(toc.chunks),
            "largest_chunk": int(lengths.max(initial=0)),
            "stream_size": toc.stream_size,
            "appendix_size": toc.chunks.device_size - toc.stream_size,
            "inodes": len(toc.tree.inodes),
        }
    return values


def render(description: dict[str, Any]) -> str:
    """The description as lines for people."""
    command = " ".join([*description["entrypoint"], *description["cmd"]])
    lines = [
        f"{description['reference']}  {description['platform']}",
        f"  manifest {description['digest']}",
        f"  config   {description['config_digest']}",
        f"  runs     {command or '(nothing: no Entrypoint and no Cmd)'}",
    ]
    for number, layer in enumerate(description["layers"], 1):
        line = f"  layer {number}  {short(layer['digest'])}  {byte_words(layer['size'])}"
        if layer["lazy"]:
            line += (
                f"  holds {byte_words(layer['stream_size'])}, {layer['inodes']} inodes in {layer['chunks']} chunks, "
                f"TOC {byte_words(layer['toc']['size'])}"
            )
        else:
            line += f"  not converted ({layer['media_type']})"
        lines.append(line)
    return "\n".join(lines)
