"""Device files through a real FUSE mount: the right bytes, an error, or a wait; nothing else."""

import errno
import mmap
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.mount import attach
from lazyfs.mount.connection import MAX_BACKGROUND, READ_AHEAD_KIB, open_and_mount
from lazyfs.mount.image_files import view_base
from lazyfs.mount.mountinfo import mount_at
from lazyfs.mount.syscalls import unmount
from tests.mount.conftest import PATIENCE, DeviceServer, drop_pages, names
from tests.mount.pattern import pattern
from tests.waiting import wait_until

pytestmark = pytest.mark.root

PAGE = mmap.PAGESIZE
MIB = 1 << 20
SIZE = 3 * MIB + 777


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def read_direct(path: Path, offset: int, length: int) -> bytes:
    """As the server answers it: no page cache, no read-ahead between. ``offset`` and ``length`` in pages."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            return buffer[: os.preadv(descriptor, [buffer], offset)]
    finally:
        os.close(descriptor)


def read_mapped(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped[offset : offset + length]


@pytest.fixture(scope="module")
def half_missing(shared_server: DeviceServer) -> Path:
    """A device of which every other quarter MiB has to be fetched each time."""
    parts = [(start, start + MIB // 4, "missing") for start in range(0, SIZE, MIB // 2)]
    return shared_server.add("half", inode=77, size=SIZE, seed=5, parts=parts)


@settings(max_examples=150)
@given(
    offset=st.integers(0, SIZE + PAGE),
    length=st.integers(0, 600_000),
    cold=st.booleans(),
    reader=st.sampled_from([read, read_mapped]),
)
def test_any_range_is_right(
    half_missing: Path, offset: int, length: int, cold: bool, reader: Callable[[Path, int, int], bytes]
) -> None:
    if cold:
        drop_pages(half_missing)
    assert reader(half_missing, offset, length) == pattern(5, offset, min(length, SIZE - offset))


@settings(max_examples=100)
@given(page=st.integers(0, SIZE // PAGE + 1), pages=st.integers(1, 300))
def test_any_uncached_range_is_right(half_missing: Path, page: int, pages: int) -> None:
    offset, length = page * PAGE, pages * PAGE
    assert read_direct(half_missing, offset, length) == pattern(5, offset, min(length, SIZE - offset))


def test_parallel_readers_get_their_own_bytes(half_missing: Path) -> None:
    def read_at_random(seed: int) -> bool:
        choose = random.Random(seed)
        offsets = [choose.randrange(SIZE) for _ in range(100)]
        return all(
            read(half_missing, offset, 5000) == pattern(5, offset, min(5000, SIZE - offset))
            for offset in offsets
        )

    drop_pages(half_missing)
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(read_at_random, range(16)))


def test_sequential_reading_comes_in_large_requests(server: DeviceServer) -> None:
    size = 64 * MIB
    path = server.add("long", size=size, seed=1)
    server.do("take_reads")
    assert path.read_bytes() == pattern(1, 0, size)
    lengths = [length for _, _, length, _ in server.do("take_reads")]
    assert sum(lengths) == size
    assert size / len(lengths) > READ_AHEAD_KIB * 1024 / 2


def test_attributes(server: DeviceServer) -> None:
    size = (5 << 30) + 11
    path = server.add("huge", inode=123456789012, size=size, seed=2)
    seen = path.stat()
    assert (seen.st_size, seen.st_ino, seen.st_nlink) == (size, 123456789012, 1)
    assert seen.st_mode == stat.S_IFREG | 0o400
    assert seen.st_blocks == -(-size // 512)
    assert server.target.stat().st_mode == stat.S_IFDIR | 0o500
    assert read(path, size - 5, 100) == pattern(2, size - 5, 5)
    assert read(path, size, 100) == b""
    assert read(path, (4 << 30) - 10, 20) == pattern(2, (4 << 30) - 10, 20)
    usage = os.statvfs(server.target)
    assert (usage.f_blocks, usage.f_bfree, usage.f_files) == (-(-size // usage.f_frsize), 0, 1)


def test_an_empty_device(server: DeviceServer) -> None:
    assert server.add("empty", size=0).read_bytes() == b""


def test_many_devices_are_listed(server: DeviceServer) -> None:
    added = [f"{number:064x}" for number in range(500)]
    for inode, name in enumerate(added, start=2):
        server.add(name, inode=inode, size=1)
    assert names(server.target) == added


def test_nothing_can_be_changed(server: DeviceServer) -> None:
    path = server.add("fixed", size=100)
    attempts: list[Callable[[], object]] = [
        lambda: path.open("wb"),
        lambda: path.open("ab"),
        path.unlink,
        lambda: path.chmod(0o777),
        (server.target / "new").touch,
        (server.target / "new").mkdir,
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


def test_only_root_opens_devices(server: DeviceServer) -> None:
    path = server.add("secret", size=100)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_the_kernel_is_told_how_to_read(server: DeviceServer) -> None:
    entry = mount_at(server.target)
    assert entry is not None
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(entry.options)
    assert Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text() == f"{READ_AHEAD_KIB}\n"


def test_a_failure_is_an_error_and_is_tried_anew(server: DeviceServer) -> None:
    server.expected += ["device flaky: the store does not answer", "device flaky: the blob is gone"]
    path = server.add("flaky", size=SIZE, seed=3, parts=[(0, MIB, "failing")])
    for _ in range(2):
        before = server.do("requests", name="flaky")
        with pytest.raises(OSError) as caught:
            read(path, 100, 100)
        assert caught.value.errno == errno.EIO
        assert server.do("requests", name="flaky") > before
    server.do("set_parts", name="flaky", parts=[(0, MIB, "missing")])
    assert read(path, 100, 100) == pattern(3, 100, 100)
    assert server.log_lines().count("ERROR lazyfs.mount.fuse: device flaky: the store does not answer") == 1

    server.do("set_parts", name="flaky", parts=[(2 * MIB, SIZE, "absent")])
    with pytest.raises(OSError):
        read(path, 2 * MIB, 100)
    assert "ERROR lazyfs.mount.fuse: device flaky: the blob is gone" in server.log_lines()


@pytest.mark.parametrize("state", ["short", "long", "crashing"])
def test_a_faulty_device_never_gives_wrong_bytes(server: DeviceServer, state: str) -> None:
    server.expected += ["device faulty: ", "Traceback", "  ", "ZeroDivisionError: a mistake in the program"]
    path = server.add("faulty", size=SIZE, seed=4, parts=[(MIB, SIZE, state)])
    with pytest.raises(OSError) as caught:
        read(path, MIB + 10, 3 * PAGE)
    assert caught.value.errno == errno.EIO
    assert read(path, 10, PAGE) == pattern(4, 10, PAGE)
    assert any("device faulty" in line for line in server.log_lines())


def test_a_mistake_in_the_program_ends_nothing(server: DeviceServer) -> None:
    """The loop that answers all readers goes on: else the next daemon would be asked the same, and the one after it."""
    server.expected += ["lookup", "Traceback", "  ", "ZeroDivisionError: a mistake in the program"]
    path = server.add("right", size=SIZE, seed=4)
    server.do("add_broken_tree", base=view_base("0123456789ab"), name="broken")
    with pytest.raises(OSError) as caught:
        (server.target / "broken").stat()
    assert caught.value.errno == errno.EIO
    assert read(path, 10, PAGE) == pattern(4, 10, PAGE)
    assert any(line.endswith("lookup") for line in server.log_lines())


def test_an_open_does_not_wait_for_pages_that_cannot_be_given(server: DeviceServer) -> None:
    path = server.add("right", size=SIZE, seed=4)
    server.do("hold_opens")
    assert read(path, 10, PAGE) == pattern(4, 10, PAGE)


def test_readers_of_missing_data_wait_side_by_side(server: DeviceServer) -> None:
    """All are asked for at once, and those whose data is at hand are not kept waiting."""
    count = 64
    assert count < MAX_BACKGROUND
    path = server.add("slow", size=count * MIB, seed=6, parts=[(0, count * MIB, "stuck")])
    local = server.add("local", inode=11, size=SIZE, seed=7)
    with ThreadPoolExecutor(count) as threads:
        reading = [threads.submit(read, path, index * MIB, 2 * PAGE) for index in range(count)]
        assert server.do("wait_for_readers", name="slow", count=count) >= count
        assert local.read_bytes() == pattern(7, 0, SIZE)
        server.do("set_parts", name="slow", parts=[])
        server.do("release", name="slow")
        for index, done in enumerate(reading):
            assert done.result() == pattern(6, index * MIB, 2 * PAGE)


def test_a_reader_of_missing_data_can_be_killed(server: DeviceServer) -> None:
    path = server.add("slow", size=SIZE, seed=6, parts=[(0, SIZE, "stuck")])
    with subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) as reader:
        server.do("wait_for_readers", name="slow", count=1)
        reader.kill()
        reader.wait(PATIENCE)
    server.do("set_parts", name="slow", parts=[])
    server.do("release", name="slow")
    assert read(path, 0, SIZE) == pattern(6, 0, SIZE)


def test_the_loop_goes_on_when_a_request_is_taken_back(server: DeviceServer) -> None:
    """Poll has announced a request and it is gone: the reply to another reader must get out still."""
    path = server.add("slow", size=SIZE, seed=6, parts=[(0, SIZE, "stuck")])
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_direct, path, 0, PAGE)
        server.do("wait_for_readers", name="slow", count=1)
        server.do("arm_thief")
        assert not (server.target / "nothing").exists()
        assert server.do("stolen")
        server.do("release", name="slow")
        assert reading.result(PATIENCE) == pattern(6, 0, PAGE)


def test_devices_come_and_go(server: DeviceServer) -> None:
    path = server.target / "later"
    assert not path.exists()
    server.add("later", size=SIZE, seed=8)
    assert path.stat().st_size == SIZE
    with path.open("rb", buffering=0) as file:
        server.do("remove", name="later")
        assert names(server.target) == []
        assert os.pread(file.fileno(), 100, 2 * MIB) == pattern(8, 2 * MIB, 100)
        assert server.do("known", inode=10)
        wait_until(lambda: not path.exists())
    wait_until(lambda: not server.do("known", inode=10))
    with pytest.raises(FileNotFoundError):
        path.open("rb")
    server.add("later", size=SIZE, seed=8)
    assert read(path, 0, SIZE) == pattern(8, 0, SIZE)


def test_reads_are_observed(server: DeviceServer) -> None:
    path = server.add("seen", inode=42, size=SIZE, parts=[(MIB, 2 * MIB, "missing")])
    server.do("take_reads")
    read_direct(path, 0, PAGE)
    read_direct(path, MIB, 2 * PAGE)
    assert server.do("take_reads") == [[42, 0, PAGE, False], [42, MIB, 2 * PAGE, True]]


def test_unmounting_ends_the_server(server: DeviceServer) -> None:
    path = server.add("plain", size=SIZE)
    read(path, 0, SIZE)
    assert unmount(server.target)
    assert server.process.wait(PATIENCE) == 0
    assert mount_at(server.target) is None


def test_a_stopped_server_lets_its_readers_go(server: DeviceServer) -> None:
    path = server.add("slow", size=SIZE, parts=[(0, SIZE, "stuck")])
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, path, 0, PAGE)
        server.do("wait_for_readers", name="slow", count=1)
        server.do("stop")
        with pytest.raises(OSError):
            reading.result(PATIENCE)
    assert server.process.wait(PATIENCE) == 0
    with pytest.raises(OSError) as caught:
        names(server.target)
    assert caught.value.errno == errno.ENOTCONN


def test_a_killed_server_is_replaced(server: DeviceServer, temp_root: Path) -> None:
    path = server.add("plain", size=SIZE, seed=9, parts=[(0, SIZE, "stuck")])
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, path, 0, PAGE)
        server.do("wait_for_readers", name="plain", count=1)
        server.kill()
        with pytest.raises(OSError):
            reading.result(PATIENCE)
    assert mount_at(server.target) is not None
    assert unmount(server.target, detach=True)
    successor = DeviceServer(server.target, temp_root / "successor.log")
    try:
        assert read(successor.add("plain", size=SIZE, seed=9), 0, SIZE) == pattern(9, 0, SIZE)
    finally:
        successor.close()


def test_a_kernel_that_repeats_no_requests(temp_root: Path) -> None:
    """As before Linux 6.9: who was being served is not left waiting for ever, and the next server serves all."""
    target = temp_root / "devices"
    target.mkdir()
    kept = open_and_mount(target)
    servers = [DeviceServer(target, temp_root / "first.log", kept, old=True)]
    path = servers[0].add("plain", size=SIZE, seed=9, parts=[(0, SIZE, "stuck")])
    # Not a thread: a process that starts others closes copies of what it has open, which waits for an answer as well.
    reader = subprocess.Popen(["head", "-c", str(PAGE), path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        servers[0].do("wait_for_readers", name="plain", count=1)
        servers[0].kill()
        devices = [{"inode": 10, "name": "plain", "size": SIZE, "seed": 9}]
        servers.append(DeviceServer(target, temp_root / "second.log", kept, old=True, devices=devices))
        # libfuse's word for how its queue may end when the mount goes.
        servers[1].expected += ["fuse: reading device: Software caused connection abort"]
        said, complaint = reader.communicate(timeout=PATIENCE)
        assert said == pattern(9, 0, PAGE) or b"error" in complaint or b"abort" in complaint
        assert read(path, 0, SIZE) == pattern(9, 0, SIZE)
        assert any("this kernel repeats no requests" in line for line in servers[1].log_lines())
    finally:
        os.close(kept)
        servers[-1].close()
        reader.communicate()


def test_no_mount_without_root(temp_root: Path) -> None:
    script = (
        "import sys, pathlib; from lazyfs.errors import NodeError; from lazyfs.mount.connection import open_and_mount\n"
        "try: open_and_mount(pathlib.Path(sys.argv[1]))\n"
        "except NodeError as error: assert 'root' in error.hint"
    )
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--securebits=+noroot"]
    subprocess.run([*drop, sys.executable, "-c", script, str(temp_root)], check=True, timeout=60)


def test_a_connection_that_is_aborted_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def aborted() -> None:
        raise OSError(errno.ECONNABORTED, "fuse_session_receive_buf failed")

    monkeypatch.setattr(attach, "_session_loop", aborted)
    trio.run(attach._patient_session_loop)
