"""What the container executes: Entrypoint and Cmd put together as docker does, and looked up in the image."""

import os
import stat
from collections.abc import Iterator, Sequence

from lazyfs.errors import NodeError, NotFoundError, UsageError
from lazyfs.run.kernel import open_in_root


class CommandNotFoundError(NotFoundError):
    """The image has no such program; a shell's exit code for that."""

    exit_code = 127


class CommandNotExecutableError(NodeError):
    """The image has it, but it cannot be executed; a shell's exit code for that."""

    exit_code = 126


def command_line(
    entrypoint: Sequence[str], cmd: Sequence[str], *, override: str | None, args: Sequence[str]
) -> list[str]:
    """The image's ``entrypoint`` and ``cmd``, changed by ``--entrypoint`` and by the arguments after REF."""
    if override is not None:
        entrypoint, cmd = [override] if override else [], []
    words = [*entrypoint, *(args or cmd)]
    if not words or not words[0]:
        raise UsageError(
            "there is no command to run", hint="name one after the image: lazyfs run REF COMMAND"
        )
    return words


def check_command(root: int, command: str, search: str, directory: str) -> None:
    """Raise `CommandNotFoundError` or `CommandNotExecutableError` if ``command`` cannot be started.

    Runtimes find that out as well, but only after they have made a container, and each in words of
    its own. ``search`` is the value of PATH; ``directory`` the absolute working directory.
    """
    there = False
    for candidate in _candidates(command, search, directory):
        try:
            descriptor = open_in_root(root, candidate, os.O_PATH)
        except OSError:
            continue
        mode = os.fstat(descriptor).st_mode
        os.close(descriptor)
        if stat.S_ISREG(mode) and mode & 0o111:
            return
        there = there or not stat.S_ISDIR(mode) or "/" in command
    if there:
        raise CommandNotExecutableError(f"{command}: not an executable file in the image")
    where = "" if "/" in command else f" on its PATH ({search})"
    raise CommandNotFoundError(
        f"{command}: no such program in the image{where}",
        hint="arguments after the image replace its Cmd; --entrypoint replaces its Entrypoint",
    )


def _candidates(command: str, search: str, directory: str) -> Iterator[str]:
    if "/" in command:
        yield f"{directory}/{command}" if command[0] != "/" else command
        return
    for folder in search.split(":"):
        yield f"{folder}/{command}" if folder.startswith("/") else f"{directory}/{folder}/{command}"
