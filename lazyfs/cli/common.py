"""What the commands share: global options, JSON, sizes for people."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lazyfs.config import NodePaths
from lazyfs.errors import LazyfsError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="The node's directory, as before the command.")
]


@dataclass(frozen=True, slots=True)
class Global:
    """Options given before the command."""

    root: Path | None
    debug: bool


def node_paths(context: typer.Context, root: Path | None) -> NodePaths:
    return NodePaths.choose(root or context.obj.root)


def show_error(error: LazyfsError) -> None:
    """One line for what is wrong, one for the remedy."""
    message = " ".join(error.message.split())
    print(f"lazyfs: {message}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


def print_json(values: Any) -> None:
    typer.echo(json.dumps(values, indent=2))


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as storage and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest.removeprefix("sha256:")[:12]
