"""A small converted image and what it holds; nodes whose daemons are processes of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar

from .open_node import MakeNode, OpenNode
from .processes import REPOSITORY, MakePaths, kill

LOWER = [Entry(b"big", content=Random(1).randbytes(900_000)), Entry(b"text", content=b"lower")]
UPPER = [Entry(b"text", content=b"upper")]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the image `app`, not converted, and `lazy`; not to be written to."""
    directory = tmp_path_factory.mktemp("images") / "layout"
    convert(put_image(directory, [layer_tar(LOWER), layer_tar(UPPER)], "app"), f"oci:{directory}:lazy")
    return directory


@pytest.fixture
def node_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePaths]:
    """The paths of nodes. A node that is left with a mount or a traceback in its log fails the test."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    made: list[NodePaths] = []

    def make(root: Path) -> NodePaths:
        made.append(NodePaths.choose(root))
        return made[-1]

    try:
        yield make
        for paths in made:
            if DaemonClient(paths).is_running():
                DaemonClient(paths).shutdown()
                assert list_mounts(paths.root) == []
                assert "Traceback" not in paths.log.read_text()
    finally:
        for paths in made:
            kill(paths)
            for entry in list_mounts(paths.root):
                unmount(entry.target, detach=True)


@pytest.fixture
def paths(node_at: MakePaths, tmp_path: Path) -> NodePaths:
    return node_at(tmp_path / "node")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "target"
    directory.mkdir()
    yield directory
    while unmount(directory, detach=True):
        pass


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeNode]:
    opened: list[OpenNode] = []

    def make() -> OpenNode:
        opened.append(OpenNode(tmp_path / "node"))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "layout"))
