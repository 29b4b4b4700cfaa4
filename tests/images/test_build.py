"""The builder's promises: made once, by one at a time, and a killed build leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.images import RECIPES, BuildError, BuiltImage, Recipe, ensure
from benchmarks.images.recipe import Busybox
from tests.waiting import wait_until

pytestmark = pytest.mark.root

_REPOSITORY = Path(__file__).parents[2]

_BLOCKED = """
from pathlib import Path
from benchmarks.images import Recipe, ensure
from benchmarks.images.recipe import Busybox
ensure(Recipe("blocked", Busybox(), (": >/started; exec tail -f /started",), {}), Path("cache"))
"""


def _processes(cache: Path) -> list[str]:
    """The processes of builds in `cache`, which all have its name in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended
            if f"CACHE={cache}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


def _start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    cache = tmp_path / "cache"
    with _start(tmp_path, "-c", _BLOCKED) as builder:
        try:
            wait_until((cache / "layers/new/fs/started").exists)
            wait_until(lambda: _processes(cache))  # one that executes another program has none for a moment
            builder.send_signal(number)
            builder.wait(timeout=300)
        finally:
            builder.kill()
    wait_until(lambda: not _processes(cache))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list(cache.glob("blocked-*")) == []
    assert ensure(RECIPES["small"], cache).tree.exists()
    assert not (cache / "layers/new").exists()


def test_what_is_there_is_not_made_again(small_image: BuiltImage) -> None:
    cache = small_image.layout.parents[1]
    index = small_image.layout / "index.json"
    before = index.stat()
    assert ensure(RECIPES["small"], cache) == small_image
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_builds_at_once_make_one_image(tmp_path: Path) -> None:
    arguments = ("-m", "benchmarks.images", "small", "--cache", "cache")
    with _start(tmp_path, *arguments) as first, _start(tmp_path, *arguments) as second:
        references = {first.communicate(timeout=300)[0], second.communicate(timeout=300)[0]}
    assert (first.returncode, second.returncode) == (0, 0)
    (reference,) = references
    assert reference.startswith(f"oci:{tmp_path}/cache/small-")


def test_images_share_their_common_layers(small_image: BuiltImage) -> None:
    cache = small_image.layout.parents[1]
    other = ensure(Recipe("other", Busybox(), (RECIPES["small"].scripts[0], "rm -r /srv"), {}), cache)
    first, second = (
        {path.name for path in (image.layout / "blobs/sha256").iterdir()} for image in (small_image, other)
    )
    assert len(first & second) == 2
    assert "srv" not in json.loads(other.tree.read_bytes())


def test_a_failing_script_is_one_line_that_names_the_log(tmp_path: Path) -> None:
    recipe = Recipe("failing", Busybox(), ("echo the reason; exit 7",), {})
    with pytest.raises(BuildError, match=r"failed \(exit code 7\): see the end of .*/build.log") as caught:
        ensure(recipe, tmp_path)
    assert "\n" not in str(caught.value)
    assert "the reason" in (tmp_path / "build.log").read_text()
    assert list(tmp_path.glob("failing-*")) == []


def test_a_build_removes_older_ones_of_its_image_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other = ensure(Recipe("app-upgraded", Busybox(), (), {}), cache)
    old = ensure(Recipe("app", Busybox(), (), {}), cache)
    new = ensure(Recipe("app", Busybox(), (), {"WorkingDir": "/srv"}), cache)
    assert [each.layout.exists() for each in (other, old, new)] == [True, False, True]
