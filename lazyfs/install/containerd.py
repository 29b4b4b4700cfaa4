"""containerd 1.6 to 2.x by itself, as kubeadm and nerdctl use it: `/etc/containerd/config.toml`.

The file itself is edited, and no file is imported into it: containerd 1.6 and 1.7 replace a whole plugin's settings
by those of an imported file, so that one that only names a snapshotter would take sandbox image and runtimes away; and
none of them takes an import of a higher version than the file's own. containerd 2 reads files of version 2, but loses
CRI's snapshotter where no runtimes are named beside it: it is named twice there, as 1.x and as 2.x read it.
"""

from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import UsageError
from lazyfs.install.edits import TomlEdits
from lazyfs.install.files import Plan, changes, read_text
from lazyfs.stores.image import host_platform
from lazyfs.stores.node_stores import DEFAULT_LISTEN, HOSTS, NodeStores

NAME = "lazyfs"
CONFIG = "etc/containerd/config.toml"
CERTS = "/etc/containerd/certs.d"
_DEFAULT_SNAPSHOTTER = "overlayfs"
_CRI_PLUGIN = "io.containerd.grpc.v1.cri"
_CRI_V2 = ("plugins", _CRI_PLUGIN, "containerd")
_REGISTRY_V2 = ("plugins", _CRI_PLUGIN, "registry")
_CRI_V3 = ("plugins", "io.containerd.cri.v1.images")
_UNPACK = ("plugins", "io.containerd.transfer.v1.local", "unpack_config")
_PROXY = ("proxy_plugins", NAME)
_OURS = "# by lazyfs install: images of buckets and directories, shown by the lazyfs daemon of this machine\n"


@dataclass(frozen=True, slots=True)
class Target:
    """Where things are: ``prefix`` stands before every path, ``address`` and ``root`` are those of the snapshotter."""

    prefix: Path = Path("/")
    address: Path = Path("/run/lazyfs/snapshotter.sock")
    root: Path = Path("/var/lib/lazyfs-snapshotter")
    listen: tuple[str, int] = DEFAULT_LISTEN


def plan_containerd(target: Target, *, remove: bool = False, keep_proxy: bool = False) -> Plan:
    """What to change; with ``remove`` what takes it back, but for the proxy plugin where another engine needs it."""
    path = target.prefix / CONFIG
    before = read_text(path)
    edits = TomlEdits(before or "", str(path))
    notes = ["restart it: systemctl restart containerd"]
    if remove:
        for table in (_CRI_V2, _CRI_V3, _REGISTRY_V2, _UNPACK[:-1], *([] if keep_proxy else [_PROXY])):
            edits.take_back(table)
        after = _finish_removal(edits, before)
        return Plan(changes([(path, before, after), *hosts_files(target, CERTS, remove=True)]), tuple(notes))
    version = check_version(edits, path)
    put_proxy(edits, target)
    put_cri(edits, version)
    if _CRI_PLUGIN in (edits.get("disabled_plugins") or []):
        notes.append(f"CRI is disabled in {path}: ctr, nerdctl and Docker work, Kubernetes does not")
    if not _put_registry(edits, version):
        notes.append(
            f"{path} names mirrors or TLS of registries itself, so CRI does not read {CERTS}: "
            f"images of {' and '.join(HOSTS)} need mirrors there that lead to {url(target)}"
        )
    return Plan(changes([(path, before, edits.text), *hosts_files(target, CERTS)]), tuple(notes))


def proxy_change(target: Target, *, remove: bool = False) -> tuple[Path, str | None, str | None]:
    """Only the proxy plugin, for an engine that chooses its snapshotter itself: path, before and after."""
    path = target.prefix / CONFIG
    before = read_text(path)
    edits = TomlEdits(before or "", str(path))
    if not remove:
        check_version(edits, path)
        put_proxy(edits, target)
        return path, before, edits.text
    if NAME in (edits.get(*_CRI_V2, "snapshotter"), edits.get(*_CRI_V3, "snapshotter")):
        return path, before, before
    edits.take_back(_PROXY)
    return path, before, _finish_removal(edits, before)


def check_version(edits: TomlEdits, path: Path) -> int:
    """2, or 3 for that and all later ones, which name plugins alike; a file that says nothing becomes one of 2."""
    version = edits.get("version")
    if version is None and edits.get("plugins") is None:
        edits.put(("version",), 2)
        disabled = edits.get("disabled_plugins")
        if isinstance(disabled, list) and "cri" in disabled:
            edits.put(("disabled_plugins",), [_CRI_PLUGIN if each == "cri" else each for each in disabled])
        return 2
    if not isinstance(version, int) or version < 2:
        raise UsageError(
            f"{path} is of version 1 of containerd's configuration",
            hint="`containerd config migrate` prints it as version 2",
        )
    return min(version, 3)


def put_proxy(edits: TomlEdits, target: Target) -> None:
    edits.put((*_PROXY, "type"), "snapshot")
    edits.put((*_PROXY, "address"), str(target.address))
    # Containers in user namespaces of their own, without a copy of the image for each mapping.
    edits.put((*_PROXY, "capabilities"), ["remap-ids"])
    # What CRI measures the disk of, and what lets the Transfer service of containerd 2 tell images to the snapshotter.
    edits.put((*_PROXY, "exports", "root"), str(target.root))
    edits.put((*_PROXY, "exports", "enable_remote_snapshot_annotations"), "true")


def put_cri(edits: TomlEdits, version: int) -> None:
    for table in (_CRI_V2, _CRI_V3) if version == 2 else (_CRI_V3,):
        edits.put((*table, "snapshotter"), NAME)
        edits.put((*table, "disable_snapshot_annotations"), False)
    present = edits.get(*_UNPACK)
    platform = str(host_platform())
    # An array that is given takes the place of the default, which is overlayfs.
    names = [_DEFAULT_SNAPSHOTTER, NAME] if present is None else [NAME]
    known = [each.get("snapshotter") for each in present or []]
    missing = [{"platform": platform, "snapshotter": name} for name in names if name not in known]
    if missing:
        edits.append(_UNPACK, missing)


def hosts_files(
    target: Target, certs: str, *, remove: bool = False
) -> list[tuple[Path, str | None, str | None]]:
    """A hosts.toml for each of our registries: path, before and after. What somebody else wrote is left as it is."""
    text = (
        f'{_OURS}server = "{url(target)}"\n\n[host."{url(target)}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    paths = [target.prefix / certs.lstrip("/") / host / "hosts.toml" for host in HOSTS]
    found = [(path, read_text(path)) for path in paths]
    return [
        (path, before, None if remove else text)
        for path, before in found
        if before is None or before.startswith(_OURS)
    ]


def url(target: Target) -> str:
    return NodeStores(target.listen).url


def _put_registry(edits: TomlEdits, version: int) -> bool:
    """Let CRI read hosts.toml; False where its owner says in another way where registries are."""
    table = _REGISTRY_V2 if version == 2 else (*_CRI_V3, "registry")
    registry = edits.get(*table) or {}
    configs = registry.get("configs") or {}
    if registry.get("mirrors") or any("tls" in each for each in configs.values()):
        return False
    if not registry.get("config_path"):
        edits.put((*table, "config_path"), CERTS)
    return True


def _finish_removal(edits: TomlEdits, before: str | None) -> str | None:
    if before is None:
        return None
    if edits.get("plugins") is None and edits.get("proxy_plugins") is None:
        # The version that we gave it, for our own tables.
        edits.take_back()
    return edits.text if edits.text.strip() else None
