"""Records of images that were opened, while several threads have to do with one of them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.node.seen import SeenImage, SeenImages, SeenLayer

REFERENCE = "oci:/srv/images:v1"


class JustThen:
    """A lock; when it is given back for the first time, somebody else comes at once."""

    def __init__(self, come: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._come: Callable[[], None] | None = come

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        come, self._come = self._come, None
        if come is not None:
            come()


def opened(*layers: str) -> SeenImage:
    return SeenImage(REFERENCE, "sha256:a", tuple(SeenLayer(each, each, 1) for each in layers), (), 1.0)


def test_an_image_that_is_opened_while_it_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SeenImages(tmp_path)
    seen.note(opened("one"))
    with monkeypatch.context() as just_then:
        just_then.setattr(seen, "_lock", JustThen(lambda: seen.note(opened("two"))))
        seen.pin(REFERENCE, True)
    for images in (seen, SeenImages(tmp_path)):
        assert images.pinned_layers() == {"one", "two"}
