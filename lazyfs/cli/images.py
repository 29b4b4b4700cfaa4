"""`lazyfs convert`, `check` and `inspect`: images in stores. Needs no root and no node."""

import sys

import click

from lazyfs.cli.common import json_option, print_json, reference_argument, short
from lazyfs.draw.svg import byte_words


@click.command(short_help="Make an image that starts before it is downloaded.")
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
    "--level", type=click.IntRange(0, 22), help="Compression level of the codec (zstd: 3, gzip: 6)."
)
@click.option(
    "--chunk-size",
    type=click.IntRange(32, 8192),
    default=512,
    show_default=True,
    metavar="KIB",
    help="Of the chunks of large files.",
)
@click.option(
    "--jobs",
    type=click.IntRange(0, 256),
    default=0,
    help="Threads that compress; 0, the default: one per core.",
)
@json_option
def convert(
    source: str, destination: str, codec: str, level: int | None, chunk_size: int, jobs: int, as_json: bool
) -> None:
    """Make an image that starts before it is downloaded.

    SRC and DST are oci:DIR[:tag], OCI image layouts; DST may exist, blobs are shared.

    The result is an ordinary OCI image as well: any runtime that reads zstd layers can pull and run it. Its
    config, image ID and DiffIDs stay what they were.

    \b
    Examples:
      lazyfs convert oci:./images:app oci:./lazy:app
      skopeo copy docker-archive:app.tar oci:./images:app && lazyfs convert oci:./images:app oci:./lazy:app
    """
    import os

    from converter import CutRules, LayerReport, Settings, convert_image
    from lazyfs.stores import open_store, parse_reference

    def on_layer(number: int, count: int, layer: LayerReport) -> None:
        if not as_json:
            done = "is converted already, copied" if layer.reused else f"{layer.seconds:.1f} s"
            print(
                f"layer {number}/{count} {short(layer.source_digest)}: {byte_words(layer.source_size)} -> "
                f"{byte_words(layer.size)}, {layer.chunks} chunks, {done}",
                file=sys.stderr,
                flush=True,
            )

    from_reference, to_reference = parse_reference(source), parse_reference(destination)
    # As CPython's own executors do: more threads than cores only add to memory.
    rules = CutRules(chunk_size=chunk_size * 1024)
    settings = Settings(codec, level, rules, jobs or os.cpu_count() or 1)
    with open_store(from_reference) as from_store, open_store(to_reference, create=True) as to_store:
        report = convert_image(from_store, from_reference, to_store, to_reference, settings, on_layer)
    if as_json:
        print_json(report.as_dict())
        return
    before = sum(layer.source_size for layer in report.layers)
    after = sum(layer.size for layer in report.layers)
    click.echo(
        f"{report.destination}  {report.digest}\n"
        f"{len(report.layers)} layers, {byte_words(before)} -> {byte_words(after)}, {report.seconds:.1f} s"
    )


@click.command(short_help="Prove a converted image, byte by byte.")
@reference_argument
@json_option
def check(reference: str, as_json: bool) -> None:
    """Prove a converted image: every chunk, every DiffID, every tree.

    Reads every byte of it. Exit code 0 and one line when all is right; else the first thing that is wrong,
    and exit code 4 (it breaks the format) or 5 (it is damaged).

    \b
    Example:
      lazyfs check oci:./lazy:app
    """
    from converter import check_image
    from lazyfs.stores import open_store, parse_reference

    parsed = parse_reference(reference)
    with open_store(parsed) as store:
        report = check_image(store, parsed)
    if as_json:
        print_json(report.as_dict())
        return
    click.echo(
        f"ok: {report.reference} is right: {report.layers} layers, {report.chunks} chunks, "
        f"{byte_words(report.blob_size)} hold {byte_words(report.stream_size)} and {report.inodes} inodes, "
        f"{report.seconds:.1f} s"
    )


@click.command(short_help="Show what an image is made of.")
@reference_argument
@json_option
def inspect(reference: str, as_json: bool) -> None:
    """Show what an image is made of, converted or not.

    \b
    Examples:
      lazyfs inspect oci:./lazy:app
      lazyfs inspect --json oci:./lazy:app | jq .layers
    """
    from lazyfs.cli.inspection import describe_image, render
    from lazyfs.stores import open_store, parse_reference

    parsed = parse_reference(reference)
    with open_store(parsed) as store:
        description = describe_image(store, parsed)
    if as_json:
        print_json(description)
    else:
        click.echo(render(description))
