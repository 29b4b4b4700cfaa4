"""What a node fetches for version N+1 of an image when it has version N: five real upgrades of Debian's packages.

    python -m benchmarks.upgrades [--images nginx node]

Each image is there as Debian released it and as a nightly build makes it after security updates, everything installed
anew. Told are the bytes of an ordinary pull of the new one by a node that has all layers of the old one; of the new
one's chunks that the old one does not have, if all of it is read; and what a start of the new one really fetches until
it is ready: on an empty node, and on a node that has started the old one.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.blob_server import serve_layout
from benchmarks.images import RECIPES, ensure
from benchmarks.images.services import UPGRADED
from benchmarks.link import Link, parse_link
from benchmarks.node import lazyfs, running_node
from benchmarks.report import Row, conclude, parser
from benchmarks.workloads import SUITE
from converter import Settings, compare, convert_image
from lazyfs.run.ready import Started, parse_probe
from lazyfs.stores import open_store, parse_reference

IMAGES = tuple(recipe.name.removesuffix("-upgraded") for recipe in UPGRADED)
OLD, NEW = "old", "new"
_NAME = "upgrade"
_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Bytes: of an ordinary pull, of new chunks, and of starts of the new image."""

    image: str
    pull: int
    chunks: int
    start_on_empty: int
    start_after_old: int


def main() -> int:
    options = parser("benchmarks.upgrades", __doc__)
    options.add_argument("--images", nargs="+", choices=IMAGES, default=IMAGES)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.images)
    for each in found:
        print(
            f"{each.image:10} pull {each.pull / 1e6:7.1f} MB, all of it lazily {each.chunks / 1e6:7.1f} MB; start "
            f"{each.start_on_empty / 1e6:6.1f} MB on an empty node, {each.start_after_old / 1e6:6.1f} MB after the old"
        )
    return conclude(arguments, found, rows(found))


def measure(cache: Path, images: Sequence[str] = IMAGES) -> list[Upgrade]:
    found = []
    for image in images:
        with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name:
            found.append(_measure(image, cache, Path(name)))
    return found


def _measure(image: str, cache: Path, directory: Path) -> Upgrade:
    layout = directory / "layout"
    for tag, recipe in ((OLD, image), (NEW, f"{image}-upgraded")):
        source = parse_reference(ensure(RECIPES[recipe], cache).reference)
        target = parse_reference(f"oci:{layout}:{tag}")
        with open_store(source) as from_store, open_store(target, create=True) as to_store:
            convert_image(from_store, source, to_store, target, Settings())
    old, new = (parse_reference(f"oci:{layout}:{tag}") for tag in (OLD, NEW))
    with open_store(old) as old_store, open_store(new) as new_store:
        difference = compare(old_store, old, new_store, new)
    with serve_layout(layout, _NAME) as server:
        empty = _start(directory, server, image, [NEW])
        after = _start(directory, server, image, [OLD, NEW])
    return Upgrade(image, difference.missing_layer_bytes, difference.missing_bytes, empty, after)


def _start(directory: Path, server: str, image: str, tags: Sequence[str]) -> int:
    """Start one after the other on a node that is empty before; bytes over the link until the last is ready."""
    root = directory / "node"
    with Link(parse_link("loopback"), server) as link, running_node(root):
        for tag in tags:
            before = link.counts().down
            command = [*lazyfs(root), "run", "--no-fill", f"docker://{link.address}/{_NAME}:{tag}"]
            with (
                Path("/dev/null").open("wb") as nowhere,
                Started(command, parse_probe(SUITE[image].ready), nowhere) as started,
            ):
                started.wait_ready(_SECONDS)
                fetched = link.counts().down - before
        return fetched


def rows(found: Sequence[Upgrade]) -> list[Row]:
    made = []
    for each in found:
        made.append(
            Row(
                f"upgrade of {each.image}: read in full, of a pull's bytes",
                each.chunks / each.pull,
                "",
            )
        )
        share = each.start_after_old / max(each.start_on_empty, 1)
        made.append(Row(f"upgrade of {each.image}: a start's bytes, of those on an empty node", share, ""))
    return made


if __name__ == "__main__":
    sys.exit(main())
