"""What a kernel is asked, with an image that was made beforehand."""

from pathlib import Path

import pytest

from lazyfs.mount import probe_image
from lazyfs.mount.ladder import MODES
from lazyfs.mount.probe import probe
from tests.mount.probe_image import make


def test_the_image_is_what_lazyfs_would_make() -> None:
    made = make()
    assert {name: getattr(probe_image, name) for name in made} == made, "python -m tests.mount.probe_image"


@pytest.mark.root
def test_this_kernel(temp_root: Path) -> None:
    rungs = probe(temp_root)
    assert [rung.mode for rung in rungs] == list(MODES[1:])
    assert all(rung.works for rung in rungs), rungs
    assert list(temp_root.iterdir()) == []
