"""k3s and RKE2 write their containerd's configuration at each start, and take ours from beside it.

With containerd 2 (configuration version 3) they import `config-v3.toml.d/*.toml`, and what is imported adds to what is
there. Before that an imported file replaces all settings of CRI, so their own file is copied as the template for the
next start, with our settings in it; what k3s would generate otherwise is then fixed until the template is removed.
"""

from pathlib import Path

from lazyfs.errors import NotFoundError, UsageError
from lazyfs.install.containerd import Target, check_version, put_cri, put_proxy, url
from lazyfs.install.edits import MARK, TomlEdits
from lazyfs.install.files import Plan, changes, read_text
from lazyfs.stores.node_stores import HOSTS

DISTRIBUTIONS = ("k3s", "rke2")
_DROP_IN = "config-v3.toml.d/lazyfs.toml"
_TEMPLATES = {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}
_HEADER = f"# {MARK}; remove this file to take it back\n"


def plan_k3s(target: Target, distribution: str, *, remove: bool = False) -> Plan:
    """What to change for ``distribution``, one of DISTRIBUTIONS; or with ``remove`` what takes it back."""
    directory = target.prefix / "var/lib/rancher" / distribution / "agent/etc/containerd"
    notes = [f"restart it: systemctl restart {distribution} (on agents {distribution}-agent)"]
    if remove:
        files = [directory / name for name in (_DROP_IN, *_TEMPLATES.values())]
        ours = [(path, text) for path in files if (text := read_text(path) or "").startswith(_HEADER)]
        return Plan(changes((path, text, None) for path, text in ours), tuple(notes))
    generated = read_text(directory / "config.toml")
    if generated is None:
        raise NotFoundError(
            f"{directory} has no config.toml", hint=f"start {distribution} once, so that it writes one"
        )
    path, after = _wanted(target, directory, generated.removeprefix(_HEADER))
    before = read_text(path)
    if before is not None and not before.startswith(_HEADER):
        raise UsageError(
            f"{path} is there already, and not ours",
            hint=f"put in what `lazyfs install {distribution} --dry-run` prints with the file out of the way",
        )
    registries = target.prefix / "etc/rancher" / distribution / "registries.yaml"
    if not all(host in (read_text(registries) or "") for host in HOSTS):
        notes.append(
            f"for images of buckets and directories add to {registries}, below mirrors: "
            + " ".join(f'{host}: {{endpoint: ["{url(target)}"]}}' for host in HOSTS)
        )
    return Plan(changes([(path, before, after)]), tuple(notes))


def _wanted(target: Target, directory: Path, generated: str) -> tuple[Path, str]:
    """Which file makes the next start use lazyfs, and what it holds."""
    edits = TomlEdits(generated, str(directory / "config.toml"))
    version = check_version(edits, directory / "config.toml")
    if version > 2 and any("config-v3.toml.d" in str(each) for each in edits.get("imports") or []):
        path = directory / _DROP_IN
        edits = TomlEdits(f"version = {edits.get('version')}\n", str(path))
    else:
        path = directory / _TEMPLATES[version]
    put_proxy(edits, target)
    put_cri(edits, version)
    # What two braces mean to a template, they do not mean in the file that was generated from one.
    return path, _HEADER + (
        edits.text if path.name == "lazyfs.toml" else edits.text.replace("{{", '{{"{{"}}')
    )
