"""`lazyfs cache`: what the node has on its disks, and what shall stay there."""

import re
import time
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.common import (
    json_option,
    node_paths,
    print_json,
    reference_argument,
    root_option,
    short,
)
from lazyfs.config import NodePaths
from lazyfs.draw.svg import byte_words
from lazyfs.errors import IntegrityError, LimitError, UsageError

STEP_SECONDS = 10.0
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group(short_help="What is on this node's disks, and what stays there.", invoke_without_command=True)
@json_option
@root_option
@click.pass_context
def cache(context: click.Context, as_json: bool, root: Path | None) -> None:
    """Show what the node has of each image and layer. Works with a daemon and without one.

    \b
    Examples:
      lazyfs cache
      lazyfs cache warm docker://registry/app:1      fetch all of an image
      lazyfs cache pin docker://registry/app:1       it stays, whatever else is needed
      lazyfs cache prune --older 7d                  drop what nobody has read for a week
      lazyfs cache verify                            find what the disk has damaged
    """
    if root is not None:
        context.obj.root = root
    if context.invoked_subcommand is None:
        values = _ask(node_paths(context, None), "GET /v1/cache", {})
        if as_json:
            print_json(values)
        else:
            click.echo(_render(values))


@cache.command(short_help="Drop an image, what is old, or down to a size.")
@click.argument("reference", metavar="[REF]", required=False)
@click.option("--older", metavar="AGE", help="What was not read for so long: 12h, 7d, 2w.")
@click.option(
    "--to", "size", metavar="SIZE", help="The least recently used, until the cache has this size: 20G."
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@root_option
@click.pass_context
def prune(
    context: click.Context,
    reference: str | None,
    older: str | None,
    size: str | None,
    dry_run: bool,
    as_json: bool,
    root: Path | None,
) -> None:
    """Drop chunks from the disks. They come again when somebody reads them; pinned images stay.

    With REF: what no other image has of its layers. Exit code 8 when the image is pinned.

    \b
    Examples:
      lazyfs cache prune --older 7d --dry-run
      lazyfs cache prune --to 20G
      lazyfs cache prune docker://registry/app:1
    """
    body = {
        "unused_for": None if older is None else _age(older),
        "size": None if size is None else _size(size),
        "dry_run": dry_run,
        **_named(reference),
    }
    values = _ask(node_paths(context, root), "POST /v1/cache/prune", body)
    if as_json:
        print_json(values)
    else:
        verb = "would drop" if dry_run else "dropped"
        click.echo(
            f"{verb} {values['chunks']} chunks of {len(values['layers'])} layers, {byte_words(values['bytes'])}"
        )
        if values["mounted"]:
            click.echo(f"{len(values['mounted'])} layers stay: the kernel has them mounted from the cache")


def _pinning(name: str, pinned: bool, summary: str, words: str) -> None:
    """The command that says, or takes back, that an image must stay."""
    text = f"{words}\n\n\b\nExample:\n  lazyfs cache {name} docker://registry/app:1"

    @cache.command(name, short_help=summary, help=text)
    @reference_argument
    @root_option
    @click.pass_context
    def command(context: click.Context, reference: str, root: Path | None) -> None:
        body = {"pinned": pinned, **_named(reference)}
        _ask(node_paths(context, root), "POST /v1/cache/pin", body)


_pinning(
    "pin",
    True,
    "Say that an image must stay.",
    "Let nothing of an image be dropped. The image must have been opened on this node.",
)
_pinning("unpin", False, "Undo `pin`.", "Let an image be dropped like any other.")


@cache.command(short_help="Compare what is on the disks with its digests.")
@json_option
@root_option
@click.pass_context
def verify(context: click.Context, as_json: bool, root: Path | None) -> None:
    """Read all that is in the cache and compare it with its digests. What is damaged is dropped, to be
    fetched again when it is read; exit code 5 when there was something.

    \b
    Example:
      lazyfs cache verify
    """
    from lazyfs.daemon.cache_calls import asking

    found = []
    with asking(node_paths(context, root)) as ask:
        for layer in ask("GET /v1/cache", {})["layers"]:
            if layer["present_bytes"]:
                found.append(ask("POST /v1/cache/verify", {"layer": layer["toc"]}))
    damaged = [f"layer {each['layer']}: chunk {index}" for each in found for index in each["damaged"]]
    if as_json:
        print_json(found)
    else:
        size = byte_words(sum(each["bytes"] for each in found))
        for line in damaged:
            click.echo(f"damaged: {line}")
        click.echo(f"{size} of {len(found)} layers match their digests")
    if damaged:
        hint = "they are fetched again when they are read; look after the disk"
        if any(each["damaged"] and each["mounted_directly"] for each in found):
            hint = (
                "images that are mounted from these layers may have read them: `lazyfs cache warm REF` puts them "
                "right, then mount the images again; look after the disk"
            )
        raise IntegrityError(f"{len(damaged)} chunks were damaged on the disk and are dropped", hint=hint)


@cache.command(short_help="Fetch all of an image, or what its start reads.")
@reference_argument
@click.option("--pack", is_flag=True, help="Only what the image's launch pack brings.")
@json_option
@root_option
@click.pass_context
def warm(context: click.Context, reference: str, pack: bool, as_json: bool, root: Path | None) -> None:
    """Fetch all of an image before it is needed, or with --pack what its start reads. Starts the daemon when
    none runs.

    \b
    Examples:
      lazyfs cache warm docker://registry/app:1
      lazyfs cache warm --pack docker://registry/app:1
      lazyfs cache warm docker://registry/app:1 && lazyfs cache pin docker://registry/app:1
    """
    from lazyfs.daemon.client import daemon_in_use

    call = "POST /v1/cache/warm-pack" if pack else "POST /v1/cache/warm"
    body: dict[str, Any] = {"after": 0, "seconds": STEP_SECONDS, **_named(reference)}
    with daemon_in_use(node_paths(context, root)) as client:
        while True:
            values = client.ask(call, body)
            if values["next"] is None:
                break
            body["after"] = values["next"]
    del values["next"]
    if as_json:
        print_json(values)
    elif pack:
        click.echo(f"{byte_words(values['pack']['unit_bytes'])} of the launch pack are here")
    else:
        click.echo(f"{byte_words(values['present_bytes'])} of {byte_words(values['bytes'])} are here")
    if not pack and values["present_bytes"] < values["bytes"]:
        raise LimitError(
            f"the cache took only {values['present_bytes']} of {values['bytes']} bytes of {reference}",
            hint="raise the cache's limit, unpin images, or free some space: `lazyfs cache` shows what takes it",
        )


def _ask(paths: NodePaths, call: str, body: dict[str, Any]) -> dict[str, Any]:
    from lazyfs.daemon.cache_calls import asking

    with asking(paths) as ask:
        return ask(call, body)


def _named(reference: str | None) -> dict[str, str]:
    if reference is None:
        return {}
    try:
        return {"reference": reference, "directory": str(Path.cwd())}
    except OSError as error:
        raise UsageError(f"the working directory: {error.strerror}") from error


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:40]!r} is not an age", hint="such as 90m, 12h, 7d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def _size(text: str) -> int:
    from lazyfs.node.cache_settings import Limit

    size = Limit.parse(text).bytes
    if size is None:
        raise UsageError(f"{text!r} is not a size in bytes", hint="such as 20G or 512M")
    return size


def _render(values: dict[str, Any]) -> str:
    layers = {layer["toc"]: layer for layer in values["layers"]}
    lines = []
    for each in values["directories"]:
        line = f"{each['path']}  {byte_words(each['used'])} of {byte_words(each['limit'])}"
        lines.append(f"{line}  {each['problem']}".rstrip())
    for image in values["images"]:
        lines.append(
            f"image {image['reference']}  {short(image['digest'])}"
            f"  {byte_words(image['present_bytes'])} of {byte_words(image['bytes'])} here"
            f", {byte_words(image['shared_bytes'])} shared, used {_ago(image['last_used'])}"
            + (", pinned" if image["pinned"] else "")
        )
        lines += [_layer_line(layers[toc]) for toc in image["layers"]]
    others = [layer for layer in values["layers"] if not layer["images"]]
    if others:
        lines.append("layers of no image that is remembered")
        lines += [_layer_line(layer) for layer in others]
    if values["copied_bytes"]:
        lines.append(f"{byte_words(values['copied_bytes'])} were copied from other layers instead of fetched")
    return "\n".join(lines)


def _layer_line(layer: dict[str, Any]) -> str:
    words = f"  layer {short(layer['blob']) or layer['toc'][:12]}"
    words += f"  {byte_words(layer['present_bytes'])} of {byte_words(layer['bytes'])} here"
    words += f", used {_ago(layer['last_used'])}"
    if layer["images"] > 1:
        words += f", in {layer['images']} images"
    if layer["mounted_directly"]:
        words += ", mounted by the kernel"
    return words


def _ago(moment: int) -> str:
    if not moment:
        return "never"
    seconds = max(0, int(time.time()) - moment)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name} ago"
    return "just now"
