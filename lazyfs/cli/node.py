"""`lazyfs status`, `doctor` and `shutdown`: the node itself."""

from typing import Any

import typer

from lazyfs.cli.common import JsonOption, RootOption, node_paths, print_json, short, size


def add_to(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(doctor)
    app.command()(shutdown)


def status(context: typer.Context, json: JsonOption = False, root: RootOption = None) -> None:
    """Show what the node serves and what it has fetched. Exit code 3 when no daemon runs.

    \b
    Examples:
      lazyfs status
      lazyfs status --json | jq .pid
    """
    from lazyfs.daemon.client import DaemonClient
    from lazyfs.mount.images import targets

    paths = node_paths(context, root)
    values = DaemonClient(paths).status()
    values["mounts"] = [{"target": str(entry.target), "kind": entry.kind} for entry in targets(paths)]
    if json:
        print_json(values)
    else:
        typer.echo(_render(values))


def _render(values: dict[str, Any]) -> str:
    lines = [
        f"daemon {values['pid']} of {values['root']}, up {values['seconds_up']:.0f} s",
        f"  {values['requests']} requests brought {size(values['store_bytes'])}; "
        f"the kernel read {values['device_reads']} times",
    ]
    layers = {layer["device"]: layer for layer in values["layers"]}
    for image in values["images"]:
        total = sum(layers[number]["bytes"] for number in image["layers"])
        present = sum(layers[number]["present_bytes"] for number in image["layers"])
        lines.append(
            f"  image {image['reference']}  {short(image['digest'])}  {size(present)} of {size(total)} here"
        )
    lines += [f"  mount {mount['target']} ({mount['kind']})" for mount in values["mounts"]]
    if values["failed_fetches"] or values["cache_write_failures"]:
        lines.append(
            f"  {values['failed_fetches']} fetches failed, {values['cache_write_failures']} writes to the cache"
        )
        lines += [f"    {reason}" for reason in values["recent_failures"][-5:]]
    return "\n".join(lines)


def doctor(context: typer.Context, json: JsonOption = False, root: RootOption = None) -> None:
    """Look whether this machine can run lazyfs, and say what is missing. Exit code 7 when something is.

    \b
    Example:
      lazyfs doctor
    """
    from lazyfs.cli.diagnosis import diagnose
    from lazyfs.errors import NodeError

    findings = diagnose(node_paths(context, root))
    if json:
        print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "FAIL"
            typer.echo(f"{mark}  {finding.name}: {finding.found}")
            if not finding.ok:
                typer.echo(f"      {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(NodeError.exit_code)


def shutdown(context: typer.Context, root: RootOption = None) -> None:
    """End the node's daemon; refused (exit code 8) while an image is mounted.

    \b
    Example:
      lazyfs shutdown
    """
    from lazyfs.cli.run import remove_stale_runs
    from lazyfs.daemon.client import DaemonClient

    paths = node_paths(context, root)
    remove_stale_runs(paths)
    DaemonClient(paths).shutdown()
