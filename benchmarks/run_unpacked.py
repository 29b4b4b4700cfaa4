"""Run an image's own command on a tree that was unpacked in full: `LAYOUT TAG ROOTFS`. Used by the demo."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.unpack import image_layers
from lazyfs.formats.oci import parse_config
from lazyfs.run.container import run_container
from lazyfs.run.options import parse_options


def main(layout: Path, tag: str, rootfs: Path) -> int:
    _, config = image_layers(layout, tag)
    with tempfile.TemporaryDirectory(prefix="lazyfs-demo-") as state:
        return run_container(parse_options(), parse_config(json.dumps(config).encode()), rootfs, Path(state))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
