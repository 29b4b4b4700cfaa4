"""Media types of images and what lies beside them, and the annotations that lazyfs reads and writes.

After the OCI image specification 1.1 (media-types.md) and Docker's image manifest version 2, schema 2.
"""

from lazyfs.errors import UnsupportedError
from lazyfs.formats.strict_json import short

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_FOREIGN_LAYER_GZIP = f"{OCI_FOREIGN_LAYER}+gzip"
OCI_FOREIGN_LAYER_ZSTD = f"{OCI_FOREIGN_LAYER}+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = f"{DOCKER_LAYER}.gzip"
DOCKER_LAYER_ZSTD = f"{DOCKER_LAYER}.zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP = f"{DOCKER_FOREIGN_LAYER}.gzip"

MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# Layers that a store need not hold: their maker forbids to pass them on, and names URLs instead.
FOREIGN_LAYER_TYPES = frozenset(
    {
        OCI_FOREIGN_LAYER,
        OCI_FOREIGN_LAYER_GZIP,
        OCI_FOREIGN_LAYER_ZSTD,
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP,
    }
)

REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
# containerd hands annotations of this prefix to the snapshotter as labels.
TOC_ANNOTATION = "containerd.io/snapshot/lazyfs.toc"
# On layers as well, for containerd; and on the pack's own artifact, where it is seen in a list of referrers.
PACK_ANNOTATION = "containerd.io/snapshot/lazyfs.pack"
# The artifact that holds a launch pack, and the blob in it.
OUR_TYPES = "application/vnd.lazyfs."
PACK_TYPE = "application/vnd.lazyfs.launch-pack.v1"
# An artifact that the converter leaves beside a layer, for its next run.
LAYER_RECORD_TYPE = "application/vnd.lazyfs.layer.v1"

_COMPRESSIONS = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    OCI_FOREIGN_LAYER: "none",
    OCI_FOREIGN_LAYER_GZIP: "gzip",
    OCI_FOREIGN_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: "none",
    DOCKER_FOREIGN_LAYER_GZIP: "gzip",
}


def layer_compression(media_type: str) -> str:
    """``none``, ``gzip`` or ``zstd``; UnsupportedError for a type that is no layer we can read."""
    try:
        return _COMPRESSIONS[media_type]
    except KeyError:
        raise UnsupportedError(
            f"layers of type {short(media_type)} cannot be read",
            hint="lazyfs reads tar layers, plain or packed with gzip or zstd, and not encrypted",
        ) from None
