"""Recipe -> image, cached: what is there is not made again, and what is half made never looks whole.

    <cache>/lock                       held by whoever builds
    <cache>/build.log                  what the commands of the last build said
    <cache>/debs, apt-lists, wheels    downloads, shared by all builds
    <cache>/layers/<key>/fs            a layer as a tree: the base's, or an overlay's upper directory
    <cache>/layers/<key>/blob, .json   the same as a blob, with its digests
    <cache>/<image>-<key>/oci          the image layout
    <cache>/<image>-<key>/tree.json    what the merged tree holds (`benchmarks.images.tree`)

A key is the hash of all that decides the content, so images with the same beginning share layers.
Everything is made under another name in the same directory and renamed when it is whole and on
disk. A layer is packed while the next one is being made.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import apt, layout, sandbox
from benchmarks.images.errors import BuildError
from benchmarks.images.layer import PackedLayer, pack_layer
from benchmarks.images.recipe import Base, Busybox, Debootstrap, GoProgram, Recipe
from benchmarks.images.recipes import RECIPES

_log = logging.getLogger(__name__)

# Part of every key: raise it when this package makes something else of the same recipe.
_VERSION = 1
_KEY_LENGTH = 16

_DEBOOTSTRAP = """
debootstrap --variant=minbase --force-check-gpg --cache-dir="$CACHE/debs" "$SUITE" fs "$MIRROR"
# This machine's own names have no place in an image; empty files remain, to be mounted over.
for name in hostname hosts resolv.conf; do : >fs/etc/$name; done
# As in a container: nothing that is installed may start a service.
printf '#!/bin/sh\\nexit 101\\n' >fs/usr/sbin/policy-rc.d
chmod 755 fs/usr/sbin/policy-rc.d
rm -rf fs/var/lib/apt/lists/* fs/var/cache/apt/* fs/var/log/bootstrap.log
mkdir -p fs/var/cache/apt/archives/partial
"""

_BUSYBOX = """
mkdir -p fs/bin fs/dev fs/etc fs/proc fs/root fs/run fs/srv fs/sys fs/tmp fs/usr/bin
chmod 1777 fs/tmp
cp "$BUSYBOX" fs/bin/busybox
chroot fs /bin/busybox --install /bin
echo 'root:x:0:0:root:/root:/bin/sh' >fs/etc/passwd
echo 'root:x:0:' >fs/etc/group
for name in hostname hosts resolv.conf; do : >fs/etc/$name; done
"""

_GO = """
printf '%s' "$SOURCE" >main.go
mkdir -p fs/dev fs/etc fs/proc fs/sys fs/tmp
env GOCACHE="$PWD/go" GOTOOLCHAIN=local CGO_ENABLED=0 "$GO" build -trimpath -o fs/app main.go
rm -r go main.go
"""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the cache: an OCI image layout with one tag, and the listing of its merged tree."""

    layout: Path
    tag: str
    tree: Path

    @property
    def reference(self) -> str:
        return f"oci:{self.layout}:{self.tag}"


def ensure(recipe: Recipe, cache: Path) -> BuiltImage:
    """The image of `recipe`, made now unless `cache` has it; raises `BuildError`."""
    cache = cache.absolute()
    scripts = len(recipe.scripts) + recipe.flat
    directory = cache / f"{recipe.name}-{_key(recipe, scripts, with_config=True)}"
    image = BuiltImage(directory / "oci", recipe.name, directory / "tree.json")
    if not directory.exists():
        _check_machine(recipe)
        (cache / "layers").mkdir(parents=True, exist_ok=True)
        with _locked(cache / "lock"):
            if not directory.exists():
                _Build(recipe, cache).make(directory)
    return image


def _key(recipe: Recipe, scripts: int, *, with_config: bool = False) -> str:
    """Names what the first `scripts` scripts of a recipe make: the topmost layer of it, or the image.

    What a flat image is made of counts as one script more.
    """
    parts = [_VERSION, layout.architecture(), repr(recipe.base), *recipe.scripts[:scripts]]
    if recipe.flat and scripts > len(recipe.scripts):
        parts.append("flat")
    if with_config:
        parts += [recipe.name, json.dumps(dict(recipe.config), sort_keys=True)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]


def _layer_keys(recipe: Recipe) -> list[str]:
    return [_key(recipe, count) for count in range(len(recipe.scripts) + 1 + recipe.flat)]


_BASE_TOOLS: Mapping[type[Base], list[str]] = {
    Debootstrap: ["debootstrap", "apt-config"],
    Busybox: ["busybox"],
    GoProgram: ["go"],
}


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{sandbox.SYSTEM_PATH}:/usr/local/go/bin")


def _check_machine(recipe: Recipe) -> None:
    if os.geteuid() != 0:
        raise BuildError("building an image needs root: it mounts overlayfs and changes root")
    tools = ["setpriv", "unshare"]
    tools += _BASE_TOOLS[type(recipe.base)]
    missing = [tool for tool in tools if _which(tool) is None]
    if missing:
        raise BuildError(f"{', '.join(missing)} not found: run `make setup`")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another build in %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Build:
    """One build of one image, under the cache's lock."""

    def __init__(self, recipe: Recipe, cache: Path) -> None:
        self._recipe = recipe
        self._cache = cache
        self._layers = cache / "layers"
        self._log_file = cache / "build.log"
        self._new = self._layers / "new"
        self._keys = _layer_keys(recipe)
        self._packed = range(len(self._keys))[-1 if recipe.flat else 0 :]
        self._stop = threading.Event()

    def make(self, directory: Path) -> None:
        started = time.monotonic()
        self._log_file.write_bytes(b"")
        if isinstance(self._recipe.base, Debootstrap):
            for name in ("debs", "apt-lists", "wheels"):
                (self._cache / name).mkdir(exist_ok=True)
        with ThreadPoolExecutor(max_workers=2) as pool:
            try:
                packing = []
                for index in range(len(self._keys)):
                    self._ensure_tree(index)
                    if index in self._packed:
                        packing.append(pool.submit(self._ensure_blob, index))
                unfinished = self._cache / "new"
                _discard(unfinished)
                unfinished.mkdir()
                self._list_tree(unfinished / "tree.json")
                packed = [future.result() for future in packing]
            except BaseException:
                self._stop.set()
                raise
        commands = [_describe(self._recipe.base), *(f"/bin/sh -c {s.strip()}" for s in self._recipe.scripts)]
        if self._recipe.flat:
            commands = ["\n".join(commands)]
        blobs = [self._layers / self._keys[index] / "blob" for index in self._packed]
        layout.write_layout(
            unfinished / "oci",
            self._recipe.name,
            list(zip(packed, blobs, commands, strict=True)),
            self._recipe.config,
        )
        unfinished.rename(directory)
        self._prune(directory)
        _log.info("%s: ready after %.1f s", self._recipe.name, time.monotonic() - started)

    def _ensure_tree(self, index: int) -> None:
        target = self._layers / self._keys[index]
        if target.exists():
            return
        _discard(self._new)
        tree = self._new / "fs"
        tree.mkdir(parents=True)
        tree.chmod(0o755)
        with self._timed(index, "made"):
            if index == 0:
                self._make_base()
            elif index > len(self._recipe.scripts):
                sandbox.flatten_layers(self._new, self._lower(index), self._log_file)
            else:
                script = self._recipe.scripts[index - 1]
                sandbox.run_in_layers(script, self._new, self._lower(index), self._cache, self._log_file)
                # Only the base layer has an entry for the root directory, so the merged root is its.
                shutil.copystat(self._layers / self._keys[0] / "fs", tree)
        for name in ("root", "work"):
            _discard(self._new / name)
        self._new.rename(target)

    def _make_base(self) -> None:
        match self._recipe.base:
            case Debootstrap(suite):
                variables = {"SUITE": suite, "MIRROR": apt.find_mirror(suite), "CACHE": str(self._cache)}
                sandbox.run(_DEBOOTSTRAP, self._new, self._log_file, variables)
            case Busybox():
                sandbox.run(_BUSYBOX, self._new, self._log_file, {"BUSYBOX": str(_which("busybox"))})
            case GoProgram(source):
                sandbox.run(_GO, self._new, self._log_file, {"GO": str(_which("go")), "SOURCE": source})

    def _lower(self, count: int) -> list[str]:
        """The first `count` layers for overlayfs, topmost first.

        Relative: one mount option may be 256 bytes long at most where mount(8) uses fsconfig(2).
        """
        return [f"../{key}/fs" for key in reversed(self._keys[:count])]

    def _ensure_blob(self, index: int) -> PackedLayer:
        directory = self._layers / self._keys[index]
        record, blob = directory / "blob.json", directory / "blob"
        if record.exists():
            return PackedLayer(**json.loads(record.read_bytes()))
        with self._timed(index, "packed"):
            unfinished = directory / "blob.new"
            packed = pack_layer(
                directory / "fs", unfinished, with_root=index == self._packed[0], stop=self._stop
            )
            unfinished.rename(blob)
            unfinished = directory / "blob.json.new"
            layout.write_durably(unfinished, json.dumps(dataclasses.asdict(packed)).encode())
            unfinished.rename(record)
        return packed

    def _list_tree(self, out: Path) -> None:
        _discard(self._new)
        self._new.mkdir()
        layers = len(self._recipe.scripts) + 1
        sandbox.list_layers(out, self._new, self._lower(layers), self._log_file)
        _discard(self._new)

    def _prune(self, directory: Path) -> None:
        """Remove what older versions of the recipes left."""
        alive = {key for recipe in RECIPES.values() for key in _layer_keys(recipe)}
        stale = [path for path in self._layers.iterdir() if path.name not in alive]
        # Not those of a recipe whose name begins with this one's.
        images = self._cache.glob(f"{self._recipe.name}-" + "[0-9a-f]" * _KEY_LENGTH)
        stale += [path for path in images if path != directory]
        for path in stale:
            _discard(path)

    @contextlib.contextmanager
    def _timed(self, index: int, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        _log.info(
            "%s: layer %d of %d %s, %.1f s",
            *(self._recipe.name, index + 1, len(self._keys), what, time.monotonic() - started),
        )


def _describe(base: Base) -> str:
    match base:
        case Debootstrap(suite):
            return f"debootstrap --variant=minbase {suite}"
        case Busybox():
            return "busybox --install /bin"
        case GoProgram():
            return "go build -o /app"


def _discard(path: Path) -> None:
    """Remove a tree, under another name first: half of it must not be taken for the whole."""
    condemned = path.with_name("condemned")
    if path.exists() and path != condemned:
        _remove(condemned)
        path.rename(condemned)
    _remove(condemned)


def _remove(path: Path) -> None:
    # Not shutil.rmtree, which would go on into a file system that is mounted below.
    subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)
