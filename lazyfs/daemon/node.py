"""What the daemon knows: images that were asked for, their layers' devices, their bootstraps."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths, boot_id
from lazyfs.daemon.bootstraps import Bootstraps, image_key
from lazyfs.daemon.cache_calls import mounted_keys
from lazyfs.daemon.documents import Documents
from lazyfs.daemon.image_finder import ImageFinder, signature_policy
from lazyfs.daemon.layers import Layer, Layers
from lazyfs.daemon.open_stores import OpenStores
from lazyfs.daemon.starts import Starts
from lazyfs.daemon.state import State
from lazyfs.daemon.verdicts import Verdicts
from lazyfs.daemon.views import Views
from lazyfs.errors import IntegrityError, NotFoundError, UsageError
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.mount import ladder
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache_care import open_care
from lazyfs.node.cache_settings import CacheSettings
from lazyfs.node.cache_store import open_cache
from lazyfs.node.crew import Lane
from lazyfs.node.engine import Engine
from lazyfs.node.fetch_settings import FetchSettings, parse_memory
from lazyfs.node.files import remove_torn
from lazyfs.node.fill import Filler, GoOn
from lazyfs.node.launch import PutPages
from lazyfs.node.launches import Launches
from lazyfs.node.neighbours import MAX_DEMANDED
from lazyfs.node.proof import FalseLayerError, prove_layer
from lazyfs.node.seen import SeenImage, SeenLayer
from lazyfs.node.timeline import Timeline
from lazyfs.node.warm import missing_spans, warm
from lazyfs.stores import (
    Image,
    Reference,
)
from lazyfs.stores.node_stores import NodeStores

log = logging.getLogger(__name__)

KEEP_SECONDS = 10.0
RUN_CONFIG = ("entrypoint", "cmd", "env", "working_dir", "user")


class Node:
    """Opens images and answers for them. Thread safe."""

    def __init__(
        self,
        paths: NodePaths,
        table: DeviceTable,
        settings: CacheSettings,
        put_pages: PutPages = lambda *_: False,
        connection: str = "",
    ) -> None:
        """`put_pages` gives bytes of devices to the kernel before it asks for them. `connection` names the mount
        of the devices: what an earlier daemon showed there is shown again."""
        self._paths = paths
        self._noting = threading.Lock()
        self._images: dict[str, dict[str, Any]] = {}
        self._started = time.time()
        boot = boot_id()
        self.timeline = Timeline()
        fetching = FetchSettings.read(paths)
        self._engine = Engine(self.timeline, timeout=fetching.timeout, memory=fetching.memory)
        options = replace(fetching.store_options(), learned_file=paths.credentials)
        self.stores = OpenStores(NodeStores.read(paths), options)
        self.launches = Launches(paths.packs, self.timeline)
        paths.packs.mkdir(parents=True, exist_ok=True)
        remove_torn(paths.packs)
        self._bootstraps = Bootstraps(paths.bootstraps, boot)
        self.cache = open_cache(paths, settings, boot, self.timeline.cache_failed)
        self.care = open_care(paths, self.cache, lambda: mounted_keys(paths), self._leave_alone)
        self._filler: Filler | None = None
        if fetching.fill:
            self._filler = Filler(self._engine.crew, self.cache.room.is_spare, self.launches.any_coming)
        self._verdicts = Verdicts(paths.proofs)
        self._forget_days = settings.forget_days
        self._state = State(paths.state, f"{boot.decode()} {connection}")
        self._finder = ImageFinder(
            Documents(paths.documents),
            self.stores,
            self._state,
            self.launches,
            self.timeline,
            signature_policy(paths),
        )
        self._layers = Layers(
            paths.tocs,
            table,
            self.cache,
            self._engine,
            self.stores,
            self._state,
            lambda: not self.launches.any_coming() and self._engine.crew.demanded() <= MAX_DEMANDED,
        )
        # The kernel may have them open, also where no mount is to be seen any more: they are shown for good.
        self._inherited = self._layers.restore() if connection else frozenset[int]()
        self._views = Views(self._bootstraps.directory, table)
        self.starts = Starts(paths, table, self._views, self.launches, put_pages)
        if connection:
            self._views.restore({layer.toc_digest: layer for layer in self._layers.all()})
            for name, answer in self._state.images().items():
                if set(answer["layers"]) <= self._inherited:
                    self._images[name] = answer

    def open_image(
        self,
        reference_text: str,
        directory: Path,
        lowest: int | None = None,
        *,
        fill: bool = True,
        mode: str = ladder.FILE,
        command: str | None = None,
        direct: bool = False,
        prove: bool = False,
    ) -> dict[str, Any]:
        """Make an image ready to be mounted in this mode: its devices shown, its bootstrap written.

        A relative path in the reference counts from `directory`. With `lowest` it is the image of so many of its
        layers, the lowest ones. Returns `key` (the same for equal layers), `bootstrap`, `devices` (paths, lowest
        layer first), `layers` (their device numbers), `config` (what a run reads of the image's config), `digest`,
        `reference`, `mode`, and `view`, the path of what a mount of another mode than "file" is made of. With `fill`
        what nobody reads is fetched as well, while nothing else is to be done; with `prove`, for who knows layers by
        their DiffIDs, each is then proved to have its own, and IntegrityError where one has not. `command` is what is
        about to be run ("": what the config says): without a launch pack it is fetched ahead. With `direct` also the
        names in the cache of those layers that the kernel may read there, "" for the others; who
        mounts them asks `are_held`.
        """
        with self._finder.find(reference_text, directory) as found:
            image = found.image
            if lowest is not None and not 1 <= lowest <= len(image.layers):
                raise UsageError(f"{found.reference} has {len(image.layers)} layers, not {lowest}")
            self._refuse_wrong(image.layers[:lowest])
            layers = self._layers.open(found.store, found.reference, found.documents, image.layers[:lowest])
            key = self._bootstraps.make(layers) if mode == ladder.FILE else image_key(layers)
            view = self._views.show(mode, key, layers)
            whole = [layer.toc_digest if direct and self.cache.hold(layer.cache) else "" for layer in layers]
            self.starts.bind(found, layers, key, mode, whole)
        answer = self._describe(found.reference, image, layers, key)
        answer |= {"mode": mode, "view": str(self._paths.fuse / view) if view else ""}
        answer["launch"] = self.starts.is_launched(image.descriptor.digest, key)
        self._note(answer, layers)
        name = f"{found.reference} {key}"
        if self._images.get(name) != answer:
            self._state.put_image(name, str(found.reference), answer)
        if command is not None and not answer["launch"]:
            self.starts.fetch_entry(image, key, layers, command)
        with self._noting:
            self._images[name] = answer
        if fill:
            self._fill(layers, prove)
        return {**answer, "direct": whole}

    def _note(self, answer: dict[str, Any], layers: Sequence[Layer]) -> None:
        """Of which image they are, for who looks after the cache."""
        self.care.note(
            SeenImage(
                answer["reference"],
                answer["digest"],
                tuple(SeenLayer(each.toc_digest, each.blob, each.device.size) for each in layers),
                (answer["key"],),
                time.time(),
            )
        )

    def _fill(self, layers: Sequence[Layer], prove: bool) -> None:
        """In the background, and prove then what is not proved yet."""
        if self._filler is None:
            return
        for layer in layers:
            proved = not prove or self._verdicts.is_right(layer.toc_digest)
            judge = None if proved else partial(self._judge, layer)
            self._filler.add(layer.fetcher, layer.cache, judge)

    def look_at(self, reference_text: str, directory: Path) -> Iterator[dict[str, Any]]:
        """What an image is made of, and its TOCs here: up to the first layer that was not converted.

        At first gives `digest`, and as `chain` of each layer, lowest first, `blob`, `diff_id` and `toc` ("" from the
        first on that was not converted); then `toc` of each again, as soon as the layer could be mounted. The
        bootstrap is made in the end, for who will mount the image next.
        """
        with self._finder.find(reference_text, directory) as found:
            image = found.image
            converted = list(takewhile(lambda each: each[0].toc_location() is not None, image.layers))
            self._refuse_wrong(converted)
            layers = []
            opening = self._layers.open_each(found.store, found.reference, found.documents, converted)
            locations = [layer.toc_location() for layer, _ in converted]
            tocs = [each.sha256 for each in locations if each is not None]
            tocs += [""] * (len(image.layers) - len(tocs))
            yield {
                "digest": image.descriptor.digest,
                "chain": [
                    {"blob": layer.digest, "diff_id": diff_id, "toc": toc_digest}
                    for (layer, diff_id), toc_digest in zip(image.layers, tocs, strict=True)
                ],
            }
            for opened in opening:
                layers.append(opened)
                yield {"toc": opened.toc_digest}
            self.starts.bind(found, layers, "", ladder.FILE, [""] * len(layers))
        if layers:
            self._engine.crew.submit(Lane.PREFETCH, partial(self._bootstraps.make, layers))

    def _refuse_wrong(self, layers: Sequence[tuple[Descriptor, str]]) -> None:
        locations = [layer.toc_location() for layer, _ in layers]
        self._verdicts.refuse_wrong(each.sha256 for each in locations if each is not None)

    def _judge(self, layer: Layer, go_on: GoOn) -> None:
        """Prove that the layer has its DiffID, and remember what came of it."""
        try:
            if prove_layer(layer.toc, layer.cache, layer.fetcher.sources(), go_on):
                self._verdicts.keep_right(layer.toc_digest)
        except FalseLayerError as error:
            self._verdicts.keep_wrong(layer.toc_digest, error.message)
            raise

    def warm_pack(self, reference: str, directory: Path, seconds: float) -> dict[str, Any]:
        """Fetch what the image's launch pack brings; waits for so many seconds. Returns `next` as `warm` does, and
        `pack`, how far it has come. NotFoundError where there is no pack."""
        digest = self.open_image(reference, directory, fill=False)["digest"]
        if self.launches.of(digest) is None:
            # It may have got one since it was last looked at.
            self.launches.look_again(digest)
            self.open_image(reference, directory, fill=False)
        launch = self.launches.of(digest)
        if launch is None:
            raise NotFoundError(
                f"{reference} has no launch pack",
                hint="`lazyfs profile` makes one; without --pack all is fetched",
            )
        launch.arrived.wait(seconds)
        if launch.progress.state == "refused":
            raise IntegrityError(f"the launch pack of {reference} is refused: {launch.progress.reason}")
        return {"next": None if launch.arrived.is_set() else 1, "pack": asdict(launch.progress)}

    def warm(self, reference: str, directory: Path, after: int, seconds: float) -> dict[str, Any]:
        """Fetch all of an image for so many seconds. Returns `next`, the `after` of the next call or None, `bytes`
        of the image and `present_bytes` of them. See `warm`."""
        opened = self.open_image(reference, directory, fill=False)["layers"]
        layers = [layer for layer in self._layers.all() if layer.inode in opened]
        spans = missing_spans((layer.device.beneath, layer.cache) for layer in layers)
        following = warm(spans, after, seconds)
        for layer in layers:
            layer.fetcher.wait_kept(KEEP_SECONDS)
            if following is None:
                with suppress(OSError):  # the cache has reported it
                    layer.cache.flush()
        return {
            "next": following,
            "bytes": sum(layer.device.size for layer in layers),
            "present_bytes": sum(layer.cache.present_bytes() for layer in layers),
        }

    def verify(self, name: str) -> dict[str, Any]:
        """See `CacheCare.verify`. What is damaged and may be mounted comes anew at once."""
        found = self.care.verify(name)
        layer = self._layers.named(name)
        if layer is not None and found["mounted_directly"]:
            layer.fetcher.ahead(found["damaged"], Lane.PREFETCH)
        return found

    def _leave_alone(self, names: Iterable[str]) -> None:
        """Fill these layers no further."""
        for name in names:
            layer = self._layers.named(name)
            if layer is not None and self._filler is not None:
                self._filler.forget(layer.fetcher)

    def release(self) -> dict[str, Any]:
        """Let go of what no mounted image needs. Whoever asks sees to it that nobody is about to mount one.

        Returns `layers`, how many went. While a launch pack comes, nothing goes.
        """
        if self.launches.are_running():
            return {"layers": 0}
        mounted = mounted_keys(self._paths)
        with self._noting:
            for name in [name for name, answer in self._images.items() if answer["key"] not in mounted]:
                del self._images[name]
            images = list(self._images.values())
        self.launches.forget({answer["digest"] for answer in images})
        self.cache.release_holds(at_once=True)
        kept = self._inherited.union(*(answer["layers"] for answer in images))
        gone = [layer for layer in self._layers.all() if layer.inode not in kept and not layer.cache.held]
        self._views.forget({layer.toc_digest for layer in gone})
        for layer in gone:
            if self._filler is not None:
                self._filler.forget(layer.fetcher)
            self._layers.let_go(layer)
        return {"layers": len(gone)}

    def observe_read(self, inode: int, offset: int, size: int, waited: bool) -> None:
        """Told of each read by the FUSE loop."""
        layer = self._layers.numbered(inode)
        parts = [(layer, offset, size)] if layer is not None else self._views.origins(inode, offset, size)
        for of, start, length in parts:
            self.timeline.read(of.blob, start, length, waited)
            of.touched.mark(start, start + length)

    def recorded(self, since: float) -> dict[str, Any]:
        """The timeline after `since` (`time.monotonic`), JSON-able."""
        fetched, reads = self.timeline.since(since)
        return {"fetched": [asdict(event) for event in fetched], "reads": [asdict(read) for read in reads]}

    def record(self) -> dict[str, Any]:
        """From now on remember each read of a start, however many, and let no pack come before any."""
        self.launches.enabled = False
        self.timeline.keep_reads()
        return {}

    def choose_memory(self, size: str) -> dict[str, Any]:
        """What may be in memory of what is being fetched, until the daemon ends. Returns `memory`, in bytes."""
        self._engine.budget.set_limit(parse_memory("of the node", size))
        return {"memory": self._engine.budget.limit}

    def flush(self, quiet: bool = False) -> bool:
        """Make durable what was cached since the last time, and keep the cache within its limit.

        `quiet` says that nothing is done just now. Returns whether there is something left to do.
        """
        left = self.cache.tick(quiet)
        self.care.forget_old(self._forget_days)
        return left

    def close(self) -> None:
        self.starts.close()
        self.launches.close()
        if self._filler is not None:
            self._filler.close()
        self._engine.close()
        self.cache.close()
        self._views.close()
        self.stores.close()
        self._state.close()

    def status(self) -> dict[str, Any]:
        with self._noting:
            images = [
                {name: answer[name] for name in ("reference", "digest", "key", "layers")}
                for answer in self._images.values()
            ]
        return {
            "pid": os.getpid(),
            "root": str(self._paths.root),
            "seconds_up": round(time.time() - self._started, 1),
            "images": images,
            "launches": self.launches.status(),
            "layers": [
                {
                    "device": layer.inode,
                    "blob": layer.blob,
                    "toc": layer.toc_digest,
                    "bytes": layer.device.size,
                    "present_bytes": layer.cache.present_bytes(),
                    "touched_bytes": layer.touched.bytes(),
                }
                for layer in self._layers.all()
            ],
            "cache": self.cache.status(),
            "layers_to_fill": self._filler.layers_left() if self._filler is not None else 0,
            **self.timeline.counters(),
        }

    def _describe(self, reference: Reference, image: Image, layers: list[Layer], key: str) -> dict[str, Any]:
        return {
            "reference": str(reference),
            "digest": image.descriptor.digest,
            "key": key,
            "bootstrap": str(self._bootstraps.path(key)),
            "devices": [str(self._paths.fuse / str(layer.inode)) for layer in layers],
            "layers": [layer.inode for layer in layers],
            "blob_bytes": sum(layer.size for layer, _ in image.layers),
            "config": {name: getattr(image.config, name) for name in RUN_CONFIG},
        }
