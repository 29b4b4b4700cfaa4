"""Nodes that are used as people use them: by the command line, with real mounts and real containers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.images import RECIPES, BuiltImage, ensure
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.ladder import AUTO, MODES
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.daemon.processes import end, running
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 300.0
RUNGS = tuple(mode for mode in MODES if mode != AUTO)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}

Result = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.root)


def lazyfs(*words: str | Path, cwd: Path | None = None) -> Result:
    """A command that needs no node, or one that says itself which."""
    result = subprocess.run(
        [sys.executable, "-m", "lazyfs.cli.main", *words],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def succeed(result: Result) -> Result:
    assert result.returncode == 0, result.stderr
    return result


def assert_error(result: Result, code: int, *words: str) -> None:
    """An error as the documentation promises it, after lines of progress: one line, at most one hint, the exit code."""
    lines = [
        line for line in result.stderr.splitlines() if not re.match(r"(layer \d+/\d+|blob) \w{12}: ", line)
    ]
    assert result.returncode == code, result.stderr
    assert lines[0].startswith("lazyfs: "), result.stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), result.stderr
    for word in words:
        assert word in result.stderr


class Node:
    """One node, below one root. Every process of its containers carries a mark, so that none is missed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = f"LAZYFS_TEST={root}"
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str | Path, cwd: Path | None = None) -> Result:
        return lazyfs("--root", self.root, *words, cwd=cwd)

    def run(self, *words: str | Path) -> Result:
        return self("run", "--env", self.mark, *words)

    def mount(self, reference: str, target: Path, *options: str) -> Path:
        target.mkdir(exist_ok=True)
        succeed(self("mount", *options, reference, target))
        return target

    def umount(self, target: Path) -> None:
        succeed(self("umount", target))

    def start(self, *words: str | Path, **streams: Any) -> subprocess.Popen[str]:
        """A command in the background; `lazyfs run` should be given `--env` with the mark."""
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        process = subprocess.Popen(
            [sys.executable, "-m", "lazyfs.cli.main", "--root", self.root, *words],
            text=True,
            env=ENVIRONMENT,
            **given,
        )
        self.started.append(process)
        return process

    def start_run(self, *words: str | Path, **streams: Any) -> subprocess.Popen[str]:
        return self.start("run", "--env", self.mark, *words, **streams)

    def status(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(succeed(self("status", "--json")).stdout)
        return values

    def pid(self) -> int:
        return int((self.root / "daemon.lock").read_text())

    def kill_daemon(self) -> None:
        """As the OOM killer does; its keeper starts another."""
        # By its own word: until the next one serves, the file has the one that was killed before.
        pid = int(DaemonClient(NodePaths(self.root)).status()["pid"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), "the daemon's end")

    @contextmanager
    def frozen(self) -> Iterator[int]:
        """Nobody answers the kernel, nor is the daemon replaced, until the block ends; gives the daemon's number."""
        [keeper], pid = running(self.root, "lazyfs.keeper"), self.pid()
        try:
            for each in (keeper, pid):
                os.kill(each, signal.SIGSTOP)
            yield pid
        finally:
            for each in (pid, keeper):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)

    def kill(self) -> None:
        """Keeper and daemon: what is mounted is dead then."""
        for module in ("lazyfs.keeper", "lazyfs.daemon"):
            end(running(self.root, module))

    def mounts(self) -> list[str]:
        return [str(entry.target.relative_to(self.root)) for entry in list_mounts(self.root)]

    def processes(self) -> list[int]:
        """Every process in a container of this node."""
        pids = [int(process.name) for process in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        with suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def leftovers(self) -> list[str]:
        """What a run must not leave behind. The images' mounts are taken away as well."""
        found = [f"process {pid}" for pid in self.processes()]
        found += [f"mount {target}" for target in self.mounts() if target != "fuse"]
        for name in ("mounts", "containers", "m"):
            found += [str(path) for path in (self.root / name).glob("*") if path.name != ".lock"]
        return found

    def close(self) -> None:
        """End everything, however the test went."""
        for process in self.started:
            process.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.communicate()
        self.kill()


def is_running(pid: int) -> bool:
    """Not ended; a zombie, of which only a line in the process table is left, has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture
def make_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes. Fails a test whose node leaves anything behind, or logged a traceback."""
    nodes: list[Node] = []

    def make(name: str = "node") -> Node:
        nodes.append(Node(tmp_path / name))
        return nodes[-1]

    try:
        yield make
        for node in nodes:
            if not request.node.stash[_FAILED] and node.root.is_dir():
                check_end(node)
        assert request.node.stash[_FAILED] or list_mounts(tmp_path) == []
    finally:
        for node in nodes:
            node.close()
        for entry in list_mounts(tmp_path):
            unmount(entry.target, detach=True)


def check_end(node: Node) -> None:
    wait_until(lambda: not node.leftovers(), "an end without leftovers")
    result = node("shutdown")
    assert result.returncode in (0, 3), result.stderr
    assert node.mounts() == []
    log = node.root / "daemon.log"
    assert not log.exists() or "Traceback" not in log.read_text()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


@pytest.fixture(scope="session")
def built_small() -> BuiltImage:
    return ensure(RECIPES["small"], REPOSITORY / ".cache/images")


@pytest.fixture(scope="session")
def built_demo() -> BuiltImage:
    return ensure(RECIPES["demo"], REPOSITORY / ".cache/images")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout for converted images, that tests do not write to."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def small(built_small: BuiltImage, store: Path) -> str:
    reference = f"oci:{store}/lazy:small"
    succeed(lazyfs("convert", built_small.reference, reference))
    return reference


@pytest.fixture(scope="session")
def demo(built_demo: BuiltImage, store: Path) -> str:
    reference = f"oci:{store}/lazy:demo"
    succeed(lazyfs("convert", built_demo.reference, reference))
    return reference


@pytest.fixture
def copied_small(small: str, tmp_path: Path) -> str:
    """The small image in a layout of the test's own, to be damaged."""
    shutil.copytree(layout_of(small), tmp_path / "copy")
    return f"oci:{tmp_path}/copy:small"


def layout_of(reference: str) -> Path:
    return Path(reference.split(":")[1])


def document(layout: Path, digest: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((blob(layout, digest)).read_bytes())
    return values


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def manifest_of(reference: str) -> dict[str, Any]:
    """The manifest that the tag leads to."""
    layout, tag = layout_of(reference), reference.split(":")[2]
    index = json.loads((layout / "index.json").read_bytes())
    for entry in index["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
            return document(layout, entry["digest"])
    raise AssertionError(reference)


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
