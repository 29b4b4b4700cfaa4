"""The stores that a node reads from, each opened once; with the mirrors that its owner wants asked first."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from lazyfs.daemon.on_demand import OnDemandStore
from lazyfs.stores import Reference, Store, StoreOptions
from lazyfs.stores.mirror import PATIENCE as MIRROR_PATIENCE
from lazyfs.stores.mirror import MirrorStore
from lazyfs.stores.node_stores import NodeStores


class OpenStores:
    """Thread safe."""

    def __init__(self, settings: NodeStores, options: StoreOptions) -> None:
        self.settings = settings
        self._options = options
        self._opening = threading.Lock()
        self._stores: dict[tuple[str, str], OnDemandStore] = {}
        self._mirror_stores: dict[tuple[str, str], MirrorStore] = {}
        self._mirrors: dict[str, list[Store]] = {}

    def find(self, reference: Reference) -> tuple[Store, Reference]:
        """The store of an image, and what the image is called there."""
        found = self.settings.locate(reference)
        with self._opening:
            store = self._store(found)
            # Opened when something is asked of them: one that is not there keeps nobody waiting.
            self._mirrors[store.url] = [self._mirror(each) for each in self.settings.mirrors_of(found)]
        return store, found

    def mirrors_of(self, store: Store) -> Sequence[Store]:
        """Those of a store that `find` has given, in the order in which they are to be asked."""
        return self._mirrors.get(store.url, ())

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
        for mirror in self._mirror_stores.values():
            mirror.close()

    def _store(self, reference: Reference) -> Store:
        name = reference.transport, reference.location
        if name not in self._stores:
            stored = replace(reference, tag=None, digest=None)
            self._stores[name] = OnDemandStore(stored, self._options)
        return cast(Store, self._stores[name])

    def _mirror(self, reference: Reference) -> Store:
        name = reference.transport, reference.location
        if name not in self._mirror_stores:
            options = replace(self._options, timeout=min(MIRROR_PATIENCE, self._options.timeout))
            found = cast(Store, OnDemandStore(replace(reference, tag=None, digest=None), options))
            self._mirror_stores[name] = MirrorStore(found)
        return cast(Store, self._mirror_stores[name])
