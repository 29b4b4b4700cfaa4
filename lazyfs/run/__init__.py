"""Run a container on a mounted root file system, by an OCI runtime, and leave nothing behind.

This room is given a path and an image's config. It knows nothing of stores, nor of the daemon.
"""

from lazyfs.run.command import CommandNotExecutableError, CommandNotFoundError
from lazyfs.run.container import cleanup_stale, run_container, stale_containers
from lazyfs.run.options import RunOptions, Volume, parse_options

__all__ = [
    "CommandNotExecutableError",
    "CommandNotFoundError",
    "RunOptions",
    "Volume",
    "cleanup_stale",
    "parse_options",
    "run_container",
    "stale_containers",
]
