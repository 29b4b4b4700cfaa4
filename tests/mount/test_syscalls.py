"""Overlay and bind mounts, unmounting, and the errors that people get."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.errors import BusyError, NodeError, NotFoundError, UnsupportedError, UsageError
from lazyfs.mount.mountinfo import mount_at
from lazyfs.mount.syscalls import _NewMount, bind, mount_erofs, mount_overlay, unmount
from tests.mount.conftest import names

pytestmark = pytest.mark.root


def layer(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(name)
    return directory


def overlay_dirs(root: Path) -> tuple[Path, Path, Path]:
    """Target, upper and work directories."""
    for name in ("target", "upper", "work"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return root / "target", root / "upper", root / "work"


def test_an_overlay_has_an_ordinary_line(temp_root: Path) -> None:
    lower = layer(temp_root / "lower", "file")
    target, upper, work = overlay_dirs(temp_root)
    mount_overlay(target, [lower], upper, work)
    (line,) = [line for line in Path("/proc/mounts").read_text().splitlines() if str(target) in line]
    assert line.startswith(f"overlay {target} overlay rw,relatime,lowerdir={lower},upperdir={upper},")
    assert f",workdir={work}" in line
    (target / "file").write_text("changed")
    assert unmount(target)
    assert ((lower / "file").read_text(), (upper / "file").read_text()) == ("file", "changed")


@pytest.mark.parametrize("odd", ["a:b", "a,b", "a\\b", "\\:\\,", "end\\", "sp ace", "=", "\n", "ä", "\udcff"])
@pytest.mark.parametrize("long", [False, True], ids=["mount", "fsmount"])
def test_any_path_will_do(temp_root: Path, odd: str, long: bool) -> None:
    root = temp_root / odd
    padding = [layer(root / f"{number}{'x' * 180}", f"f{number}") for number in range(30 if long else 0)]
    lower = [layer(root / "one", "one"), layer(root / "two", "two"), *padding]
    target, upper, work = overlay_dirs(root)
    mount_overlay(target, lower, upper, work)
    assert {"one", "two"} <= set(names(target))
    assert len(names(target)) == 2 + len(padding)
    (target / "new").touch()
    assert unmount(target)
    assert (upper / "new").exists()


def test_paths_too_long_for_fsconfig(temp_root: Path) -> None:
    deep = temp_root.joinpath(*(letter * 200 for letter in "abc"))
    lower = [layer(deep / f"lower{number}", f"f{number}") for number in range(8)]
    target, upper, work = overlay_dirs(deep)
    mount_overlay(target, lower, upper, work)
    (target / "f3").unlink()
    assert names(target) == [f"f{number}" for number in range(8) if number != 3]
    assert unmount(target)


def test_without_upper_it_is_read_only(temp_root: Path) -> None:
    target, _, _ = overlay_dirs(temp_root)
    mount_overlay(target, [layer(temp_root / "1", "one"), layer(temp_root / "2", "two")])
    assert names(target) == ["one", "two"]
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    assert unmount(target)


def test_overlays_that_cannot_be_meant(temp_root: Path) -> None:
    target, upper, work = overlay_dirs(temp_root)
    for lower, above, beside in (([], upper, work), ([upper], None, None), ([upper], upper, None)):
        with pytest.raises(UsageError):
            mount_overlay(target, lower, above, beside)
    with pytest.raises(NotFoundError, match="No such file"):
        mount_overlay(target, [temp_root / "nowhere"], upper, work)


def test_unmount_says_whether_there_was_a_mount(temp_root: Path) -> None:
    assert not unmount(temp_root)
    assert not unmount(temp_root / "nowhere")
    bind(temp_root, temp_root)
    assert unmount(temp_root)
    assert not unmount(temp_root, detach=True)


def test_a_busy_mount_names_its_holders(temp_root: Path) -> None:
    target = layer(temp_root / "target", "file")
    (target / "inner").mkdir()
    bind(target, target)
    with (target / "file").open(), pytest.raises(BusyError) as caught:
        unmount(target)
    assert f"process {os.getpid()}" in caught.value.hint
    bind(target / "inner", target / "inner")
    with pytest.raises(BusyError) as caught:
        unmount(target)
    assert f"mount {target / 'inner'}" in caught.value.hint
    assert unmount(target / "inner")
    with (target / "file").open():
        assert unmount(target, detach=True)


def test_erofs_errors(temp_root: Path) -> None:
    target = temp_root / "target"
    target.mkdir()
    garbage = temp_root / "garbage"
    garbage.write_bytes(bytes(8192))
    with pytest.raises(NodeError, match=f"cannot mount image {garbage} on {target}: Invalid argument"):
        mount_erofs(garbage, [], target)
    with pytest.raises(NotFoundError):
        mount_erofs(temp_root / "nowhere", [], target)
    with pytest.raises(NodeError):
        mount_erofs(temp_root, [], target)
    assert mount_at(target) is None


@pytest.mark.parametrize(("release", "bad"), [("6.1.0-13-amd64", True), ("6.12+", False), ("7.0", False)])
def test_old_kernels_are_named(
    temp_root: Path, monkeypatch: pytest.MonkeyPatch, release: str, bad: bool
) -> None:
    """What they answer is EINVAL, as to a damaged image: the version decides what is said."""
    garbage = temp_root / "garbage"
    garbage.write_bytes(bytes(8192))
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((real[0], real[1], release, *real[3:])))
    with pytest.raises(UnsupportedError if bad else NodeError):
        mount_erofs(garbage, [], temp_root)


def test_a_missing_file_system_is_named() -> None:
    with pytest.raises(UnsupportedError, match="has no nosuchfs"):
        _NewMount("nosuchfs", "nosuchfs").__enter__()


def test_mounting_without_rights_says_so(temp_root: Path) -> None:
    script = (
        "import sys, pathlib; from lazyfs.errors import NodeError; from lazyfs.mount.syscalls import *\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for attempt in (lambda: bind(path, path), lambda: mount_erofs(path, [], path)):\n"
        "    try: attempt()\n"
        "    except NodeError as error: assert 'root' in error.hint\n"
        "    else: raise SystemExit('it was allowed')\n"
    )
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--securebits=+noroot"]
    subprocess.run([*drop, sys.executable, "-c", script, str(temp_root)], check=True, timeout=60)
