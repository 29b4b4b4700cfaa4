"""What processes that run for long write to their logs: `LAZYFS_LOG` says how much of it."""

import logging
import os

_OURS = ("lazyfs", "converter", "snapshotter")


def set_up() -> None:
    """Of libraries no more than INFO: at DEBUG some write down the requests that they sign, and tokens with them."""
    level = logging.getLevelNamesMapping().get(os.environ.get("LAZYFS_LOG", "").upper(), logging.INFO)
    logging.basicConfig(
        level=max(level, logging.INFO), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
