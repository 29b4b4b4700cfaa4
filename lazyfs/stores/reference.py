"""Names of images, written as skopeo writes them: ``transport:location[:tag]`` or ``…@sha256:…``.

The grammar of a tag is that of `org.opencontainers.image.ref.name` in the OCI specification's annotations.md.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lazyfs.errors import BadInputError, NotFoundError, UnsupportedError, UsageError
from lazyfs.formats.oci_descriptor import parse_digest
from lazyfs.formats.strict_json import short
from lazyfs.stores.archive_names import check_archive_name, position
from lazyfs.stores.registry.names import check_registry_tag, parse_repository

DEFAULT_TAG = "latest"

_FORMS = {
    "oci": "oci:DIR[:tag] or oci:DIR@sha256:…",
    "oci-archive": "oci-archive:FILE[:tag]",
    "docker-archive": "docker-archive:FILE[:name[:tag]]",
    "docker": "docker://[HOST[:PORT]/]REPOSITORY[:tag] or …@sha256:…",
    "s3": "s3://BUCKET/[PREFIX/]REPOSITORY[:tag] or …@sha256:…",
}
# What stands between the transport and a location that is no path on this machine.
_REMOTE = {"docker": "//", "s3": "//"}
_EXAMPLE = "oci:./images:latest"
_SKOPEO_TRANSPORTS = frozenset({"containers-storage", "dir", "docker-daemon"})
_ALPHANUM = r"[A-Za-z0-9]+"
_COMPONENT = rf"{_ALPHANUM}(?:(?:[-._:@+]|--){_ALPHANUM})*"
_TAG = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
# None starts with an underscore: such names are those of the store itself.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_KEY = 600  # of 1024 bytes, which leaves room for blobs and tags
_DIGEST_TAIL = re.compile(r"(.*)@(sha[0-9]+:.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reference:
    """Which image in which store: at most one of ``tag`` and ``digest`` for a directory or an archive.

    ``location`` is what the transport makes of it: the directory of ``oci:``, the file of an archive, the
    repository of ``docker:``, bucket and path of ``s3:``. In a docker-archive the tag is ``name[:tag]``.
    """

    transport: str
    location: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.transport}:{_REMOTE.get(self.transport, '')}{self.location}{tag}{digest}"

    @property
    def is_remote(self) -> bool:
        """Whether the store is reached over a network, and is no path on this machine."""
        return self.transport in _REMOTE

    @property
    def selector(self) -> str | None:
        """What `Store.resolve` takes: the digest, else the tag, else None."""
        return self.digest or self.tag

    def absolute(self, directory: Path | None = None) -> "Reference":
        """The same image, named for a process with another working directory.

        A relative path counts from ``directory``, or from this process's own.
        """
        if self.transport in _REMOTE:
            return self
        try:
            path = str((directory or Path.cwd()) / self.location)
        except OSError as error:
            raise NotFoundError(
                f"the working directory, which {self} counts from, is gone",
                hint="change to another directory",
            ) from error
        if path != self.location and ":" in path:
            raise UsageError(
                f"{path} has a colon in its name, so an image reference cannot name it",
                hint="rename the directory, or go to it by a path without a colon",
            )
        return replace(self, location=path)

    def tag_to_write(self) -> str:
        """The tag that a write to this reference sets: ``latest`` when it names none."""
        if self.digest is not None:
            raise UsageError(
                f"{self} is a digest, which cannot be written to", hint=f"name a tag, for example {_EXAMPLE}"
            )
        if self.transport == "docker-archive" and (self.tag is None or position(self.tag) is not None):
            raise UsageError(
                f"{self} does not say what Docker shall call the image",
                hint=f"for example docker-archive:{self.location}:app:v1",
            )
        return self.tag or DEFAULT_TAG


def parse_reference(text: str) -> Reference:
    """Parse what a user wrote; UsageError tells which forms there are."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in _FORMS:
        raise _unknown_transport(text)
    tail = _DIGEST_TAIL.fullmatch(rest)
    digest: str | None = None
    if tail:
        rest, digest = tail[1], tail[2]
        try:
            parse_digest(digest)
        except (BadInputError, UnsupportedError) as error:
            raise UsageError(f"{short(text, 200)}: {error.message}", hint=error.hint) from error
    if transport == "docker":
        location, tag = _split_repository(text, rest)
    elif transport == "s3":
        location, tag = _split_key(text, rest)
    else:
        location, colon, name = rest.partition(":")
        tag = name if colon else None
        _check_location(text, transport, location)
        if tag is not None and transport == "docker-archive":
            check_archive_name(tag)
        elif tag is not None:
            check_tag(tag)
    if tag is not None and digest is not None:
        raise UsageError(f"{short(text, 200)} has both a tag and a digest", hint="name one of them")
    return Reference(transport, location, tag, digest)


def check_tag(tag: str) -> None:
    """UsageError unless ``tag`` can be a tag and cannot be taken for a digest."""
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"{short(tag)} cannot be a tag",
            hint=f"a tag is letters and digits, with single -._:@+/ between them; for example {_EXAMPLE}",
        )
    if tag.startswith("sha256:"):
        raise UsageError(
            f"{short(tag)} is a digest, not a tag", hint="write @ before a digest: oci:DIR@sha256:…"
        )


def _split_repository(text: str, rest: str) -> tuple[str, str | None]:
    if not rest.startswith("//"):
        raise UsageError(f"{short(text, 200)} has no // before its registry", hint=_FORMS["docker"])
    head, slash, last = rest[2:].rpartition("/")
    name, colon, tag = last.partition(":")
    location = f"{head}{slash}{name}"
    parse_repository(location)
    if not colon:
        return location, None
    check_registry_tag(tag)
    return location, tag


def _split_key(text: str, rest: str) -> tuple[str, str | None]:
    head, slash, last = rest.removeprefix("//").rpartition("/")
    name, colon, tag = last.partition(":")
    location = f"{head}{slash}{name}"
    bucket, *segments = location.split("/")
    good = _BUCKET.fullmatch(bucket) and segments and all(map(_SEGMENT.fullmatch, segments))
    if not good or not rest.startswith("//") or len(location) > _MAX_KEY:
        raise UsageError(
            f"{short(text, 200)} names no repository in a bucket",
            hint=f"{_FORMS['s3']}, of letters, digits and ._-; for example s3://bucket/images/app:v1",
        )
    if not colon:
        return location, None
    check_tag(tag)
    return location, tag


def _check_location(text: str, transport: str, location: str) -> None:
    if not location:
        raise UsageError(
            f"{short(text, 200)} names no {'directory' if transport == 'oci' else 'file'}",
            hint=f"{_FORMS[transport]}; for example {_EXAMPLE}",
        )
    if "\0" in location:
        raise UsageError(f"{short(text, 200)} has a NUL character in its path")
    if location.startswith("//"):
        raise UsageError(
            f"{short(text, 200)} has two slashes where a path starts",
            hint=f"write it with one, or none: {transport}:{location[1:]} or {transport}:{location[2:]}",
        )


def _unknown_transport(text: str) -> UsageError:
    transport, colon, rest = text.partition(":")
    known = f"supported: {', '.join(_FORMS.values())}; for example {_EXAMPLE}"
    shown = short(text, 200)
    if text.startswith(("/", ".", "~")):
        return UsageError(f"{shown} names no transport", hint=f"a directory is named oci:DIR. {known}")
    if colon and transport in _SKOPEO_TRANSPORTS:
        hint = f"`skopeo copy {shown} {_EXAMPLE}` brings it there. {known}"
        return UsageError(f"transport {transport}: is not supported: {shown}", hint=hint)
    if colon and rest.startswith("//"):
        return UsageError(f"transport {short(transport)} is not supported: {shown}", hint=known)
    return UsageError(
        f"{shown} names no transport",
        hint=f"an image in a registry is named docker://IMAGE. {known}",
    )
