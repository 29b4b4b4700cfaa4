"""`lazyfs`: the commands, and what an error looks like to a person.

The commands' modules import what they need when they run, so that `lazyfs --help` and a warm `lazyfs run`
pay for nothing else.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from lazyfs import __version__
from lazyfs.cli import images, mounts, node, run
from lazyfs.cli.common import Global, show_error
from lazyfs.errors import LazyfsError

INTERNAL_ERROR = 70
INTERRUPTED = 130
DEFECT = "this is a defect of lazyfs; --debug shows where"

EPILOG = """
\b
Three commands do it:
  lazyfs convert oci:./images:app oci:./lazy:app     in CI, once
  lazyfs run oci:./lazy:app                          on a node, without pulling
  lazyfs status                                      what is here, what was fetched
"""

app = typer.Typer(
    name="lazyfs",
    help="Containers that start before their image is downloaded.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"lazyfs {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option(help="Where the node keeps everything (default: $LAZYFS_ROOT, else /var/lib/lazyfs)."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = Global(root, debug)


images.add_to(app)
run.add_to(app)
mounts.add_to(app)
node.add_to(app)


def main() -> None:
    """The console script: runs the command, and exits with its code."""
    sys.exit(_run())


def _run() -> int:
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except LazyfsError as error:
        if debug:
            raise
        show_error(error)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        show_error(LazyfsError(f"internal error: {type(error).__name__}: {error}", hint=DEFECT))
        return INTERNAL_ERROR
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
