"""`lazyfs run`: an image, an overlay, a container, and nothing left of it."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazyfs.cli.common import RootOption, node_paths, show_error
from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError

if TYPE_CHECKING:
    from lazyfs.run.options import RunOptions

OWN_FAILURE = 125
"""Exit code where lazyfs failed and not the container, as with docker and podman."""
PREFIX = "run-"


def add_to(app: typer.Typer) -> None:
    app.command(context_settings={"allow_interspersed_args": False})(run)


def run(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="REF", help="A converted image: oci:DIR[:tag].")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="Replace the image's Cmd.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="NAME[=VALUE]")] = None,
    volume: Annotated[
        list[str] | None, typer.Option("-v", "--volume", metavar="SRC:DST[:ro]", help="Mount a host path.")
    ] = None,
    entrypoint: Annotated[str | None, typer.Option(help="Replace the image's Entrypoint.")] = None,
    workdir: Annotated[str, typer.Option("-w", "--workdir", help="Working directory.")] = "",
    user: Annotated[str, typer.Option("-u", "--user", metavar="NAME|UID[:GROUP|GID]")] = "",
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Connect standard input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the container this terminal.")] = False,
    name: Annotated[str, typer.Option(help="Name of the container.")] = "",
    hostname: Annotated[str, typer.Option(help="Its host name.")] = "",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="The root file system cannot be written.")
    ] = False,
    network: Annotated[str, typer.Option(metavar="host|none")] = "host",
    memory: Annotated[str, typer.Option("-m", "--memory", metavar="SIZE", help="Limit, such as 512m.")] = "",
    runtime: Annotated[
        str, typer.Option(help="OCI runtime: a name or a path (default: crun, else runc).")
    ] = "",
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what was fetched and read when (SVG).")
    ] = None,
    rm: Annotated[
        bool, typer.Option("--rm", help="For those used to it: nothing is ever left behind.")
    ] = False,
    root: RootOption = None,
) -> None:
    """Run a command in a container of a converted image, without downloading it first.

    Starts the image's own Entrypoint, Cmd, Env, WorkingDir and User; streams output, forwards signals, exits
    with the container's code (125: lazyfs failed, 126: not executable, 127: not found).

    \b
    Examples:
      lazyfs run oci:./lazy:app
      lazyfs run -it --entrypoint sh oci:./lazy:app
      lazyfs run -v ./data:/data:ro -e MODE=fast oci:./lazy:app --port 80
      lazyfs run --timeline start.svg oci:./lazy:app python3 -c 'import numpy'
    """
    from lazyfs.run.command import CommandNotExecutableError, CommandNotFoundError
    from lazyfs.run.options import parse_options

    try:
        options = parse_options(
            args or (),
            env=env or (),
            volumes=volume or (),
            entrypoint=entrypoint,
            workdir=workdir,
            user=user,
            interactive=interactive,
            tty=tty,
            name=name,
            read_only=read_only,
            network=network,
            memory=memory,
            hostname=hostname,
            runtime=runtime,
        )
        code = _run(node_paths(context, root), reference, options, timeline)
    except LazyfsError as error:
        if context.obj.debug:
            raise
        show_error(error)
        code = (
            error.exit_code
            if isinstance(error, CommandNotFoundError | CommandNotExecutableError)
            else OWN_FAILURE
        )
    raise typer.Exit(code)


def _run(paths: NodePaths, reference: str, options: "RunOptions", timeline: Path | None) -> int:
    from lazyfs.daemon.client import ensure_daemon
    from lazyfs.formats.oci import parse_config
    from lazyfs.mount.images import mount_writable, unmount_image
    from lazyfs.run.container import cleanup_stale, run_container
    from lazyfs.stores.reference import parse_reference

    began = time.monotonic()
    absolute = str(parse_reference(reference).absolute())
    client = ensure_daemon(paths)
    cleanup_stale(paths.containers)
    remove_stale_runs(paths)
    image = client.open_image(absolute)
    config = parse_config(image["config"].encode())
    with _directory(paths) as directory:
        rootfs = directory / "rootfs"
        rootfs.mkdir()
        mount_writable(paths, image, rootfs, directory / "overlay")
        try:
            return run_container(options, config, rootfs, paths.containers)
        finally:
            unmount_image(paths, rootfs, detach=True)
            if timeline is not None:
                _draw(client.timeline(began), began, timeline)


def _draw(recorded: dict[str, Any], began: float, file: Path) -> None:
    from lazyfs.cli.timeline import draw

    file.write_text(draw(recorded, began))


@contextmanager
def _directory(paths: NodePaths) -> Iterator[Path]:
    """The run's own directory, locked as long as its process lives."""
    token = os.urandom(6).hex()
    fresh, directory = paths.mounts / f"new-{token}", paths.mounts / f"{PREFIX}{token}"
    fresh.mkdir(mode=0o700, parents=True)
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.rename(directory)  # it has this name only while it is locked, see remove_stale_runs
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def remove_stale_runs(paths: NodePaths) -> None:
    """Take away what runs left whose process was killed: their overlays and what was written there."""
    from lazyfs.errors import NotFoundError
    from lazyfs.mount.images import unmount_image

    for directory in paths.mounts.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(NotFoundError):
                    unmount_image(paths, directory / "rootfs", detach=True)
                shutil.rmtree(directory, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)
