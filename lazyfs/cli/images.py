"""`lazyfs convert`, `copy`, `check`, `diff` and `inspect`: images in stores. Needs no root and no node."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.common import json_option, print_json, reference_argument
from lazyfs.cli.stores import REFERENCES, store_options
from lazyfs.draw.svg import byte_words

if TYPE_CHECKING:
    from lazyfs.stores.options import StoreOptions

PLATFORM = "OS/ARCH[/VARIANT]"
platform_option = click.option(
    "--platform", metavar=PLATFORM, help="Which image of an index (default: this machine's)."
)


@click.command(short_help="Make an image that starts before it is downloaded.", epilog=REFERENCES)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--codec",
    type=click.Choice(["zstd", "gzip", "lz4", "none"]),
    default="zstd",
    show_default=True,
    help="gzip for engines that know no zstd; lz4 and none for fast networks.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 22),
    help="Of the codec; zstd: 3 of 22, gzip: 6 of 9, lz4: 0 of 16.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(32, 8192),
    default=512,
    show_default=True,
    metavar="KIB",
    help="Of the chunks of large files.",
)
@platform_option
@click.option(
    "--profile",
    "profile_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="What its start reads (`lazyfs profile`): it gets a launch pack.",
)
@click.option("--all-platforms", is_flag=True, help="Every image of an index; what is none is carried along.")
@click.option(
    "--jobs",
    type=click.IntRange(0, 256),
    default=0,
    help="Threads that compress; 0, the default: one per core.",
)
@click.option(
    "--max-layer-size", type=click.IntRange(1), default=64, show_default=True, metavar="GIB", help="Unpacked."
)
@click.option(
    "--max-ratio",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Unpacked bytes per byte, beyond 1 GiB.",
)
@store_options
@json_option
def convert(
    source: str,
    destination: str,
    codec: str,
    level: int | None,
    chunk_size: int,
    platform: str | None,
    profile_file: Path | None,
    all_platforms: bool,
    jobs: int,
    max_layer_size: int,
    max_ratio: int,
    stores: "StoreOptions",
    as_json: bool,
) -> None:
    """Make an image that starts before it is downloaded.

    DST may exist, its blobs are shared. Layers that it has converted already are not converted again, so a run
    that was killed goes on where it was.

    The result is an ordinary OCI image as well: any runtime that reads zstd layers can pull and run it. Its
    config, image ID and DiffIDs stay what they were.

    \b
    Examples:
      lazyfs convert oci:./images:app oci:./lazy:app
      lazyfs convert docker://registry.example.com/app:1.0 docker://registry.example.com/app:1.0-lazy
      lazyfs convert --all-platforms docker-archive:app.tar s3://images/lazy/app:1.0
      lazyfs convert --profile app.profile oci:./images:app oci:./lazy:app
      lazyfs convert --codec gzip oci:./images:app oci:./lazy:app-gzip
    """
    import os

    from converter import CutRules, Limits, Settings, Silent, convert_image
    from lazyfs.cli.profile import read_profile
    from lazyfs.cli.progress import chosen
    from lazyfs.stores import open_store, parse_reference

    from_reference, to_reference = parse_reference(source), parse_reference(destination)
    settings = Settings(
        codec,
        level,
        CutRules(chunk_size=chunk_size * 1024),
        Limits(max_size=max_layer_size << 30, max_ratio=max_ratio),
        jobs or os.cpu_count() or 1,
    )
    with (
        open_store(from_reference, options=stores) as from_store,
        open_store(to_reference, create=True, options=stores) as to_store,
        chosen(as_json) or nullcontext(Silent()) as progress,
    ):
        report = convert_image(
            from_store,
            from_reference,
            to_store,
            to_reference,
            settings,
            progress,
            platform=platform,
            all_platforms=all_platforms,
            profile=None if profile_file is None else read_profile(profile_file),
        )
    if as_json:
        print_json(report.as_dict())
        return
    before = sum(layer.source_size for layer in report.layers)
    after = sum(layer.size for layer in report.layers)
    chunks = sum(layer.chunks for layer in report.layers)
    new = sum(layer.new_chunks for layer in report.layers)
    click.echo(
        f"{report.destination}  {report.digest}\n"
        f"{len(report.layers)} layers, {byte_words(before)} -> {byte_words(after)}, "
        f"{chunks} chunks ({chunks - new} shared), {report.seconds:.1f} s"
    )


@click.command(short_help="Move images between stores as they are.", epilog=REFERENCES)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@store_options
@json_option
def copy(source: str, destination: str, stores: "StoreOptions", as_json: bool) -> None:
    """Copy an image, converted or not, with all its platforms, from one store to another.

    What refers to it goes along untouched: launch packs, signatures, SBOMs and attestations, found as referrers or
    by cosign's tags. (A docker-archive cannot hold them.)

    \b
    Example:
      lazyfs copy oci:./lazy:app oci:/srv/images:app
    """
    from converter import copy_attached, copy_tree
    from lazyfs.cli.progress import Copying
    from lazyfs.formats.oci_descriptor import Descriptor
    from lazyfs.stores import open_store, parse_reference

    from_reference, to_reference = parse_reference(source), parse_reference(destination)
    copied: list[Descriptor] = []
    present: list[Descriptor] = []

    def on_blob(blob: Descriptor, was_copied: bool) -> None:
        (copied if was_copied else present).append(blob)
        shown.done(blob, was_copied)

    tag = to_reference.tag_to_write()
    shown = Copying(quiet=as_json)
    with (
        open_store(from_reference, options=stores) as from_store,
        open_store(to_reference, create=True, options=stores) as to_store,
        shown,
    ):
        wanted = from_store.resolve(from_reference.selector)
        top = copy_tree(from_store, wanted, to_store, on_blob, shown.advanced)
        artifacts = copy_attached(from_store, top, to_store, on_blob, shown.advanced)
        to_store.put_tag(tag, top)
    if as_json:
        print_json(
            {
                "digest": top.digest,
                "copied": [blob.digest for blob in copied],
                "copied_bytes": sum(blob.size for blob in copied),
                "present": [blob.digest for blob in present],
                "artifacts": artifacts,
            }
        )
        return
    size = sum(blob.size for blob in copied)
    click.echo(
        f"{top.digest}\n{len(copied)} blobs copied ({byte_words(size)}), {len(present)} were there, "
        f"{artifacts} artifacts that refer to it"
    )


@click.command(short_help="Prove a converted image, byte by byte.", epilog=REFERENCES)
@reference_argument
@click.option("--against", metavar="SRC", help="The image that it was made from: compare digest by digest.")
@click.option(
    "--platform", metavar=PLATFORM, help="Of an index prove this image alone (default: all of them)."
)
@store_options
@json_option
def check(
    reference: str, against: str | None, platform: str | None, stores: "StoreOptions", as_json: bool
) -> None:
    """Prove a converted image, or all images of an index: every chunk, every DiffID, every tree.

    Reads every byte of it twice: as an ordinary runtime does, and as a node does. Exit code 0 and one line when all
    is right (on standard error a line for each layer); else the first thing that is wrong, and exit code 4 (it
    breaks the format) or 5 (it is damaged).

    \b
    Examples:
      lazyfs check oci:./lazy:app
      lazyfs check oci:./lazy:app --against oci:./images:app
    """
    from converter import Silent, check_against, check_image
    from lazyfs.cli.progress import chosen
    from lazyfs.stores import open_store, parse_reference

    parsed = parse_reference(reference)
    shown = chosen(as_json)
    with open_store(parsed, options=stores) as store, shown or nullcontext(Silent()) as progress:
        report = check_image(store, parsed, platform, progress)
    if against is not None:
        original = parse_reference(against)
        if shown is not None:
            click.echo(f"{against}:", err=True)
        with (
            open_store(original, options=stores) as original_store,
            chosen(as_json) or nullcontext(Silent()) as progress,
        ):
            check_against(report, original_store, original, progress)
    if as_json:
        print_json({**report.as_dict(), "against": against})
        return
    compared = f", and of the same bytes as {against}" if against else ""
    images = ""
    if len(report.images) > 1 or report.carried:
        platforms = ", ".join(image.platform for image in report.images)
        images = f"{len(report.images)} images ({platforms}; {report.carried} others are carried along), "
    click.echo(
        f"ok: {report.reference} is right{compared}: {images}{report.total('layers')} layers, "
        f"{report.total('chunks')} chunks, {byte_words(report.total('blob_size'))} hold "
        f"{byte_words(report.total('stream_size'))} and {report.total('inodes')} inodes, {report.seconds:.1f} s"
    )


@click.command(short_help="What a node with one image must fetch for another.", epilog=REFERENCES)
@click.argument("old", metavar="REF1")
@click.argument("new", metavar="REF2")
@platform_option
@store_options
@json_option
def diff(old: str, new: str, platform: str | None, stores: "StoreOptions", as_json: bool) -> None:
    """Tell what a node that has REF1 must fetch for REF2 if it reads all of it, and what a pull of layers would.

    \b
    Example:
      lazyfs diff oci:./lazy:app-1.0 oci:./lazy:app-1.1
    """
    from converter import compare
    from lazyfs.stores import open_store, parse_reference

    old_reference, new_reference = parse_reference(old), parse_reference(new)
    with (
        open_store(old_reference, options=stores) as old_store,
        open_store(new_reference, options=stores) as new_store,
    ):
        difference = compare(old_store, old_reference, new_store, new_reference, platform)
    if as_json:
        print_json(difference.as_dict())
        return
    click.echo(
        f"chunks  {difference.missing_chunks} of {difference.chunks} are new: {byte_words(difference.missing_bytes)}\n"
        f"layers  {difference.missing_layers} of {difference.layers} are new: "
        f"{byte_words(difference.missing_layer_bytes)} by an ordinary pull"
    )


@click.command(short_help="Show what an image is made of.", epilog=REFERENCES)
@reference_argument
@platform_option
@store_options
@json_option
def inspect(reference: str, platform: str | None, stores: "StoreOptions", as_json: bool) -> None:
    """Show what an image is made of, converted or not.

    \b
    Examples:
      lazyfs inspect oci:./lazy:app
      lazyfs inspect --json oci:./lazy:app | jq .layers
    """
    from lazyfs.cli.inspection import describe_image, render
    from lazyfs.stores import open_store, parse_reference

    parsed = parse_reference(reference)
    with open_store(parsed, options=stores) as store:
        description = describe_image(store, parsed, platform)
    if as_json:
        print_json(description)
    else:
        click.echo(render(description))
