"""What the commands share: global options, JSON, sizes for people."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError
from lazyfs.mount.ladder import MODES

if TYPE_CHECKING:
    from lazyfs.daemon.client import DaemonClient

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def root_option(command: Command) -> Command:
    return click.option(
        "--root", type=click.Path(path_type=Path), help="The node's directory, as before the command."
    )(command)


@dataclass(frozen=True, slots=True)
class NodeChoices:
    """What `node_options` say."""

    cache_limit: str | None
    paranoid: bool
    fetch_memory: str | None

    def tell(self, client: "DaemonClient") -> None:
        """Tell the daemon, if there is anything to tell."""
        if self.cache_limit is not None or self.paranoid:
            values = {"limit": self.cache_limit, "paranoid": self.paranoid or None}
            client.ask("POST /v1/cache/settings", values)
        if self.fetch_memory is not None:
            client.ask("POST /v1/fetch/settings", {"memory": self.fetch_memory})


def node_options(command: Command) -> Command:
    """For commands that start a daemon: what it shall do until it ends. They become one argument, `choices`."""

    @wraps(command)
    def choosing(
        *arguments: Any, cache_limit: str | None, paranoid: bool, fetch_memory: str | None, **words: Any
    ) -> Any:
        return command(*arguments, choices=NodeChoices(cache_limit, paranoid, fetch_memory), **words)

    options = (
        click.option(
            "--fetch-memory",
            metavar="SIZE",
            help="What may be in memory of what is being fetched: 64M, the default.",
        ),
        click.option(
            "--cache-limit", metavar="SIZE", help="What the cache may take of the disk: 50G or 80%."
        ),
        click.option("--paranoid", is_flag=True, help="Verify what is read from the cache, each time."),
    )
    chosen = cast(Command, choosing)
    for option in options:
        chosen = option(chosen)
    return chosen


def fill_option(command: Command) -> Command:
    return click.option(
        "--no-fill", is_flag=True, help="Fetch only what is read, not the rest while the link is idle."
    )(command)


def mount_mode_option(command: Command) -> Command:
    return click.option(
        "--mount-mode",
        type=click.Choice(MODES),
        help="How the image is shown: EROFS on files, EROFS on a loop device, or FUSE alone. Default: the node's "
        "settings, else the best that works here (see lazyfs doctor).",
    )(command)


def reference_argument(command: Command) -> Command:
    return click.argument("reference", metavar="REF")(command)


@dataclass(slots=True)
class Global:
    """Options given before the command."""

    root: Path | None = None
    debug: bool = False


def node_paths(context: click.Context, root: Path | None) -> NodePaths:
    return NodePaths.choose(root or context.obj.root)


def show_error(error: LazyfsError) -> None:
    """One line for what is wrong, one for the remedy."""
    print(f"lazyfs: {_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {_line(error.hint)}", file=sys.stderr)


def _line(text: str) -> str:
    """One line, in which nothing can move a terminal's cursor."""
    words = " ".join(text.split())
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in words)


def print_json(values: Any) -> None:
    click.echo(json.dumps(values, indent=2))


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest.removeprefix("sha256:")[:12]
