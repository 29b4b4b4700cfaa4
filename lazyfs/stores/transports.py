"""From a reference to the store that it names."""

from pathlib import Path

from lazyfs.errors import UsageError
from lazyfs.stores.base import Store
from lazyfs.stores.layout import LayoutStore
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.reference import Reference
from lazyfs.stores.registry.names import parse_repository

_DEFAULTS = StoreOptions()


def open_store(reference: Reference, *, create: bool = False, options: StoreOptions = _DEFAULTS) -> Store:
    """Open the store of an image, for reading, or with ``create`` for writing: then it is made if need be.

    A store that is not on this machine is first spoken to when something is asked of it. Raises NotFoundError
    when it is not there, UsageError for an unknown transport.
    """
    if reference.transport == "oci":
        return LayoutStore(Path(reference.location), create=create)
    if reference.transport == "oci-archive":
        from lazyfs.stores.archive import OciArchiveStore

        return OciArchiveStore(Path(reference.location), create=create)
    if reference.transport == "docker-archive":
        from lazyfs.stores.archive_docker import DockerArchiveStore

        return DockerArchiveStore(Path(reference.location), create=create)
    if reference.transport == "docker":
        from lazyfs.stores.registry.store import RegistryStore

        return RegistryStore(parse_repository(reference.location), options, create=create)
    if reference.transport == "s3":
        from lazyfs.stores.s3 import S3Store

        return S3Store(reference.location, options, create=create)
    raise UsageError(
        f"transport {reference.transport} is not supported: {reference}", hint="use oci:DIR[:tag]"
    )
