"""The commands, and what an error looks like to a person.

The commands' modules import what they need when they run, so that `lazyfs --help` and a warm `lazyfs run`
pay for nothing else.
"""

import io
import os
import sys
from importlib import import_module
from pathlib import Path

import click

from lazyfs import __version__
from lazyfs.cli.common import Global, show_error
from lazyfs.errors import LazyfsError, UsageError

INTERNAL_ERROR = 70
INTERRUPTED = 130
DEFECT = "this is a defect of lazyfs; --debug shows where"


# Each command and its module below `lazyfs.cli`, in the order in which help shows them.
COMMANDS = {
    "convert": "images",
    "copy": "images",
    "check": "images",
    "diff": "images",
    "inspect": "images",
    "run": "run",
    "mount": "mounts",
    "umount": "mounts",
    "cache": "cache",
    "profile": "profile",
    "bench": "bench",
    "status": "node",
    "doctor": "node",
    "upgrade": "node",
    "shutdown": "node",
    "install": "install",
}


class _Commands(click.Group):
    """Imports the module of a command when it is asked for: with all of them a cold `lazyfs run` took 60 ms more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lazyfs.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Three commands do it:
  lazyfs convert oci:./images:app oci:./lazy:app     in CI, once
  lazyfs run oci:./lazy:app                          on a node, without pulling
  lazyfs status                                      what is here, what was fetched
""",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the node keeps everything (default: $LAZYFS_ROOT, else /var/lib/lazyfs).",
)
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.version_option(__version__, message="lazyfs %(version)s")
@click.pass_context
def app(context: click.Context, root: Path | None, debug: bool) -> None:
    """Containers that start before their image is downloaded."""
    given = context.ensure_object(Global)
    given.root, given.debug = root, debug


def run(words: list[str]) -> int:
    """Run the command that the arguments name; its exit code."""
    given = Global()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths leave as they came
    try:
        code = app.main(words, prog_name="lazyfs", standalone_mode=False, obj=given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        show_error(
            UsageError(error.format_message(), hint=f"{context.command_path} --help" if context else "")
        )
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("lazyfs: interrupted", file=sys.stderr)
        return INTERRUPTED
    except LazyfsError as error:
        if given.debug:
            raise
        show_error(error)
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # (click's word for it) whoever read our output has had enough
        _discard_output()
        return 0
    except OSError as error:
        if given.debug:
            raise
        show_error(LazyfsError(str(error)))
        _discard_output()
        return LazyfsError.exit_code
    except Exception as error:
        if given.debug:
            raise
        show_error(LazyfsError(f"internal error: {type(error).__name__}: {error}", hint=DEFECT))
        return INTERNAL_ERROR
    return code if isinstance(code, int) else 0


def _discard_output() -> None:
    """What could not be written must not be tried again, and complained about, by the interpreter at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
