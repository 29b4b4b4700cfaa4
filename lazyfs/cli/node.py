"""`lazyfs status`, `doctor` and `shutdown`: the node itself."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.common import json_option, node_paths, print_json, root_option, short
from lazyfs.draw.svg import byte_words


@click.command(short_help="What is here, and what was fetched.")
@click.option("--packs", is_flag=True, help="Look how much of the launch packs in use was read (a second).")
@json_option
@root_option
@click.pass_context
def status(context: click.Context, packs: bool, as_json: bool, root: Path | None) -> None:
    """Show what the node serves and what it has fetched. Exit code 3 when no daemon runs.

    \b
    Examples:
      lazyfs status
      lazyfs status --packs
      lazyfs status --json | jq .pid
    """
    from lazyfs.daemon.client import DaemonClient
    from lazyfs.errors import NotFoundError
    from lazyfs.keeper.client import KeeperClient
    from lazyfs.mount.images import is_direct, targets

    paths = node_paths(context, root)
    values = DaemonClient(paths).status()
    with suppress(NotFoundError):
        values["keeper"] = KeeperClient(paths).status()
    values["mounts"] = [
        {"target": str(entry.target), "kind": entry.kind, "direct": is_direct(paths, entry)}
        for entry in targets(paths)
    ]
    if packs:
        from lazyfs.cli.packs import uses

        values["pack_uses"] = uses(paths, values)
    if as_json:
        print_json(values)
    else:
        click.echo(_render(values))


def _render(values: dict[str, Any]) -> str:
    lines = [
        f"daemon {values['pid']} of {values['root']}, up {values['seconds_up']:.0f} s",
        f"  {values['requests']} requests brought {byte_words(values['store_bytes'])}; "
        f"the kernel read {values['device_reads']} times",
    ]
    touched = sum(layer["touched_bytes"] for layer in values["layers"])
    if touched:
        fetched = values["fetched_bytes"]
        lines.append(
            f"  {byte_words(fetched)} fetched, {byte_words(touched)} touched ({fetched / touched:.2f}); "
            f"{byte_words(values['filled_bytes'])} filled in, {values['layers_to_fill']} layers left to fill"
        )
    keeper = values.get("keeper", {})
    if keeper.get("restarts"):
        lines.append(f"  restarts: {keeper['restarts']}; last, {keeper['last_end']}")
    layers = {layer["device"]: layer for layer in values["layers"]}
    for image in values["images"]:
        total = sum(layers[number]["bytes"] for number in image["layers"])
        present = sum(layers[number]["present_bytes"] for number in image["layers"])
        lines.append(
            f"  image {image['reference']}  {short(image['digest'])}  {byte_words(present)} of {byte_words(total)} here"
        )
    lines += [_launch_line(launch) for launch in values["launches"]]
    lines += [
        f"  launch pack of {short(use['image'])}: {use['hits']} units were read, "
        f"{use['waste']} were not ({byte_words(use['waste_bytes'])})"
        for use in values.get("pack_uses", [])
    ]
    lines += [
        f"  mount {mount['target']} ({mount['kind']}{', needs no daemon' if mount['direct'] else ''})"
        for mount in values["mounts"]
    ]
    for each in values["cache"]["directories"]:
        line = f"  cache {each['path']}: {byte_words(each['used'])} of {byte_words(each['limit'])}"
        lines.append(f"{line}; {each['problem']}" if each["problem"] else line)
    if values["cache"]["chunks_not_kept"]:
        lines.append(f"  {values['cache']['chunks_not_kept']} chunks were not kept: the cache is full")
    if values["failed_fetches"] or values["cache_write_failures"]:
        lines.append(
            f"  {values['failed_fetches']} fetches failed, {values['cache_write_failures']} writes to the cache"
        )
        lines += [f"    {reason}" for reason in values["recent_failures"][-5:]]
    return "\n".join(lines)


def _launch_line(launch: dict[str, Any]) -> str:
    """What became of an image's launch pack."""
    line = f"  launch pack of {short(launch['image'])}, {byte_words(launch['bytes'])}: {launch['state']}"
    if launch["reason"]:
        return f"{line}: {launch['reason']}"
    here = f", {launch['present_units']} were here" if launch["present_units"] else ""
    return (
        f"{line}; {launch['units']} units ({byte_words(launch['unit_bytes'])}){here}; "
        f"{launch['waited']} reads waited for it, {launch['overtaken']} overtook it, "
        f"{launch['missed']} wanted what is not in it"
    )


@click.command(short_help="Can this machine run lazyfs?")
@click.option("--repair", is_flag=True, help="Take away what an unclean stop left behind.")
@json_option
@root_option
@click.pass_context
def doctor(context: click.Context, repair: bool, as_json: bool, root: Path | None) -> None:
    """Look whether this machine can run lazyfs, and say what is missing. Exit code 7 when something is.

    \b
    Examples:
      lazyfs doctor
      lazyfs doctor --repair
    """
    from lazyfs.cli.diagnosis import diagnose
    from lazyfs.cli.leftovers import mend_leftovers
    from lazyfs.errors import NodeError

    if repair:
        for left in mend_leftovers(node_paths(context, root)):
            click.echo(f"mended: {left.what}", err=True)
    findings = diagnose(node_paths(context, root))
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "FAIL"
            click.echo(f"{mark}  {finding.name}: {finding.found}")
            if not finding.ok:
                click.echo(f"      {finding.remedy}")
    if not all(finding.ok for finding in findings):
        context.exit(NodeError.exit_code)


@click.command(short_help="Let this version take over; containers go on.")
@root_option
@click.pass_context
def upgrade(context: click.Context, root: Path | None) -> None:
    """Let this version of lazyfs take over from the one that runs. What is mounted goes on; reads wait for a moment.

    The old daemon goes on when the new one does not start.

    \b
    Example:
      lazyfs upgrade       after: pip install --upgrade 'lazyfs[node]'
    """
    import os
    import subprocess
    import sys

    from lazyfs.daemon.client import DaemonClient, ensure_daemon
    from lazyfs.errors import NodeError
    from lazyfs.keeper.client import KeeperClient

    paths = node_paths(context, root)
    DaemonClient(paths).status()
    ensure_daemon(paths)
    command = [sys.executable, "-m", "lazyfs.keeper", "--check"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    if checked.returncode:
        reason = checked.stderr.strip().rpartition("\n")[2]
        raise NodeError(f"this version does not start: {reason}", hint="the running one goes on")
    answer = KeeperClient(paths).upgrade(sys.executable, os.environ.get("PYTHONPATH"))
    click.echo(f"daemon {answer['pid']} of lazyfs {answer['version']} serves {paths.root}")


@click.command(short_help="End the daemon, when nothing is mounted.")
@root_option
@click.pass_context
def shutdown(context: click.Context, root: Path | None) -> None:
    """End the node's daemon; refused (exit code 8) while an image is mounted.

    \b
    Example:
      lazyfs shutdown
    """
    from lazyfs.cli.workspace import remove_leftovers
    from lazyfs.daemon.client import DaemonClient

    paths = node_paths(context, root)
    remove_leftovers(paths)
    DaemonClient(paths).shutdown()
