"""Makes the image of `lazyfs.mount.probe_image`, by the code that makes those of images.

python -m tests.mount.probe_image      prints what belongs there
"""

import base64
import io
import tarfile
import zlib

from lazyfs.formats.bootstrap import JOINED, build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.spread import spread
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.formats.toc_types import Tree
from lazyfs.mount.probe_image import CONTENT, NAME, XATTRS

BLOCK = 4096


def make() -> dict[str, bytes]:
    """The constants by their names."""
    stream, tree = _image()
    laid_out = spread(merge([tree]))
    joined = bytes(build(laid_out.tree, [laid_out.size], JOINED)) + CONTENT
    return {
        "BOOTSTRAP": bytes(build(merge([tree]), [len(stream)])),
        "DEVICE": stream,
        "JOINED": joined + bytes(-len(joined) % BLOCK),
    }


def _image() -> tuple[bytes, Tree]:
    """A layer of one file, as a tar stream and as a tree."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(NAME)
        member.size = len(CONTENT)
        member.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in XATTRS.items()
        }
        archive.addfile(member, io.BytesIO(CONTENT))
    builder = TreeBuilder("probe")
    stream.seek(0)
    for entry in walk(FileSource(stream)):
        builder.add(entry, entry.data_offset, entry.sparse)
    return stream.getvalue(), builder.finish(len(stream.getvalue()))


if __name__ == "__main__":
    for name, content in make().items():
        print(name, base64.b85encode(zlib.compress(content, 9)).decode())
