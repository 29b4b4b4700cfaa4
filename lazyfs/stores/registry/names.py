"""What a user calls a repository, as Docker and skopeo read it: ``[host[:port]/]path``.

The grammar is that of the reference package of distribution, which is also that of `name` in the OCI
distribution specification. The one registry that everybody names by leaving its name out is docker.io.
"""

import re
from dataclasses import dataclass

from lazyfs.errors import UsageError
from lazyfs.formats.strict_json import short

DOCKER_HUB = "docker.io"
DOCKER_HUB_API = "registry-1.docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""Under which name Docker keeps the password of docker.io."""

_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_API})
_MAX_NAME = 255
_EXAMPLE = "docker://registry.example:5000/team/app:v1"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::([0-9]{{1,5}}))?")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RepositoryName:
    """A repository: ``host`` with its port, if one was named, and the path below it."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


def parse_repository(text: str) -> RepositoryName:
    """Read ``[host[:port]/]path``; UsageError when it can be none."""
    head, slash, tail = text.partition("/")
    if slash and _is_host(head):
        host, path = DOCKER_HUB if head in _HUB_NAMES else head, tail
    else:
        host, path = DOCKER_HUB, text
    match = _HOST.fullmatch(host)
    if match is None or (match[1] is not None and not 0 < int(match[1]) < 65536):
        raise UsageError(f"{short(host)} cannot be a registry", hint=f"for example {_EXAMPLE}")
    if host == DOCKER_HUB and path and "/" not in path:
        path = f"library/{path}"
    if len(text) > _MAX_NAME or not _PATH.fullmatch(path):
        raise UsageError(
            f"{short(text)} cannot be a repository",
            hint=f"a repository is lower-case letters and digits with ._-/ between them; for example {_EXAMPLE}",
        )
    return RepositoryName(host, path)


def is_registry_tag(tag: str) -> bool:
    return _TAG.fullmatch(tag) is not None


def check_registry_tag(tag: str) -> None:
    """UsageError unless ``tag`` can be a tag in a registry."""
    if not is_registry_tag(tag):
        raise UsageError(
            f"{short(tag)} cannot be a tag in a registry",
            hint=f"a tag is up to 128 letters, digits and ._- (the first none of .-); for example {_EXAMPLE}",
        )


def _is_host(text: str) -> bool:
    return "." in text or ":" in text or text == "localhost" or text != text.lower()
