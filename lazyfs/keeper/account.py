"""As whom the daemon runs, and that it owns what it writes.

`$LAZYFS_USER` or `--user` names the account; else it is `lazyfs` where there is one, else root. Whoever it
is, it has no capabilities and can never gain any (`lazyfs.daemon.privileges`).
"""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import NodeError, UsageError

DEFAULT_ACCOUNT = "lazyfs"
VARIABLE = "LAZYFS_USER"


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int


def choose(name: str | None) -> Account:
    """The account of that name, of $LAZYFS_USER, or the default. UsageError where there is none."""
    wanted = name or os.environ.get(VARIABLE)
    try:
        entry = pwd.getpwnam(wanted or DEFAULT_ACCOUNT)
    except KeyError as error:
        if wanted:
            raise UsageError(
                f"there is no user {wanted}", hint=f"useradd --system --no-create-home {wanted}"
            ) from error
        entry = pwd.getpwuid(os.geteuid())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def give(paths: NodePaths, account: Account) -> None:
    """Make the directories that the daemon writes to, and its own: also what another daemon wrote there."""
    own = (
        paths.cache,
        paths.tocs,
        paths.documents,
        paths.packs,
        paths.proofs,
        paths.signatures,
        paths.seen,
        paths.bootstraps,
        paths.state,
        paths.credentials.parent,
    )
    for directory in (*own, *_elsewhere(paths)):
        try:
            if directory in own:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not directory.is_dir():
                continue  # a disk that is not mounted; the daemon says so
            if directory.lstat().st_uid != account.uid:
                _give_tree(directory, account)
        except OSError as error:
            raise NodeError(
                f"{directory}: {error.strerror}", hint="free some space, or choose another --root"
            ) from error


def _elsewhere(paths: NodePaths) -> list[Path]:
    """The cache directories of `config.toml`, as far as they can be meant."""
    if not paths.settings.exists():
        return []
    places = read_settings(paths, "cache").get("directory", [])
    named = (
        [each.get("path") for each in places if isinstance(each, dict)] if isinstance(places, list) else []
    )
    return [Path(each) for each in named if isinstance(each, str) and each.startswith("/")]


def _give_tree(directory: Path, account: Account) -> None:
    """The top last: a change that was broken off is begun again."""
    # By descriptors and never through a symbolic link: the tree may be the work of a daemon that was taken over.
    for _, names, files, parent in os.fwalk(directory, topdown=False):
        for name in (*names, *files):
            status = os.lstat(name, dir_fd=parent)
            # What has another name may be anybody's file: with fs.protected_hardlinks = 0 it needs no right to link it.
            if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                os.chown(name, account.uid, account.gid, dir_fd=parent, follow_symlinks=False)
    os.chown(directory, account.uid, account.gid, follow_symlinks=False)
