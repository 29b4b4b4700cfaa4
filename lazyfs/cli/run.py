"""`lazyfs run`: an image, an overlay, a container, and nothing left of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lazyfs.cli.common import (
    NodeChoices,
    fill_option,
    mount_mode_option,
    node_options,
    node_paths,
    reference_argument,
    root_option,
    show_error,
)
from lazyfs.cli.early import BEGAN
from lazyfs.cli.interrupts import Interrupted, interruptible
from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError, NodeError

if TYPE_CHECKING:
    from lazyfs.daemon.client import DaemonClient
    from lazyfs.run.options import RunOptions

OWN_FAILURE = 125
"""Exit code where lazyfs failed and not the container, as with docker and podman."""


@click.command(
    short_help="Run a container without pulling its image.",
    context_settings={"allow_interspersed_args": False},
)
@reference_argument
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable; NAME alone passes it on."
)
@click.option("--env-file", multiple=True, type=click.Path(path_type=Path), help="Variables from a file.")
@click.option("-v", "--volume", multiple=True, metavar="SRC:DST[:ro]", help="Mount a host path.")
@click.option("--entrypoint", help="Replace the image's Entrypoint.")
@click.option("-w", "--workdir", default="", help="Working directory.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names or numbers.")
@click.option("-i", "--interactive", is_flag=True, help="Connect standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the container this terminal.")
@click.option("--name", default="", help="Name of the container.")
@click.option("--hostname", default="", help="Its host name.")
@click.option("--read-only", is_flag=True, help="The root file system cannot be written.")
@click.option("--network", default="host", metavar="host|none", help="Default: host.")
@click.option("-m", "--memory", default="", metavar="SIZE", help="Limit, such as 512m.")
@click.option("--runtime", default="", help="OCI runtime: a name or a path (default: crun, else runc).")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw what was fetched and read when (SVG).",
)
@click.option("--rm", is_flag=True, help="For those used to it: nothing is ever left behind.")
@fill_option
@node_options
@mount_mode_option
@root_option
@click.pass_context
def run(
    context: click.Context,
    /,
    reference: str,
    args: tuple[str, ...],
    timeline: Path | None,
    env_file: tuple[Path, ...],
    env: tuple[str, ...],
    volume: tuple[str, ...],
    rm: bool,
    no_fill: bool,
    choices: NodeChoices,
    mount_mode: str | None,
    root: Path | None,
    **words: Any,
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

    if timeline is not None and not timeline.absolute().parent.is_dir():
        raise click.BadParameter(f"{timeline.parent} is not a directory", param_hint="--timeline")
    try:
        options = parse_options(args, env=env, env_files=env_file, volumes=volume, **words)
        code = _run(
            node_paths(context, root),
            reference,
            options,
            timeline,
            not no_fill,
            choices,
            mount_mode,
        )
    except LazyfsError as error:
        if context.obj.debug:
            raise
        show_error(error)
        code = (
            error.exit_code
            if isinstance(error, CommandNotFoundError | CommandNotExecutableError)
            else OWN_FAILURE
        )
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    context.exit(code)


class RunConfig(NamedTuple):
    """What a run reads of an image's config, as the daemon answers it."""

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _run(
    paths: NodePaths,
    reference: str,
    options: "RunOptions",
    timeline: Path | None,
    fill: bool,
    choices: NodeChoices,
    mount_mode: str | None,
) -> int:
    from lazyfs.daemon.client import daemon_in_use

    with interruptible() as interrupts, ExitStack() as undo:
        with daemon_in_use(paths) as client:
            choices.tell(client)
            image = client.open_image(
                reference,
                meanwhile=partial(_make_room, paths),
                fill=fill,
                mode=mount_mode or "",
                command=options.entrypoint or "",
            )
            interrupts.hold()
            rootfs = undo.enter_context(_mounted(paths, image))
        interrupts.release()
        from lazyfs.run.container import run_container

        config = RunConfig(*(_frozen(image["config"][name]) for name in RunConfig._fields))
        code = run_container(options, config, rootfs, paths.containers)
        interrupts.hold()
        if timeline is not None:
            _draw(client, image, BEGAN, timeline)
    return code


def _make_room(paths: NodePaths) -> None:
    """What need not wait for the daemon; and the imports of what is called next, as long as the rest takes cold."""
    from lazyfs.cli.workspace import remove_leftovers

    remove_leftovers(paths)
    import_module("lazyfs.mount.images")
    import_module("lazyfs.run.container")


@contextmanager
def _mounted(paths: NodePaths, image: dict[str, Any]) -> Iterator[Path]:
    """A root file system that can be written; in the end nothing of it is left."""
    from lazyfs.cli.workspace import run_directory
    from lazyfs.mount.images import mount_writable

    with run_directory(paths) as directory:
        rootfs = directory / "rootfs"
        rootfs.mkdir()
        mount_writable(paths, image, rootfs, directory / "overlay")
        yield rootfs


def _draw(client: "DaemonClient", image: dict[str, Any], began: float, file: Path) -> None:
    from lazyfs.draw.timeline import draw

    sizes = {
        layer["blob"]: layer["bytes"]
        for layer in client.status()["layers"]
        if layer["device"] in image["layers"]
    }
    picture = draw(client.timeline(began), sizes, began, None, f"lazyfs run {image['reference']}")
    try:
        file.write_text(picture)
    except OSError as error:
        raise NodeError(f"cannot write the timeline to {file}: {error.strerror}") from error
