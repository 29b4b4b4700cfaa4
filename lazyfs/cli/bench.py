"""`lazyfs bench`: what lazyfs is worth on one's own images, machine and links."""

import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.common import json_option, print_json
from lazyfs.cli.interrupts import Interrupted, interruptible
from lazyfs.cli.stores import REFERENCES, store_options
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.stores.options import StoreOptions

_MAX_RUNS = 100
_LINKS = ("1gbit,2ms",)
_AGAINST = ("overlayfs",)


@click.group(short_help="Measure cold starts: of your images, on this machine.")
def bench() -> None:
    """Measure what lazyfs is worth: starts of your own images, on this machine, over links that you choose.

    \b
    Examples:
      lazyfs bench start docker://registry.example.com/app:1.0 --ready http:8080/health
      lazyfs bench start oci:./images:app --against overlayfs --link 100mbit,20ms
    """


@bench.command(short_help="Measure cold starts of images, side by side.", epilog=REFERENCES)
@click.argument("references", metavar="REF…", nargs=-1, required=True)
@click.option(
    "--against",
    multiple=True,
    default=_AGAINST,
    show_default=True,
    metavar="WAY",
    help="overlayfs: a full pull. overlayfs-lazy: of the converted image. local: all of it on this machine's disk. "
    "NAME=SOCKET,IMAGE: a snapshotter that runs here and what it pulls; instead of SOCKET a command with {socket} and "
    "{root}, which is started anew for each start. May be repeated.",
)
@click.option(
    "--link",
    "links",
    multiple=True,
    default=_LINKS,
    show_default=True,
    metavar="RATE,ROUND-TRIP",
    help="Between this machine and the registry, as in 100mbit,20ms; or loopback. May be repeated.",
)
@click.option(
    "--ready",
    default="exit",
    show_default=True,
    metavar="WHEN",
    help="log:TEXT, http:PORT/PATH, exec:COMMAND, seconds:N or exit.",
)
@click.option("--runs", type=click.IntRange(1, _MAX_RUNS), default=5, show_default=True, help="Of each way.")
@click.option(
    "--pack", is_flag=True, help="Measure lazyfs with a launch pack as well: one start is recorded for it."
)
@click.option("--command", default="", metavar="WORDS", help="Instead of the image's Entrypoint and Cmd.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable of the container.")
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, help="Seconds until ready."
)
@click.option("--seed", type=int, help="Of the order of the starts (default: another one each time).")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/var/tmp"),
    show_default=True,
    help="For images and snapshots; no tmpfs.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Keep the results (JSON)."
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a report to look at.")
@store_options
@json_option
def start(
    references: tuple[str, ...],
    against: tuple[str, ...],
    links: tuple[str, ...],
    ready: str,
    runs: int,
    pack: bool,
    command: str,
    env: tuple[str, ...],
    timeout: float,
    seed: int | None,
    scratch: Path,
    output: Path | None,
    html: Path | None,
    stores: "StoreOptions",
    as_json: bool,
) -> int:
    """Measure the time from the name of an image to a container that is ready, by lazyfs and by what you use now.

    Each start has an engine (containerd) of its own with nothing of the image, and a cold page cache, which is proved.
    Images are copied first, converted where they are not yet, and pulled from a registry on this machine across a link
    of the given rate and round trip. Nothing that runs on this machine is touched, but its page cache is emptied. Needs
    root, containerd, runc and nginx; for lazyfs on containerd 1.x ctr-remote too.

    \b
    Examples:
      lazyfs bench start oci:./images:app --ready log:listening --runs 9
      lazyfs bench start docker://registry.example.com/app:1.0 --link 1gbit,2ms --link 50mbit,100ms --html app.html
      lazyfs bench start oci:./app:plain --against overlayfs \\
        --against 'stargz=containerd-stargz-grpc --address {socket} --root {root},oci:./app:esgz'
    """
    from lazyfs.bench.link import parse_link
    from lazyfs.bench.outside import Wanted, measure
    from lazyfs.bench.page import write_page
    from lazyfs.bench.text import markdown
    from lazyfs.bench.ways import LAZYFS, WITH_PACK, parse_against
    from lazyfs.run.ready import parse_probe

    parse_probe(ready)
    for link in links:
        parse_link(link)
    ways = list(dict.fromkeys([LAZYFS, *([WITH_PACK] if pack else []), *map(parse_against, against)]))
    if any(way.image for way in ways) and len(references) > 1:
        raise UsageError("a snapshotter of yours has one image", hint="measure one REF at a time")
    words = tuple(shlex.split(command))
    try:
        with interruptible():
            results = measure(
                [Wanted(each, ready, words=words, env=env, patience=timeout) for each in references],
                ways,
                list(dict.fromkeys(links)),
                runs,
                secrets.randbelow(1 << 32) if seed is None else seed,
                scratch,
                output,
                stores,
            )
    except Interrupted as interrupted:
        kept = f" but {output}, with the rounds until then" if output and output.exists() else ""
        click.echo(f"lazyfs: interrupted; nothing of the measurement is left{kept}", err=True)
        return 128 + interrupted.number
    if html is not None:
        write_page(results, html)
    if as_json:
        print_json(results.as_dict())
    else:
        click.echo(markdown(results), nl=False)
    return 1 if results.failures else 0


@bench.command(short_help="Tell what became slower between two measurements.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1000),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="More than this is worse.",
)
@json_option
def compare(old: Path, new: Path, threshold: float, as_json: bool) -> int:
    """Tell what became slower between two measurements (`lazyfs bench start -o FILE`); exit code 1 if anything did.

    Times are compared as ratios to the other way of the same round, so that the two may have met the machine in
    different states; and only where the difference is larger than the noise. Bytes, requests and reads are compared as
    they are.

    \b
    Example:
      lazyfs bench compare --threshold 5 main.json branch.json
    """
    from dataclasses import asdict

    from lazyfs.bench.compare import compare as compare_results
    from lazyfs.bench.compare import table
    from lazyfs.bench.results import read_results

    changes = compare_results(read_results(old), read_results(new), threshold / 100)
    if as_json:
        print_json([asdict(each) for each in changes])
    else:
        click.echo(table(changes))
    return 1 if any(each.verdict.is_bad for each in changes) else 0
