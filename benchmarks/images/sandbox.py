"""Commands in a root file system made of layers, with nothing left behind however they end.

Every command runs in mount and process namespaces of its own, which end with the builder, even if
that is killed: the kernel then takes back every mount and every process, and no clean-up can fail.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.images import apt
from benchmarks.images.errors import BuildError

_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")

# Upper directories must stand alone: no inode of theirs may refer to a lower layer.
_OVERLAY = """
mount -t overlay overlay -o "lowerdir=$LOWER$WRITABLE,redirect_dir=off,metacopy=off,index=off" root
"""

_CHROOT = """
mount -t proc proc root/proc
mount -t tmpfs -o mode=755 tmpfs root/dev
mknod -m 666 root/dev/null c 1 3
mknod -m 666 root/dev/zero c 1 5
mknod -m 666 root/dev/full c 1 7
mknod -m 666 root/dev/random c 1 8
mknod -m 666 root/dev/urandom c 1 9
ln -s /proc/self/fd root/dev/fd
mount -t tmpfs -o mode=755 tmpfs root/run
mount -t tmpfs -o mode=1777 tmpfs root/tmp
for name in hosts resolv.conf; do
    if [ -e "/etc/$name" ] && [ -e "root/etc/$name" ]; then mount --bind "/etc/$name" "root/etc/$name"; fi
done
if [ -d root/var/lib/apt ]; then
    mount --bind "$CACHE/apt-lists" root/var/lib/apt/lists
    mount --bind "$CACHE/debs" root/var/cache/apt/archives
    printf '%s\\n' "$APT_SETTINGS" >root/tmp/apt.conf
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt root/tmp; fi
    mkdir root/tmp/pip root/tmp/wheels
    mount --bind "$CACHE/wheels" root/tmp/wheels
    if [ -d "$PIP" ]; then cp -r "$PIP" root/tmp/pip/pip; fi
fi
"""

_FLATTEN = """
cp --archive root/. fs
"""

# Downloads are kept outside of the image, apt's binary caches nowhere; a layer that is lost in a
# power cut is made anew, so dpkg need not wait for the disk.
_APT_SETTINGS = """
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::https::CAInfo "/tmp/ca-certificates.crt";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Options:: "--force-unsafe-io";
"""


def run(script: str, cwd: Path, log: Path, variables: Mapping[str, str]) -> None:
    """Run a script of this machine's own shell in `cwd`, in namespaces of its own; output goes to `log`."""
    environment = {
        "PATH": SYSTEM_PATH,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        **variables,
    }
    with log.open("ab") as out:
        done = subprocess.run(
            [*_NAMESPACES, "sh", "-eux", "-c", script],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode:
        raise BuildError(f"a build command failed (exit code {done.returncode}): see the end of {log}")


def run_in_layers(script: str, work: Path, lower: Sequence[str], cache: Path, log: Path) -> None:
    """Run `script` in a chroot of the layers `lower` (topmost first, relative to `work`).

    What it changes is in ``work/fs`` afterwards, the upper directory, which must be there and empty.
    """
    for name in ("work", "root"):
        (work / name).mkdir()
    variables = {
        "LOWER": ":".join(lower),
        "WRITABLE": ",upperdir=fs,workdir=work",
        "CACHE": str(cache),
        "SCRIPT": script,
    }
    if (cache / "debs").is_dir():
        variables |= _package_variables()
    run(_OVERLAY + _CHROOT + 'exec chroot root /bin/sh -eux -c "$SCRIPT"', work, log, variables)


def _package_variables() -> dict[str, str]:
    """What apt and pip need to find this machine's mirrors, and to keep their downloads out of the image."""
    pip = importlib.util.find_spec("pip")
    security = ""
    with contextlib.suppress(BuildError):  # only some recipes need it
        security = apt.find_mirror("bookworm-security")
    return {
        "APT_SETTINGS": _APT_SETTINGS + apt.network_settings(),
        "APT_CONFIG": "/tmp/apt.conf",
        "SECURITY": security,
        "PIP": str(Path(pip.origin).parent) if pip and pip.origin else "",
        "PIP_CERT": "/tmp/ca-certificates.crt",
        "PIP_CACHE_DIR": "/tmp/wheels",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def flatten_layers(work: Path, lower: Sequence[str], log: Path) -> None:
    """Copy the layers `lower`, merged by overlayfs, to ``work/fs``, which must be there and empty."""
    (work / "root").mkdir()
    run(_OVERLAY + _FLATTEN, work, log, {"LOWER": ":".join(lower), "WRITABLE": ""})


def list_layers(out: Path, work: Path, lower: Sequence[str], log: Path) -> None:
    """Write the listing (`benchmarks.images.tree`) of the layers `lower`, merged by overlayfs, to `out`."""
    for name in ("root", "nothing"):
        (work / name).mkdir()
    variables = {
        # overlayfs takes no single lower directory.
        "LOWER": ":".join(lower if len(lower) > 1 else [*lower, "nothing"]),
        "WRITABLE": "",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OUT": str(out),
    }
    run(_OVERLAY + 'exec "$PYTHON" -m benchmarks.images.tree root >"$OUT"', work, log, variables)
