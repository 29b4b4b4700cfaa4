"""A process that is killed after any step of any call, and what the next one finds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.formats.oci_types import TOC_ANNOTATION
from snapshotter.lifecycle import Snapshots
from snapshotter.records import Kind

from .client import REPOSITORY
from .samples import NoImages

# Calls one method; is killed when it has reached a step for the n-th time, or ends.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from snapshotter.lifecycle import Snapshots
from snapshotter.records import TakenError
from tests.snapshotter.samples import EveryImage

root, stop, *call = json.loads(sys.argv[1])

def reached(step):
    global stop
    print(step, flush=True)
    stop -= 1
    if stop == 0:
        os.kill(os.getpid(), signal.SIGKILL)

snapshots = Snapshots(Path(root), EveryImage(), reached)
try:
    getattr(snapshots, call[0])(*call[1:])
except TakenError:  # the layer is there
    assert "lazy" in call
"""
LAZY = {
    "containerd.io/snapshot.ref": "sha256:1",
    "containerd.io/snapshot/cri.image-ref": "host/image:tag",
    "containerd.io/snapshot/cri.layer-digest": "sha256:2",
    TOC_ANNOTATION: "1:2:3",
}
CALLS: list[list[object]] = [
    ["prepare", "new", "base", {}],
    ["view", "new", "base", {}],
    ["prepare", "new", "", {"label": "x"}],
    ["prepare", "lazy", "", LAZY],
    ["commit", "done", "active", {}],
    ["remove", "active"],
    ["remove", "leaf"],
    ["cleanup"],
]


def run(root: Path, stop: int, call: list[object]) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([str(root), stop, *call])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.split()


def populate(root: Path) -> None:
    """A committed snapshot with a child of each kind, one without, and a directory that belongs to nobody."""
    snapshots = Snapshots(root, NoImages())
    for name in ("base", "leaf"):
        snapshots.prepare("a", "", {})
        snapshots.commit(name, "a", {})
    snapshots.prepare("active", "base", {})
    snapshots.view("view", "base", {})
    snapshots.prepare("gone", "", {})
    snapshots.remove("gone")
    snapshots.close()


def check(root: Path) -> dict[str, Kind]:
    """No record without its directory, and after a Cleanup no directory without its record."""
    snapshots = Snapshots(root, NoImages())
    found = {each.key: each for each in snapshots.walk([])}
    for each in found.values():
        assert (root / "snapshots" / str(each.id) / "fs").is_dir()
        assert each.kind is not Kind.ACTIVE or (root / "snapshots" / str(each.id) / "work").is_dir()
    snapshots.cleanup()
    assert {each.name for each in (root / "snapshots").iterdir()} == {str(each.id) for each in found.values()}
    snapshots.close()
    return {name: each.kind for name, each in found.items()}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: "-".join(map(str, call[:2])))
def test_killed_after_each_step(call: list[object], tmp_path: Path) -> None:
    populate(tmp_path / "whole")
    before = {each.key: each.kind for each in Snapshots(tmp_path / "whole", NoImages()).walk([])}
    code, steps = run(tmp_path / "whole", 0, call)
    assert code == 0
    assert steps
    after = check(tmp_path / "whole")
    for stop in range(1, len(steps) + 1):
        root = tmp_path / str(stop)
        populate(root)
        assert run(root, stop, call) == (-signal.SIGKILL, steps[:stop])
        # All of it happened or nothing did; and asked again, it does.
        found = check(root)
        assert found in (before, after)
        if found == before:
            assert run(root, 0, call)[0] == 0
            assert check(root) == after


def test_a_number_of_a_call_that_was_killed_is_used_again(tmp_path: Path) -> None:
    """Without a Cleanup in between: its directory makes way."""
    call: list[object] = ["prepare", "new", "", {}]
    assert run(tmp_path, 3, call)[1][-1] == "placed"
    assert (tmp_path / "snapshots/1/fs").is_dir()
    (tmp_path / "snapshots/1/fs/file").touch()
    assert run(tmp_path, 0, call)[0] == 0
    assert list((tmp_path / "snapshots/1/fs").iterdir()) == []
    assert check(tmp_path) == {"new": Kind.ACTIVE}


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(step: str) -> None:
        if step == failing:
            raise LazyfsError(step)

    for failing in ("made", "inserted", "placed"):
        snapshots = Snapshots(tmp_path / failing, NoImages(), fail)
        with pytest.raises(LazyfsError):
            snapshots.prepare("new", "", {})
        assert snapshots.walk([]) == []
        snapshots.cleanup()
        assert list((tmp_path / failing / "snapshots").iterdir()) == []
        snapshots.close()
