"""Nodes with an image mounted, whose bytes are known and not cached yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use
from lazyfs.keeper.client import KeeperClient
from lazyfs.mount.images import mount_view, unmount_image
from lazyfs.mount.mountinfo import mount_at
from tests.daemon.conftest import node_at as node_at  # noqa: PLC0414 # a fixture
from tests.daemon.processes import MakePaths
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

CONTENT = Random(8).randbytes(6 << 20)


@dataclass(frozen=True, slots=True)
class Mounted:
    paths: NodePaths
    image: dict[str, object]
    target: Path

    def read(self) -> bytes:
        return (self.target / "big").read_bytes()

    def pid(self) -> int:
        """Of the daemon that serves; waits for one."""
        wait_until(lambda: self.serving() is not None, "a daemon that serves")
        return self.serving() or 0

    def serving(self) -> int | None:
        daemons = KeeperClient(self.paths).status()["daemons"]
        return next((each["pid"] for each in daemons if each["stage"] == "serving"), None)


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keeper") / "layout"
    files = [Entry(b"big", content=CONTENT), Entry(b"text", content=b"lower")]
    convert(put_image(directory, [layer_tar(files)], "app"), f"oci:{directory}:lazy")
    return directory


@pytest.fixture
def paths(node_at: MakePaths, tmp_path: Path) -> NodePaths:
    return node_at(tmp_path / "node")


@pytest.fixture
def mounted(paths: NodePaths, layout: Path, tmp_path: Path) -> Iterator[Mounted]:
    target = tmp_path / "mounted"
    target.mkdir()
    with daemon_in_use(paths) as client:
        image = client.open_image(f"oci:{layout}:lazy")
        mount_view(paths, image, target)
    yield Mounted(paths, image, target)
    if mount_at(target) is not None and DaemonClient(paths).is_running():
        unmount_image(paths, target)
