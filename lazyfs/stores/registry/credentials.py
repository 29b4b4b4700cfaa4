"""Where passwords are kept: the files of containers-auth.json(5) and of Docker, and the programs they name.

Looked through in this order, the first that knows the registry decides: the file that the caller or
``REGISTRY_AUTH_FILE`` names, and then no other; ``$XDG_RUNTIME_DIR/containers/auth.json``;
``~/.config/containers/auth.json``; ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``; kubelet's
``/var/lib/kubelet/config.json``. They are read anew each time, so that a login is noticed. On a node what engines
used for their pulls comes first (`learned`).
"""

import base64
import binascii
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.errors import BadInputError, LimitError, StoreError, UsageError
from lazyfs.formats.strict_json import Fields, load, plain, short
from lazyfs.stores._files import read_whole
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.registry.names import DOCKER_HUB, DOCKER_HUB_API, DOCKER_HUB_KEY, RepositoryName

_MAX_FILE = 4 << 20
_KUBELET = Path("/var/lib/kubelet/config.json")
_HELPER_SECONDS = 30.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN_USER = "<token>"  # what a helper says when its secret is an identity token


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's password, or a token in its place; ``source`` says for messages where it was found."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = ""

    def __bool__(self) -> bool:
        return bool(self.user or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"


NO_CREDENTIALS = Credentials()


def find_credentials(repository: RepositoryName, options: StoreOptions) -> Credentials:
    """What is known for this repository, else for its registry; NO_CREDENTIALS when nothing is.

    UsageError when a file that was named is not there or none that can be read, StoreError when a helper
    program fails.
    """
    for path, named in _files(options):
        try:
            data = read_whole(path, _MAX_FILE)
        except (OSError, StoreError) as error:
            if named:
                reason = error.strerror if isinstance(error, OSError) else "not a regular file"
                raise UsageError(
                    f"the file of credentials {path}: {reason}",
                    hint=f"`skopeo login {repository.host}` makes one",
                ) from error
            continue
        try:
            found = _in_file(load(data, str(path), _MAX_FILE), path, repository)
        except (BadInputError, LimitError) as error:
            raise UsageError(error.message, hint="mend or remove it, and log in again") from None
        if found:
            return found
    return NO_CREDENTIALS


def _files(options: StoreOptions) -> Iterator[tuple[Path, bool]]:
    """Where to look, and whether somebody asked to look just there."""
    environment = os.environ
    if options.learned_file is not None:
        yield options.learned_file, False
    chosen = options.auth_file or environment.get("REGISTRY_AUTH_FILE")
    if chosen:
        yield Path(chosen), True
        return
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime, "containers/auth.json"), False
    else:
        yield Path(f"/run/containers/{os.getuid()}/auth.json"), False
    with suppress(RuntimeError):  # nobody's home
        config = environment.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
        yield Path(config, "containers/auth.json"), False
        yield Path(environment.get("DOCKER_CONFIG") or Path("~/.docker").expanduser(), "config.json"), False
    yield _KUBELET, False


def _in_file(fields: Fields, path: Path, repository: RepositoryName) -> Credentials:
    helpers = fields.text_map("credHelpers")
    for host in _host_keys(repository.host):
        helper = helpers.get(host)
        if helper:
            found = _ask_helper(helper, repository.host, path)
            if found:
                return found
    store = fields.text("credsStore")
    if store:
        found = _ask_helper(store, repository.host, path)
        if found:
            return found
    auths = fields.child("auths")
    if auths is None:
        return NO_CREDENTIALS
    entries = {_normal_key(key): key for key in reversed(auths.values)}
    for key in _keys(repository):
        if key in entries:
            found = _entry(auths.child(entries[key]), str(path))
            if found:
                return found
    return NO_CREDENTIALS


def _keys(repository: RepositoryName) -> Iterator[str]:
    """host/a/b, host/a, host: the most specific first."""
    parts = repository.path.split("/")
    for count in range(len(parts), -1, -1):
        yield "/".join([repository.host, *parts[:count]])


def _host_keys(host: str) -> tuple[str, ...]:
    return (DOCKER_HUB, "index.docker.io", DOCKER_HUB_KEY) if host == DOCKER_HUB else (host,)


def _normal_key(key: str) -> str:
    """``https://index.docker.io/v1/`` and its like, as Docker writes them, to what they mean."""
    key = key.partition("://")[2].partition("/")[0] or key
    host, slash, path = key.partition("/")
    return f"{DOCKER_HUB if host in ('index.docker.io', DOCKER_HUB_API) else host}{slash}{path}"


def _entry(entry: Fields | None, source: str) -> Credentials:
    if entry is None:
        return NO_CREDENTIALS
    user, password = entry.text("username"), entry.text("password")
    packed = entry.text("auth")
    if packed:
        try:
            user, colon, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise UsageError(f"{entry.at('auth')} is not the base64 of user:password", hint="log in again")
        password = password.rstrip("\0")
    return Credentials(user, password, entry.text("identitytoken"), entry.text("registrytoken"), source)


def _ask_helper(name: str, host: str, path: Path) -> Credentials:
    """What docker-credential-NAME knows; NO_CREDENTIALS when it says it knows nothing."""
    program = f"docker-credential-{name}"
    if not _HELPER.fullmatch(name):
        raise UsageError(f"{path} names the credential helper {short(name)}", hint="a helper is a plain name")
    found = shutil.which(program)
    if found is None:
        raise StoreError(
            f"{program}, which {path} names for {host}, is not installed",
            hint="install it, or name another file of credentials in REGISTRY_AUTH_FILE",
        )
    output, code = _run(found, program, DOCKER_HUB_KEY if host == DOCKER_HUB else host)
    if code != 0:
        if b"credentials not found" in output or b"no credentials" in output:
            return NO_CREDENTIALS
        raise StoreError(
            f"{program} failed for {host} with exit code {code}: {plain(output.decode(errors='replace').strip())}",
            hint=f"try it by hand: echo {host} | {program} get",
        )
    try:
        answer = load(output, program, _MAX_FILE)
        user, secret = answer.text("Username"), answer.text("Secret")
    except (BadInputError, LimitError) as error:
        # Its output may hold the secret: nothing of it is shown.
        raise StoreError(f"{program} did not answer as it must for {host}", hint="try it by hand") from error
    if user == _TOKEN_USER:
        return Credentials(identity_token=secret, source=program)
    return Credentials(user, secret, source=program)


def _run(path: str, program: str, question: str) -> tuple[bytes, int]:
    # In a session of its own, so that what it started ends with it when it takes too long.
    with subprocess.Popen(
        [path, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(question.encode(), _HELPER_SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise StoreError(
                f"{program} did not answer within {_HELPER_SECONDS:.0f} s", hint="try it by hand"
            ) from None
    return output, process.returncode
