"""`lazyfs bench start`: real containers of a private containerd, and nothing left of it however it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines
from benchmarks.estargz import estargz
from benchmarks.images import BuiltImage
from lazyfs.mount.mountinfo import list_mounts
from tests.layouts import put_image
from tests.snapshotter.engine import CONFIG_OF_IMAGE, layers
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("ctr-remote") is None, reason="containerd 1.x pulls lazily by ctr-remote"
    ),
]
COMMAND = [sys.executable, "-m", "lazyfs.cli.main", "bench", "start"]
PATIENCE = 300
SLEEP = "987654"  # which no container of another test does


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_image(tmp_path_factory.mktemp("image"), layers(3), "app", CONFIG_OF_IMAGE)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "s"
    directory.mkdir()
    return directory


def bench(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)


def measured(*words: str | Path) -> dict[str, Any]:
    done = bench("--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_starts_by_all_ways(image: str, scratch: Path) -> None:
    ways = ["--pack", "--against", "overlayfs", "--against", "overlayfs-lazy", "--against", "local"]
    kept, page = scratch.parent / "kept.json", scratch.parent / "page.html"
    ways += ["-o", str(kept), "--html", str(page)]
    results = measured(image, *ways, "--link", "loopback", "--runs", "1", "--seed", "7", "--scratch", scratch)
    assert json.loads(kept.read_text()) == results
    assert "loopback: time to ready" in page.read_text()
    starts = {each["way"]: each for each in results["starts"]}
    assert starts.keys() == {"lazyfs", "lazyfs-pack", "overlayfs", "overlayfs-lazy", "local"}
    ((name, about),) = results["images"].items()
    for way, start in starts.items():
        assert sum(start["phases"].values()) == pytest.approx(start["seconds"])
        assert start["cold"]["in_memory"] == 0
        assert (start["cold"]["on_disk"] == 0) == (way != "local")
        assert (start["down"] == start["requests"] == 0) == (way == "local")
        assert {"containerd", "container and shim, ended"} <= {use["name"] for use in start["uses"]}
        assert ("lazyfs daemon" in {use["name"] for use in start["uses"]}) == way.startswith("lazyfs")
    assert starts["lazyfs"]["device_reads"] > 0
    assert starts["overlayfs"]["down"] > about["bytes"]["plain"]
    assert starts["overlayfs-lazy"]["down"] > about["bytes"]["lazy"]
    assert results["traces"].keys() == {f"{name} | loopback | {way}" for way in starts}
    assert not list(scratch.iterdir())


def test_a_snapshotter_of_the_user(image: str, scratch: Path) -> None:
    """Ours by another name, started by its command: it has to be given where it listens and where it keeps things."""
    command = f"{sys.executable} -m snapshotter --address {{socket}} --root {{root}}"
    lazy = f"oci:{scratch.parent}/lazy:app"
    subprocess.run([*COMMAND[:3], "convert", image, lazy], check=True, capture_output=True)
    ways = ["--against", f"theirs={command},{lazy}", "--link", "loopback", "--runs", "1"]
    results = measured(image, *ways, "--scratch", scratch)
    starts = {each["way"]: each for each in results["starts"]}
    assert starts["theirs"]["down"] > 0
    assert "lazyfs-snapshotter" in {use["name"] for use in starts["theirs"]["uses"]}
    assert not list(scratch.iterdir())


def test_a_container_that_never_gets_ready(image: str, scratch: Path) -> None:
    done = bench(image, "--ready", "log:never said", "--link", "loopback", "--scratch", scratch)
    assert done.returncode == 7
    assert "the container ended before it was ready (log:never said), with code 0" in done.stderr
    assert not list(scratch.iterdir())


def test_what_is_ready_before_it_is_started(image: str, scratch: Path) -> None:
    done = bench(image, "--ready", "exec:true", "--link", "loopback", "--scratch", scratch)
    assert done.returncode == 7
    assert "exec:true is ready before the start" in done.stderr


def test_a_machine_that_lacks_something(image: str, scratch: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("setpriv", "unshare"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        [*COMMAND, image, "--scratch", scratch],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": str(tools)},
    )
    assert done.returncode == 7
    assert done.stderr.startswith("lazyfs: containerd is not on the PATH\n  hint: install containerd")


def test_what_cannot_be_meant() -> None:
    for words in (["--link", "fast"], ["--ready", "soon"], ["--against", "zfs"]):
        done = bench("oci:/nowhere:app", *words)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_it_outlives_it(image: str, scratch: Path, number: signal.Signals) -> None:
    command = [*COMMAND, image, "--command", f"sleep {SLEEP}", "--ready", "log:never", "--link", "loopback"]
    said, container = scratch.parent / "said", f"sleep\0{SLEEP}".encode()
    with (
        said.open("wb") as file,
        subprocess.Popen([*command, "--scratch", scratch], stderr=file, process_group=0) as process,
    ):
        wait_until(lambda: container in b"".join(map(command_line, pids())), "the container", PATIENCE)
        (made,) = scratch.iterdir()
        os.killpg(process.pid, number)  # as a terminal does it
        process.wait(PATIENCE)
    if number == signal.SIGINT:
        assert process.returncode == 128 + number
        assert said.read_text().endswith("lazyfs: interrupted; nothing of the measurement is left\n")
    if number == signal.SIGKILL:  # then it is the kernel that ends them, afterwards
        wait_until(lambda: not left_of(scratch), "the end of all", PATIENCE)
    assert left_of(scratch) == []
    assert not list_mounts(scratch)
    if number == signal.SIGKILL:
        assert len(list(scratch.iterdir())) == 1
        measured(image, "--against", "local", "--link", "loopback", "--runs", "1", "--scratch", scratch)
    assert not list(scratch.iterdir())
    # Other groups come and go meanwhile, which disturbs a glob.
    assert not [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(f"/{made.name}")]


def left_of(scratch: Path) -> list[str]:
    """Processes of the measurement, and of its container."""
    words = (str(scratch).encode(), f"sleep\0{SLEEP}".encode())
    return [pid for pid in pids() if any(each in command_line(pid) for each in words)]


def pids() -> list[str]:
    return [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and entry.name != str(os.getpid())
    ]


def command_line(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def test_stargz_snapshotter(image: str, scratch: Path) -> None:
    """A real rival, started by its command, with an image that its own tool has made."""
    program = engines.STARGZ
    if not program.exists():
        pytest.skip("stargz-snapshotter is not built here: `python -m benchmarks.prepare` builds it")
    layout, _, tag = image.removeprefix("oci:").rpartition(":")
    built = BuiltImage(Path(layout), tag, Path(layout))
    theirs = estargz(built, scratch.parent / "cache")
    ways = [
        "--against",
        f"stargz={program} {{socket}} {{root}},{theirs}",
        "--link",
        "loopback",
        "--runs",
        "1",
    ]
    results = measured(image, *ways, "--scratch", scratch)
    starts = {each["way"]: each for each in results["starts"]}
    assert starts["stargz"]["down"] > 0
    assert "containerd-stargz-grpc" in {use["name"] for use in starts["stargz"]["uses"]}
    assert starts["stargz"]["cold"] == {"on_disk": 0, "in_memory": 0}
    assert not list(scratch.iterdir())
