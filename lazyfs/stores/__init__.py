"""Stores of images: where they are read from and written to. The interface is `Store` in `base`."""

from lazyfs.stores.base import BlobWriter, Store, check_complete, read_verified, write_blob
from lazyfs.stores.image import (
    Image,
    find_manifest,
    host_platform,
    load_config,
    load_image,
    load_manifest,
    parse_platform,
)
from lazyfs.stores.layout import LayoutStore
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.reference import DEFAULT_TAG, Reference, check_tag, parse_reference
from lazyfs.stores.transports import open_store

__all__ = [
    "DEFAULT_TAG",
    "BlobWriter",
    "Image",
    "LayoutStore",
    "Reference",
    "Store",
    "StoreOptions",
    "check_complete",
    "check_tag",
    "find_manifest",
    "host_platform",
    "load_config",
    "load_image",
    "load_manifest",
    "open_store",
    "parse_platform",
    "parse_reference",
    "read_verified",
    "write_blob",
]
