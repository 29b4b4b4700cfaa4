"""`lazyfs profile`: what a start touches, recorded, kept as text, and attached to the image as its launch pack."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.common import json_option, node_paths, print_json, reference_argument, root_option
from lazyfs.cli.stores import REFERENCES, store_options
from lazyfs.draw.svg import byte_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from converter.launch import PackReport
    from lazyfs.formats.profile import Touch
    from lazyfs.stores import Image, Store
    from lazyfs.stores.options import StoreOptions

output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the profile there."
)
profile_argument = click.argument(
    "profile_file", metavar="PROFILE", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)


class _Profile(click.Group):
    """`lazyfs profile REF` is `lazyfs profile record REF`: nobody names an image as one of the words below."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["record", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options of `record` may stand before the image.
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["record", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Profile, short_help="Record what a start reads, and ship it as a launch pack.")
def profile() -> None:
    """Record what the start of an image reads, and attach it to the image as its launch pack.

    A node that starts the image then gets all of it by one request, before it is asked for.

    \b
    Examples:
      lazyfs profile docker://registry.example.com/app:1.0 --ready log:listening
      lazyfs profile oci:./lazy:app --ready http:8080/health -o app.profile -- serve --port 8080
      lazyfs profile merge app-1.profile app-2.profile -o app.profile
      lazyfs convert --profile app.profile oci:./images:app oci:./lazy:app
      lazyfs profile show app.profile
    """


@profile.command(
    short_help="Run an image once and note what it reads until it is ready (the word may be left out).",
    epilog=REFERENCES,
)
@reference_argument
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--ready",
    default="exit",
    show_default=True,
    metavar="WHEN",
    help="log:TEXT, http:PORT/PATH, exec:COMMAND, seconds:N or exit.",
)
@click.option("--timeout", type=click.FloatRange(0.1), default=300.0, show_default=True, help="Seconds.")
@click.option(
    "--run", "run_options", default="", metavar="OPTIONS", help="Options of lazyfs run, as one word."
)
@click.option("--no-attach", is_flag=True, help="Write the profile alone; the image stays as it is.")
@output_option
@store_options
@json_option
@root_option
@click.pass_context
def record(
    context: click.Context,
    /,
    reference: str,
    args: tuple[str, ...],
    ready: str,
    timeout: float,
    run_options: str,
    no_attach: bool,
    output: Path | None,
    stores: "StoreOptions",
    as_json: bool,
    root: Path | None,
) -> None:
    """Run an image once, note what its start reads until it is ready, and attach that to the image.

    Needs root and a node, as `lazyfs run` does. The container is ended when it is ready. Arguments after -- are the
    container's.

    \b
    Examples:
      lazyfs profile oci:./lazy:app --ready log:listening
      lazyfs profile oci:./lazy:app --ready exit -o import.profile -- python3 -c 'import numpy'
      lazyfs profile oci:./lazy:app --ready http:8080/ --run '-e PORT=8080 --memory 1g'
    """
    from lazyfs.cli import recording
    from lazyfs.run.ready import parse_probe
    from lazyfs.stores import load_image, open_store, parse_reference

    probe = parse_probe(ready)
    parsed = parse_reference(reference)
    with open_store(parsed, create=not no_attach, options=stores) as store:
        image = load_image(store, parsed)
        words = [*shlex.split(run_options), reference, *args]
        recorded = recording.record(store, image, reference, words, probe, node_paths(context, root), timeout)
        comments = [f"image {parsed}", f"ready {probe} after {recorded.seconds:.2f} s"]
        _write(recorded.profile, comments, output, to_stdout=no_attach and not as_json)
        report = None if no_attach else _attach(store, image, recorded.profile)
    _tell(recorded.profile, report, as_json, to_stdout=not (no_attach and output is None))


@profile.command(short_help="Make the launch pack of an image from a profile.", epilog=REFERENCES)
@profile_argument
@reference_argument
@store_options
@json_option
def attach(profile_file: Path, reference: str, stores: "StoreOptions", as_json: bool) -> None:
    """Make the launch pack of an image from a profile, in place of one that it has.

    \b
    Example:
      lazyfs profile attach app.profile docker://registry.example.com/app:1.1
    """
    from lazyfs.stores import load_image, open_store, parse_reference

    touches = read_profile(profile_file)
    parsed = parse_reference(reference)
    with open_store(parsed, create=True, options=stores) as store:
        report = _attach(store, load_image(store, parsed), touches)
    _tell(touches, report, as_json)


@profile.command(short_help="Join profiles of several versions or workloads.")
@click.argument(
    "files", metavar="PROFILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@output_option
def merge(files: tuple[Path, ...], output: Path | None) -> None:
    """Join profiles: the first one in its order, then what the others add.

    \b
    Example:
      lazyfs profile merge serve.profile migrate.profile -o app.profile
    """
    from lazyfs.formats.profile import merge as merged

    touches = merged([read_profile(file) for file in files])
    _write(touches, [f"merged from {', '.join(file.name for file in files)}"], output, to_stdout=True)


@profile.command(short_help="The profile of a start that this node has served.", epilog=REFERENCES)
@reference_argument
@click.option("--seconds", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Of the start.")
@output_option
@store_options
@root_option
@click.pass_context
def learned(
    context: click.Context,
    reference: str,
    seconds: float,
    output: Path | None,
    stores: "StoreOptions",
    root: Path | None,
) -> None:
    """Write the profile of a start that this node has served without a pack.

    It holds what the kernel asked for, read-ahead included: `lazyfs profile REF` is more exact.

    \b
    Example:
      lazyfs profile learned docker://registry.example.com/app:1.0 -o app.profile
    """
    from lazyfs.cli import recording
    from lazyfs.daemon.client import DaemonClient
    from lazyfs.stores import load_image, open_store, parse_reference

    parsed = parse_reference(reference)
    client = DaemonClient(node_paths(context, root))
    with open_store(parsed, options=stores) as store:
        found = recording.learn(store, load_image(store, parsed), client, seconds)
    comments = [f"image {parsed}", f"learned from {found.reads} reads of {found.seconds:.0f} s"]
    _write(found.profile, comments, output, to_stdout=True)


@profile.command(short_help="Show and draw a profile.", epilog=REFERENCES)
@profile_argument
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw it.")
@json_option
def show(profile_file: Path, svg: Path | None, as_json: bool) -> None:
    """Tell what a profile holds, and draw which pages of which files are touched when.

    \b
    Example:
      lazyfs profile show app.profile --svg app.svg
    """
    from lazyfs.draw import profile as drawing
    from lazyfs.errors import NodeError

    touches = read_profile(profile_file)
    summary = drawing.summarize([(touch.path, touch.first, touch.last) for touch in touches])
    if svg is not None:
        try:
            svg.write_text(drawing.draw(summary, f"lazyfs profile {profile_file.name}"))
        except OSError as error:
            raise NodeError(f"cannot draw to {svg}: {error.strerror}") from error
    if as_json:
        print_json({"pages": summary.pages, "files": {file.path: file.pages for file in summary.files}})
        return
    click.echo(f"{len(summary.files)} files, {summary.pages} pages, {byte_words(summary.pages * 4096)}")
    for file in sorted(summary.files, key=lambda each: -each.pages)[:20]:
        click.echo(f"  {byte_words(file.pages * 4096):>9}  {file.path}")


def read_profile(file: Path) -> "list[Touch]":
    from lazyfs.errors import BadInputError, NotFoundError
    from lazyfs.formats.profile import MAX_SIZE, parse

    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_SIZE + 1).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{file} is not UTF-8", hint="`lazyfs profile REF` writes a profile") from error
    except OSError as error:
        raise NotFoundError(f"{file}: {error.strerror}") from error
    return parse(text, str(file))


def _attach(store: "Store", image: "Image", touches: "Sequence[Touch]") -> "PackReport":
    import os

    from converter.launch import attach_pack, open_tocs, put_pack

    report = put_pack(store, open_tocs(store, image), touches, jobs=os.cpu_count() or 1)
    attach_pack(store, image.descriptor, report.location)
    return report


def _write(touches: "Sequence[Touch]", comments: list[str], output: Path | None, *, to_stdout: bool) -> None:
    from lazyfs.errors import NodeError
    from lazyfs.formats.profile import render

    text = render(touches, comments)
    if output is None:
        if to_stdout:
            click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise NodeError(f"cannot write the profile to {output}: {error.strerror}") from error


def _tell(
    touches: "Sequence[Touch]", report: "PackReport | None", as_json: bool, *, to_stdout: bool = True
) -> None:
    pages = sum(touch.last - touch.first + 1 for touch in touches)
    files = len({touch.path for touch in touches})
    values: dict[str, Any] = {"files": files, "pages": pages}
    if report is not None:
        values |= {
            "pack": report.location.digest,
            "pack_bytes": report.location.size,
            "units": report.units,
            "unit_bytes": report.unit_bytes,
            "gone": [path.decode(errors="replace") for path in report.gone],
        }
    if as_json:
        print_json(values)
    elif to_stdout:
        click.echo(f"{files} files, {byte_words(pages * 4096)} touched")
        if report is not None:
            gone = f"; {len(report.gone)} files are gone" if report.gone else ""
            click.echo(f"launch pack {report.location.digest}, {byte_words(report.location.size)}{gone}")
