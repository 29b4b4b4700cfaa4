"""Users by the image's own /etc/passwd and /etc/group, however they look."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, LazyfsError, LimitError, NotFoundError, UsageError
from lazyfs.run.kernel import make_directories, open_in_root
from lazyfs.run.users import Identity, resolve_user
from tests.run.containers import GROUP, PASSWD

Resolve = Callable[[str], Identity]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").write_text(PASSWD)
    (tmp_path / "root/etc/group").write_text(GROUP)
    return tmp_path / "root"


@pytest.fixture
def descriptor(root: Path) -> Iterator[int]:
    opened = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield opened
    os.close(opened)


@pytest.fixture
def resolve(descriptor: int) -> Resolve:
    return lambda user: resolve_user(descriptor, user)


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(0, 0, (44,), "/root")),
        ("root", Identity(0, 0, (44,), "/root")),
        ("app", Identity(1000, 1001, (50, 44), "/home/app")),
        ("1000", Identity(1000, 1001, (50, 44), "/home/app")),
        ("app:staff", Identity(1000, 50, (), "/home/app")),
        ("app:4711", Identity(1000, 4711, (), "/home/app")),
        ("1000:0", Identity(1000, 0, (), "/home/app")),
        ("4711", Identity(4711, 0, (), "/")),
        ("4711:video", Identity(4711, 44, (), "/")),
        ("2147483647:2147483647", Identity(2147483647, 2147483647, (), "/")),
        # A name that looks like a number is a name first.
        ("1234", Identity(77, 78, (), "/numbered")),
    ],
)
def test_users(resolve: Resolve, user: str, identity: Identity) -> None:
    assert resolve(user) == identity


@pytest.mark.parametrize(
    "user", ["nobody", "app:nogroup", "2147483648", "-1", "1e3", "4711:99999999999", "broken", "٣"]
)
def test_unknown_users(resolve: Resolve, user: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(user)
    assert caught.value.hint


def test_group_that_is_not_named(resolve: Resolve) -> None:
    with pytest.raises(UsageError):
        resolve("app:")


def test_image_without_users(root: Path, resolve: Resolve) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/group").unlink()
    (root / "etc").rmdir()
    assert resolve("") == Identity(0, 0, (), "/")
    assert resolve("1:2") == Identity(1, 2, (), "/")


def test_links_stay_inside(root: Path, tmp_path: Path, resolve: Resolve) -> None:
    (tmp_path / "outside").write_text("evil:x:0:0::/:\n")
    (root / "etc/passwd").rename(root / "etc/real")
    for target in ("/etc/real", "real", "../../../etc/real"):
        (root / "etc/passwd").symlink_to(target)
        assert resolve("app").uid == 1000
        (root / "etc/passwd").unlink()
    for target in (str(tmp_path / "outside"), "../../outside", "/proc/self/root/etc/passwd", "passwd"):
        (root / "etc/passwd").symlink_to(target)
        with pytest.raises(LazyfsError):
            resolve("evil")
        (root / "etc/passwd").unlink()
    (root / "etc/real").unlink()
    (root / "etc/group").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to(tmp_path)
    (tmp_path / "passwd").write_text("evil:x:0:0::/:\n")
    with pytest.raises(NotFoundError):
        resolve("evil")


def test_what_is_no_regular_file(root: Path, resolve: Resolve) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(BadInputError, match="/etc/passwd"):
        resolve("app")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    with pytest.raises(BadInputError):
        resolve("app")


def test_large_file(root: Path, resolve: Resolve) -> None:
    os.truncate(root / "etc/passwd", 1 << 40)
    with pytest.raises(LimitError):
        resolve("app")


def test_a_user_in_too_many_groups(root: Path, resolve: Resolve) -> None:
    (root / "etc/group").write_text("".join(f"g{n}:x:{n}:app\n" for n in range(70_000)))
    with pytest.raises(LimitError):
        resolve("app")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(["", "0", "app", "7:x"]))
def test_any_bytes(root: Path, resolve: Resolve, passwd: bytes, group: bytes, user: str) -> None:
    (root / "etc/passwd").write_bytes(passwd)
    (root / "etc/group").write_bytes(group)
    with suppress(LazyfsError):
        assert resolve(user).uid >= 0


def test_directories_are_made_inside(root: Path, tmp_path: Path, descriptor: int) -> None:
    (root / "abs").symlink_to("/etc/new")
    (root / "etc/new").mkdir()
    (root / "up").symlink_to("../../..")
    (root / "dangling").symlink_to("/nowhere")
    make_directories(descriptor, "/abs/a/b")
    make_directories(descriptor, "/up/c")
    make_directories(descriptor, "/etc")
    assert (root / "etc/new/a/b").is_dir()
    assert (root / "c").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
    with pytest.raises(FileExistsError):
        make_directories(descriptor, "/dangling/d")
    with pytest.raises(NotADirectoryError):
        make_directories(descriptor, "/etc/passwd/d")


def test_open_in_root_refuses_loops(root: Path, descriptor: int) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        open_in_root(descriptor, "/loop", os.O_RDONLY)
