"""What the commands share: global options, JSON, sizes for people."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def root_option(command: Command) -> Command:
    return click.option(
        "--root", type=click.Path(path_type=Path), help="The node's directory, as before the command."
    )(command)


def reference_argument(command: Command) -> Command:
    return click.argument("reference", metavar="REF")(command)


@dataclass(frozen=True, slots=True)
class Global:
    """Options given before the command."""

    root: Path | None
    debug: bool


def node_paths(context: click.Context, root: Path | None) -> NodePaths:
    return NodePaths.choose(root or context.obj.root)


def show_error(error: LazyfsError) -> None:
    """One line for what is wrong, one for the remedy."""
    message = " ".join(error.message.split())
    print(f"lazyfs: {message}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


def print_json(values: Any) -> None:
    click.echo(json.dumps(values, indent=2))


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest.removeprefix("sha256:")[:12]
