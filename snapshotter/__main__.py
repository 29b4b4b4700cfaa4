"""`lazyfs-snapshotter --root DIR --address SOCK`: the process, in the foreground until SIGTERM."""

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from lazyfs import logs
from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, LazyfsError, NodeError, UsageError
from lazyfs.keeper.hardening import forbid_dumps
from snapshotter.image_service import serving_images
from snapshotter.images import Images
from snapshotter.lifecycle import Snapshots
from snapshotter.service import serving
from snapshotter.settings import SnapshotSettings

log = logging.getLogger("snapshotter")

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    help="""Serve containerd as a snapshotter, on a unix socket, until SIGTERM.

    \b
    In containerd's configuration:
      [proxy_plugins.lazyfs]
        type = "snapshot"
        address = "/run/lazyfs/snapshotter.sock"
    """
)
@click.option(
    "--root",
    type=_DIRECTORY,
    default=Path("/var/lib/lazyfs-snapshotter"),
    show_default=True,
    help="Where snapshots and their records are kept.",
)
@click.option(
    "--address",
    type=_FILE,
    default=Path("/run/lazyfs/snapshotter.sock"),
    show_default=True,
    help="The unix socket to serve on.",
)
@click.option(
    "--node",
    type=_DIRECTORY,
    help="The directory of the node whose daemon is used. Without it, one of its own below --root is started.",
)
@click.option(
    "--config",
    type=_FILE,
    help="Settings of that own node (docs/operations.md), instead of those in node/config.toml below --root.",
)
@click.option(
    "--image-service",
    type=_FILE,
    help="Serve CRI's image service here, for kubelet's --image-service-endpoint: passwords of pulls are learned.",
)
@click.option(
    "--image-service-of",
    type=_FILE,
    default=Path("/run/containerd/containerd.sock"),
    show_default=True,
    help="The containerd that answers it.",
)
def main(
    root: Path,
    address: Path,
    node: Path | None,
    config: Path | None,
    image_service: Path | None,
    image_service_of: Path,
) -> None:
    logs.set_up()
    forbid_dumps()  # passwords of pulls come by here
    try:
        images = (image_service.absolute(), image_service_of.absolute()) if image_service else None
        if node is not None and config is not None:
            raise UsageError(
                f"--config is for a node of its own, and {node} is another's",
                hint=f"write its settings into {node / 'config.toml'}",
            )
        _run(Path(os.path.realpath(root)), address.absolute(), node, config, images)
    except LazyfsError as error:
        click.echo(f"lazyfs-snapshotter: {error.message}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        sys.exit(error.exit_code)


def _run(
    root: Path, address: Path, node: Path | None, config: Path | None, image_service: tuple[Path, Path] | None
) -> None:
    """`node` is whose daemon to use, unless an own; `image_service` where to serve that of CRI, and whose it is."""
    signals = {signal.SIGTERM, signal.SIGINT}
    # Before any thread is made, so that none of them takes the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with _only_one(root):
        paths = NodePaths.choose(node or root / "node")
        if config is not None:
            _use_settings(paths, config.absolute())
        settings = SnapshotSettings.read(paths)
        images = Images(paths, settings.trust)
        snapshots = Snapshots(root, images, limit=settings.limit)
        try:
            with ExitStack() as stack:
                stack.enter_context(serving(snapshots, address))
                if image_service is not None:
                    stack.enter_context(serving_images(*image_service, paths.credentials))
                log.info("serving %s on %s", root, address)
                images.start_daemon()
                log.info("%s: stopping", signal.Signals(signal.sigwait(signals)).name)
        finally:
            snapshots.close()
            if node is None:
                images.stop_daemon()


def _use_settings(paths: NodePaths, config: Path) -> None:
    """Let the node read its settings from `config`: its own `config.toml` is a link there from now on."""
    try:
        config.read_bytes()  # a file that is not there must not mean "no settings"
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        if paths.settings.exists() and not paths.settings.is_symlink():
            raise UsageError(
                f"{paths.settings} is there, and --config names {config}", hint="remove one of them"
            )
        link = paths.settings.with_name(".new-config")
        link.unlink(missing_ok=True)
        link.symlink_to(config)
        link.replace(paths.settings)
    except OSError as error:
        raise UsageError(
            f"--config {config}: {error.strerror}", hint="name a file that can be read"
        ) from error


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Only one process for a root; the lock goes with the process, whatever ends it."""
    try:
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{root}: {error.strerror}", hint="choose another --root, or run as root") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"another process serves {root}", hint="end it, or choose another --root") from error
    try:
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
