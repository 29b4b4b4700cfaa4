"""Names of images in a docker-archive: repository and tag, as `docker save` and skopeo write them."""

import re

from lazyfs.errors import UsageError
from lazyfs.stores.registry.names import check_registry_tag, parse_repository

_POSITION = re.compile(r"@([0-9]{1,6})")


def check_archive_name(text: str) -> None:
    """UsageError unless ``text`` is ``name[:tag]``, or ``@N`` for the image at place N of manifest.json."""
    if position(text) is None:
        split_name(text)


def position(text: str) -> int | None:
    """The number N of ``@N``; None for a name."""
    match = _POSITION.fullmatch(text)
    return int(match[1]) if match else None


def split_name(text: str) -> tuple[str, str]:
    """Repository in full and tag: ``app`` is ``docker.io/library/app`` and ``latest``, as for Docker.

    UsageError when it can be none.
    """
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    if colon:
        check_registry_tag(tag)
    if name == "sha256":
        raise UsageError(
            "sha256 cannot be the name of a repository", hint="write @ before a digest: …@sha256:…"
        )
    return str(parse_repository(f"{head}{slash}{name}")), tag or "latest"


def full_name(text: str) -> str:
    """``split_name`` as one text: equal for names that mean the same image."""
    return ":".join(split_name(text))


def with_tag(text: str) -> str:
    """The name as it was written, with its tag: what Docker shows."""
    return text if ":" in text.rpartition("/")[2] else f"{text}:latest"
