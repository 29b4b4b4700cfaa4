"""`lazyfs mount` and `lazyfs umount`."""

from pathlib import Path

import click

from lazyfs.cli.common import (
    NodeChoices,
    fill_option,
    mount_mode_option,
    node_options,
    node_paths,
    reference_argument,
    root_option,
)

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.command(short_help="Show an image's file system at a directory.")
@reference_argument
@directory_argument
@click.option(
    "--rw", is_flag=True, help="An overlay that can be written; what is written goes with `umount`."
)
@fill_option
@node_options
@mount_mode_option
@root_option
@click.pass_context
def mount(
    context: click.Context,
    reference: str,
    directory: Path,
    rw: bool,
    no_fill: bool,
    choices: NodeChoices,
    mount_mode: str | None,
    root: Path | None,
) -> None:
    """Show an image's file system at DIR; its bytes come when they are read.

    \b
    Examples:
      lazyfs mount oci:./lazy:app /mnt
      lazyfs mount --rw oci:./lazy:app /mnt      an ordinary overlay: lowerdir, upperdir, workdir
      lazyfs umount /mnt
    """
    import os

    from lazyfs.cli.workspace import remove_leftovers
    from lazyfs.daemon.client import daemon_in_use
    from lazyfs.mount.images import check_target, mount_view, mount_writable

    paths = node_paths(context, root)
    target = directory.resolve()
    check_target(target)
    remove_leftovers(paths)
    with daemon_in_use(paths) as client:
        choices.tell(client)
        image = client.open_image(reference, fill=not no_fill, mode=mount_mode or "")
        if rw:
            mount_writable(paths, image, target, paths.mounts / f"rw-{os.urandom(6).hex()}")
        else:
            mount_view(paths, image, target)


@click.command(short_help="Undo `lazyfs mount`.")
@directory_argument
@root_option
@click.pass_context
def umount(context: click.Context, directory: Path, root: Path | None) -> None:
    """Take away what `lazyfs mount` put at DIR, and with --rw what was written there.

    \b
    Example:
      lazyfs umount /mnt
    """
    from lazyfs.mount.images import unmount_image

    unmount_image(node_paths(context, root), directory.resolve())
