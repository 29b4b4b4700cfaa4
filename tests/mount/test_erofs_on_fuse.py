"""EROFS on device files, made by mkfs.erofs; overlays on it as containers have them."""

import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.mount.mountinfo import mount_at
from lazyfs.mount.syscalls import mount_erofs, mount_overlay, unmount
from tests.mount.conftest import DeviceServer

pytestmark = pytest.mark.root


def as_nobody(directory: Path, *command: str) -> str:
    """What the command says when an ordinary user runs it in ``directory``."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    said = subprocess.run([*drop, *command], cwd=directory, stdout=subprocess.PIPE, check=True).stdout
    return said.decode("latin-1")


def make_tree(root: Path) -> None:
    """Files of many sizes, links, special files, xattrs, rights."""
    choose = random.Random(11)
    for number in range(200):
        directory = root / f"d{number % 7}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_bytes(choose.randbytes(choose.choice([0, 1, 511, 4096, 70_000])))
    (root / "large").write_bytes(choose.randbytes(9_000_001))
    (root / "link").symlink_to("large")
    (root / "hard").hardlink_to(root / "large")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "null").chmod(0o666)
    os.setxattr(root / "large", "user.mark", b"\0\1 value")
    os.setxattr(root / "d1", "trusted.mark", b"of root")
    os.chown(root / "d2", 70_000, 80_000)
    shutil.copy("/usr/bin/id", root / "setuid-id")
    (root / "setuid-id").chmod(0o4755)
    shutil.copy(os.path.realpath("/bin/cat"), root / "capable-cat")
    subprocess.run(["setcap", "cap_dac_override=ep", root / "capable-cat"], check=True)
    (root / "secret").write_text("for root")
    (root / "secret").chmod(0o600)
    root.chmod(0o755)


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that stat(2) and its sisters say of each path below ``root``."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        regular, link = stat.S_ISREG(info.st_mode), stat.S_ISLNK(info.st_mode)
        found[str(path.relative_to(root))] = (
            info.st_mode,
            (info.st_uid, info.st_gid),
            info.st_mtime_ns,
            info.st_rdev,
            info.st_size if regular else 0,
            info.st_nlink,
            hashlib.sha256(path.read_bytes()).hexdigest() if regular else "",
            path.readlink() if link else "",
            sorted(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
            ),
        )
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``tree``, and ``bootstrap`` and ``device`` made of it by another program."""
    directory = tmp_path_factory.mktemp("image")
    directory.chmod(0o755)
    (directory / "tree").mkdir()
    make_tree(directory / "tree")
    options = ["--quiet", "--chunksize=4096", f"--blobdev={directory / 'device'}"]
    subprocess.run(["mkfs.erofs", *options, directory / "bootstrap", directory / "tree"], check=True)
    return directory


def show(server: DeviceServer, image: Path, target: Path, parts: object = ()) -> Path:
    """The image mounted at ``target``, its device served through FUSE."""
    size = (image / "device").stat().st_size
    device = server.add("device", size=size, path=str(image / "device"), parts=parts)
    target.mkdir()
    mount_erofs(image / "bootstrap", [device], target)
    return target


@pytest.mark.parametrize("parts", [[], [(0, 1 << 40, "missing")]], ids=["local", "fetched"])
def test_the_tree_is_the_one_that_was_packed(
    server: DeviceServer, image: Path, temp_root: Path, parts: object
) -> None:
    shown = show(server, image, temp_root / "shown", parts)
    assert describe(shown) == describe(image / "tree")
    entry = mount_at(shown)
    assert entry is not None
    assert (entry.kind, entry.source) == ("erofs", str(image / "bootstrap"))
    assert {"ro", "nosuid", "nodev"} <= set(entry.options)
    assert unmount(shown)


def test_a_setuid_program_gains_nothing_on_the_bare_mount(
    server: DeviceServer, image: Path, temp_root: Path
) -> None:
    shown = show(server, image, temp_root / "shown")
    said = as_nobody(shown, "./setuid-id")
    assert "uid=65534" in said
    assert "euid" not in said
    with pytest.raises(PermissionError):
        (shown / "null").open("rb")
    assert unmount(shown)


def test_a_container_has_its_rights_on_the_overlay(
    server: DeviceServer, image: Path, temp_root: Path
) -> None:
    shown = show(server, image, temp_root / "shown")
    for name in ("merged", "upper", "work"):
        (temp_root / name).mkdir()
    merged = temp_root / "merged"
    mount_overlay(merged, [shown], temp_root / "upper", temp_root / "work")
    merged.chmod(0o755)

    assert "euid=0" in as_nobody(merged, "./setuid-id")
    assert as_nobody(merged, "./capable-cat", "secret") == "for root"
    assert (merged / "null").read_bytes() == b""
    assert os.getxattr(merged / "large", "user.mark") == b"\0\1 value"
    assert os.getxattr(merged / "d1", "trusted.mark") == b"of root"
    assert (merged / "d2").stat().st_uid == 70_000

    with (merged / "large").open("r+b") as file:
        file.write(b"changed")
    (merged / "d1" / "e1" / "file1").rename(merged / "moved")
    shutil.rmtree(merged / "d4")
    assert (merged / "hard").read_bytes()[:7] != b"changed"
    assert (merged / "large").read_bytes()[7:] == (image / "tree" / "large").read_bytes()[7:]
    assert not (merged / "d4").exists()
    assert (merged / "moved").read_bytes() == (image / "tree" / "d1" / "e1" / "file1").read_bytes()
    # The image's own mount may go: the overlay keeps what it needs of it.
    assert unmount(shown)
    assert (merged / "hard").read_bytes() == (image / "tree" / "hard").read_bytes()
    assert unmount(merged)


def test_a_failing_store_is_an_error_in_the_container(
    server: DeviceServer, image: Path, temp_root: Path
) -> None:
    server.expected += ["the store does not answer"]
    size = (image / "device").stat().st_size
    shown = show(server, image, temp_root / "shown", [(0, size, "failing")])
    assert (shown / "link").readlink() == Path("large")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            (shown / "large").read_bytes()
        assert caught.value.errno == errno.EIO
    server.do("set_parts", name="device", parts=[])
    assert (shown / "large").read_bytes() == (image / "tree" / "large").read_bytes()
    assert unmount(shown)


def test_files_of_many_readers_while_bytes_are_missing(
    server: DeviceServer, image: Path, temp_root: Path
) -> None:
    size = (image / "device").stat().st_size
    shown = show(server, image, temp_root / "shown", [(0, size, "stuck")])
    names = [path.relative_to(image / "tree") for path in (image / "tree").rglob("file*")][:50]
    with ThreadPoolExecutor(50) as threads:
        reading = [threads.submit((shown / name).read_bytes) for name in names]
        server.do("wait_for_readers", name="device", count=2)
        server.do("set_parts", name="device", parts=[(0, size, "missing")])
        server.do("release", name="device")
        for name, done in zip(names, reading, strict=True):
            assert done.result() == (image / "tree" / name).read_bytes()
    assert unmount(shown)


def test_a_program_runs_from_it_for_any_user(server: DeviceServer, image: Path, temp_root: Path) -> None:
    """Mapped and executed pages come the same way, whoever faults them in; the device itself is root's."""
    size = (image / "device").stat().st_size
    shown = show(server, image, temp_root / "shown", [(0, size, "missing")])
    as_nobody(shown, "./capable-cat", "/dev/null")
    content = as_nobody(shown, "cat", "large").encode("latin-1")
    assert content == (image / "tree" / "large").read_bytes()
    assert unmount(shown)


def test_odd_and_long_paths(server: DeviceServer, image: Path, temp_root: Path) -> None:
    odd = temp_root / "a,b:c\\d e=f"
    deep = odd.joinpath(*(letter * 200 for letter in "ab"))
    deep.mkdir(parents=True)
    for number, directory in enumerate((deep, odd)):
        for name in ("bootstrap", "device"):
            shutil.copy(image / name, directory / name)
        target = directory / f"target{number}"
        target.mkdir()
        mount_erofs(directory / "bootstrap", [directory / "device"], target)
        assert (target / "large").read_bytes() == (image / "tree" / "large").read_bytes()
        assert unmount(target)
