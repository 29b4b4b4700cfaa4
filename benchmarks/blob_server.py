"""The registry of measurements, by hand.

python -m benchmarks.blob_server DIR NAME        docker://127.0.0.1:PORT/NAME:TAG for each tag of the layout
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

from lazyfs.bench.registry import serve_layout

__all__ = ["serve_layout"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blob_server", description=__doc__)
    parser.add_argument("layout", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    with serve_layout(arguments.layout, arguments.name) as address, suppress(KeyboardInterrupt):
        print(address, flush=True)
        while True:
            time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
