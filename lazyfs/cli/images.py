"""`lazyfs convert`, `check` and `inspect`: images in stores. Needs no root and no node."""

import sys
from typing import Annotated

import typer

from lazyfs.cli.common import JsonOption, print_json, short, size

Source = Annotated[str, typer.Argument(metavar="SRC", help="The image to convert: oci:DIR[:tag].")]
Destination = Annotated[
    str,
    typer.Argument(
        metavar="DST", help="Where the result goes: oci:DIR[:tag]; DIR may exist, blobs are shared."
    ),
]
Ref = Annotated[str, typer.Argument(metavar="REF", help="A converted image: oci:DIR[:tag].")]


def add_to(app: typer.Typer) -> None:
    app.command()(convert)
    app.command()(check)
    app.command()(inspect)


def convert(
    source: Source,
    destination: Destination,
    level: Annotated[int, typer.Option(min=1, max=19, help="zstd level.")] = 3,
    jobs: Annotated[int, typer.Option(min=0, max=256, help="Threads that compress; 0: one per core.")] = 0,
    json: JsonOption = False,
) -> None:
    """Make an image that starts before it is downloaded.

    The result is an ordinary OCI image as well: any runtime that reads zstd layers can pull and run it. Its
    config, image ID and DiffIDs stay what they were.

    \b
    Examples:
      lazyfs convert oci:./images:app oci:./lazy:app
      skopeo copy docker-archive:app.tar oci:./images:app && lazyfs convert oci:./images:app oci:./lazy:app
    """
    import os

    from converter import LayerReport, Settings, convert_image
    from lazyfs.stores import open_store, parse_reference

    def on_layer(number: int, count: int, layer: LayerReport) -> None:
        if not json:
            done = "is converted already, copied" if layer.reused else f"{layer.seconds:.1f} s"
            print(
                f"layer {number}/{count} {short(layer.source_digest)}: {size(layer.source_size)} -> "
                f"{size(layer.size)}, {layer.chunks} chunks, {done}",
                file=sys.stderr,
                flush=True,
            )

    from_reference, to_reference = parse_reference(source), parse_reference(destination)
    # As CPython's own executors do: more threads than cores only add to memory.
    settings = Settings(level=level, jobs=jobs or os.cpu_count() or 1)
    with open_store(from_reference) as from_store, open_store(to_reference, create=True) as to_store:
        report = convert_image(from_store, from_reference, to_store, to_reference, settings, on_layer)
    if json:
        print_json(report.as_dict())
        return
    before = sum(layer.source_size for layer in report.layers)
    after = sum(layer.size for layer in report.layers)
    typer.echo(
        f"{report.destination}  {report.digest}\n"
        f"{len(report.layers)} layers, {size(before)} -> {size(after)}, {report.seconds:.1f} s"
    )


def check(reference: Ref, json: JsonOption = False) -> None:
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
    if json:
        print_json(report.as_dict())
        return
    typer.echo(
        f"ok: {report.reference} is right: {report.layers} layers, {report.chunks} chunks, "
        f"{size(report.blob_size)} hold {size(report.stream_size)} and {report.inodes} inodes, {report.seconds:.1f} s"
    )


def inspect(reference: Ref, json: JsonOption = False) -> None:
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
    if json:
        print_json(description)
    else:
        typer.echo(render(description))
