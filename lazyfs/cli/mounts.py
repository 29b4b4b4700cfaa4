"""`lazyfs mount` and `lazyfs umount`."""

from pathlib import Path
from typing import Annotated

import typer

from lazyfs.cli.common import RootOption, node_paths

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory.")]


def add_to(app: typer.Typer) -> None:
    app.command()(mount)
    app.command()(umount)


def mount(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="REF", help="A converted image: oci:DIR[:tag].")],
    directory: Directory,
    rw: Annotated[
        bool, typer.Option("--rw", help="An overlay that can be written; what is written goes with `umount`.")
    ] = False,
    root: RootOption = None,
) -> None:
    """Show an image's file system at DIR; its bytes come when they are read.

    \b
    Examples:
      lazyfs mount oci:./lazy:app /mnt
      lazyfs mount --rw oci:./lazy:app /mnt      an ordinary overlay: lowerdir, upperdir, workdir
      lazyfs umount /mnt
    """
    import os

    from lazyfs.daemon.client import ensure_daemon
    from lazyfs.mount.images import check_target, mount_view, mount_writable
    from lazyfs.stores.reference import parse_reference

    paths = node_paths(context, root)
    absolute = str(parse_reference(reference).absolute())
    target = directory.resolve()
    check_target(target)
    image = ensure_daemon(paths).open_image(absolute)
    if rw:
        mount_writable(paths, image, target, paths.mounts / f"rw-{os.urandom(6).hex()}")
    else:
        mount_view(paths, image, target)


def umount(context: typer.Context, directory: Directory, root: RootOption = None) -> None:
    """Take away what `lazyfs mount` put at DIR, and with --rw what was written there.

    \b
    Example:
      lazyfs umount /mnt
    """
    from lazyfs.mount.images import unmount_image

    unmount_image(node_paths(context, root), directory.resolve())
