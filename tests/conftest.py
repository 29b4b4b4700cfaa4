"""What all tests share: hypothesis profiles, and directories in which no mount may be left."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def temp_root(tmp_path: Path) -> Iterator[Path]:
    """A directory for a test that mounts; what it leaves mounted is unmounted, and fails it."""
    root = tmp_path.resolve()
    yield root
    left = [entry.target for entry in list_mounts(root)]
    for target in left:
        unmount(target, detach=True)
    assert left == []
