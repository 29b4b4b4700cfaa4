"""`lazyfs install`: an engine uses lazyfs from its next start on, or no longer."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.common import json_option, node_paths, print_json, root_option

if TYPE_CHECKING:
    from lazyfs.install.containerd import Target
    from lazyfs.install.files import Plan

ENGINES = ("containerd", "docker", "k3s", "rke2")


@click.command(short_help="Let an engine start containers by lazyfs.")
@click.argument("engine", type=click.Choice(ENGINES))
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
@click.option("--remove", is_flag=True, help="Take back what an earlier install changed.")
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    help="Change the files below this directory instead of this machine's.",
)
@click.option(
    "--address",
    type=click.Path(path_type=Path),
    default=Path("/run/lazyfs/snapshotter.sock"),
    show_default=True,
    help="The socket of lazyfs-snapshotter.",
)
@click.option(
    "--snapshotter-root",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/lazyfs-snapshotter"),
    show_default=True,
    help="The --root of lazyfs-snapshotter.",
)
@json_option
@root_option
@click.pass_context
def install(
    context: click.Context,
    engine: str,
    dry_run: bool,
    remove: bool,
    prefix: Path,
    address: Path,
    snapshotter_root: Path,
    as_json: bool,
    root: Path | None,
) -> None:
    """Change the configuration of ENGINE so that it starts containers by lazyfs. The engine itself is not restarted.

    containerd: /etc/containerd/config.toml, for ctr, nerdctl and Kubernetes (kubeadm). docker: /etc/docker/daemon.json,
    and the containerd below it. k3s and rke2: beside the configuration that they write themselves.

    What is not ours stays as it is, comments too. A second time changes nothing.

    \b
    Examples:
      lazyfs install containerd --dry-run
      lazyfs install containerd && systemctl restart containerd
      lazyfs install docker --remove
    """
    from lazyfs.install.containerd import Target
    from lazyfs.install.files import apply
    from lazyfs.stores.node_stores import NodeStores

    listen = NodeStores.read(node_paths(context, root)).listen
    plan = _plan(engine, Target(prefix, address.absolute(), snapshotter_root.absolute(), listen), remove)
    for change in plan.changes:
        if not dry_run:
            apply(change)
    if as_json:
        files = [
            {"path": str(each.path), "before": each.before, "after": each.after} for each in plan.changes
        ]
        print_json({"changes": files, "notes": plan.notes if files else []})
        return
    for change in plan.changes:
        click.echo(change.difference() if dry_run else f"{change.done} {change.path}", nl=not dry_run)
    if not plan.changes:
        click.echo("nothing to change")
        return
    for note in plan.notes:
        click.echo(f"- {note}")
    if not remove:
        click.echo(f"- take it back: lazyfs install {engine} --remove")


def _plan(engine: str, target: "Target", remove: bool) -> "Plan":
    from lazyfs.install.containerd import plan_containerd
    from lazyfs.install.docker import is_chosen, plan_docker
    from lazyfs.install.k3s import plan_k3s

    if engine == "docker":
        return plan_docker(target, remove=remove)
    if engine == "containerd":
        return plan_containerd(target, remove=remove, keep_proxy=is_chosen(target))
    return plan_k3s(target, engine, remove=remove)
