"""stargz-snapshotter as a rival of measured starts: the program, and an image as its users make it.

The image is eStargz, of `ctr-remote images optimize`: the tool runs it for a while, and sorts what was read to the
front of each layer. Where it cannot run it here, files stay in their order (--no-optimize). Made once, kept beside the
input images.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import engines
from benchmarks.images import BuiltImage
from benchmarks.process import FailedError
from benchmarks.rivals import ctr_remote, running_containerd
from lazyfs.formats.oci_types import REF_NAME_ANNOTATION

_TAG = "estargz"
_SECONDS = 10
_LAST = 200  # characters


def stargz(image: BuiltImage, cache: Path) -> str:
    """What `lazyfs bench start --against` takes for it."""
    program = engines.stargz()
    return f"stargz={program} {{socket}} {{root}},{estargz(image, cache)}"


def estargz(image: BuiltImage, cache: Path) -> str:
    """A reference of the image as eStargz, made now unless it is there."""
    directory = (cache / "estargz" / image.layout.parent.name).absolute()
    reference = f"oci:{directory}:{_TAG}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Not /tmp: snapshots do not lie on tmpfs.
        with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as scratch:
            made = Path(scratch) / "made"
            _optimize(image, cache, Path(scratch), made)
            unfinished = directory.with_name(f"{directory.name}.new")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(made, unfinished)
            unfinished.rename(directory)
    return reference


def _optimize(image: BuiltImage, cache: Path, scratch: Path, made: Path) -> None:
    with running_containerd(scratch) as (directory, _):
        remote = [str(ctr_remote(cache)), "--address", str(directory / "sock"), "--namespace", "bench"]
        source, target, archive = f"bench:{image.tag}", f"bench:{_TAG}", directory / "archive.tar"
        _run(["tar", "--create", f"--file={archive}", f"--directory={image.layout}", "."])
        _run([*remote, "images", "import", "--base-name", "bench", str(archive)])
        convert = [*remote, "images", "optimize", "--oci"]
        try:
            _run([*convert, f"--period={_SECONDS}", "--net-host", source, target])
        except FailedError:
            _run([*convert, "--no-optimize", source, target])
        _run([*remote, "images", "export", str(archive), target])
        made.mkdir()
        _run(["tar", "--extract", f"--file={archive}", f"--directory={made}"])
        # containerd's name of an image is not one of a tag.
        index = json.loads((made / "index.json").read_bytes())
        index["manifests"][0]["annotations"] = {REF_NAME_ANNOTATION: _TAG}
        (made / "index.json").write_text(json.dumps(index))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise FailedError(f"{command[0]}: {done.stderr[-_LAST:].strip()}")
