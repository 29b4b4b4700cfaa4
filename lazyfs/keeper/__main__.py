"""`python -m lazyfs.keeper`: see `command`. The daemon is started first, then the rest of the keeper is imported."""

import sys

from lazyfs.keeper.early import start_early


def main() -> int:
    early = start_early(sys.argv[1:])
    from lazyfs.keeper.command import run

    return run(early)


if __name__ == "__main__":
    sys.exit(main())
