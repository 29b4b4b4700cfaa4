"""The options by which every command reaches stores, as one decorator and one value."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lazyfs.stores.options import StoreOptions

REFERENCES = """\b
References are written as skopeo writes them:
  oci:DIR[:tag]                      an OCI image layout
  docker://HOST[:PORT]/REPO[:tag]    a registry; also @sha256:…
  s3://BUCKET/PREFIX/REPO:tag        a bucket (AWS, MinIO, Ceph)
  oci-archive:FILE[:tag]             an OCI layout in a tar file
  docker-archive:FILE[:name:tag]     what `docker save` and `podman save` write
"""

_OPTIONS = (
    click.option(
        "--insecure", is_flag=True, help="Registries: without proof of who they are, or without TLS."
    ),
    click.option(
        "--authfile",
        type=click.Path(path_type=Path),
        envvar="REGISTRY_AUTH_FILE",
        help="Registries: where passwords are (default: as skopeo and docker look for them).",
    ),
    click.option(
        "--certs-dir",
        type=click.Path(path_type=Path),
        multiple=True,
        help="Registries: like /etc/docker/certs.d, one directory per registry.",
    ),
    click.option("--endpoint-url", metavar="URL", help="S3: a server that is not AWS."),
    click.option("--region", help="S3: the region of the bucket."),
    click.option("--aws-profile", metavar="NAME", help="S3: a section of the AWS configuration files."),
    click.option("--path-style/--virtual-host-style", default=None, help="S3: where the bucket's name goes."),
)


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options above; it gets them as one argument, `stores`."""

    @functools.wraps(command)
    def with_stores(*args: Any, **words: Any) -> Any:
        return command(*args, stores=_collect(words), **words)

    decorated: Callable[..., Any] = with_stores
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _collect(words: dict[str, Any]) -> "StoreOptions":
    from lazyfs.stores.options import StoreOptions

    return StoreOptions(
        endpoint_url=words.pop("endpoint_url"),
        region=words.pop("region"),
        profile=words.pop("aws_profile"),
        path_style=words.pop("path_style"),
        insecure=words.pop("insecure"),
        auth_file=words.pop("authfile"),
        certs_dirs=words.pop("certs_dir") or None,
    )
