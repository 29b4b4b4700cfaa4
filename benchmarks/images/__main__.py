"""`python -m benchmarks.images NAME`: make the image unless it is there, print its reference."""

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.images.build import ensure
from benchmarks.images.errors import BuildError
from benchmarks.images.recipes import RECIPES

_LOG_LINES_SHOWN = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"), help="default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        image = ensure(RECIPES[arguments.name], arguments.cache)
    except BuildError as error:
        log = arguments.cache / "build.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        print(*lines[-_LOG_LINES_SHOWN:], f"error: {error}", sep="\n", file=sys.stderr)
        return 1
    print(image.reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
