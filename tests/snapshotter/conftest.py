"""The service as a process, one for all tests that need none of their own, and clients of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

from .client import Client, Service, perform
from .fixtures import app, engine, images, registry

__all__ = ["app", "engine", "images", "registry"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Callable[[], Path]]:
    """Makes directories with short names: 128 layers must fit into the options of one mount."""
    with TemporaryDirectory(prefix="s") as base:
        made: list[Path] = []

        def make() -> Path:
            made.append(Path(base).resolve() / str(len(made)))
            made[-1].mkdir()
            return made[-1]

        try:
            yield make
        finally:
            for entry in list_mounts(Path(base).resolve()):
                unmount(entry.target, detach=True)


@pytest.fixture
def service(short_directory: Callable[[], Path]) -> Iterator[Service]:
    """A service of the test's own, not started yet. It fails a test that makes it log a traceback."""
    service = Service(short_directory())
    try:
        yield service
        if service.log.exists():
            assert "Traceback" not in service.log.read_text()
    finally:
        service.close()


@pytest.fixture(scope="session")
def shared_service(short_directory: Callable[[], Path]) -> Iterator[Service]:
    service = Service(short_directory()).start()
    try:
        yield service
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()
    finally:
        service.close()


@pytest.fixture
def client(shared_service: Service) -> Iterator[Client]:
    """A client of a service that has no snapshots, nor has any afterwards."""
    client = shared_service.client()
    yield client
    for kind in ("active", "view"):
        for name in client.names(f"kind=={kind}"):
            client.remove(name)
    while names := client.names():
        parents = {info.parent for batch in client.batches() for info in batch}
        for name in names:
            if name not in parents:
                client.remove(name)
    client.cleanup()
    assert list((shared_service.root / "snapshots").iterdir()) == []
    client.close()


Show = Callable[..., Path]


@pytest.fixture
def show(short_directory: Callable[[], Path]) -> Iterator[Show]:
    """Mounts what the service answers; unmounted after the test."""
    directory = short_directory()
    count = 0

    def mount_it(mounts: object) -> Path:
        nonlocal count
        count += 1
        return perform(mounts, directory / str(count))  # type: ignore[arg-type]

    yield mount_it
    for entry in list_mounts(directory):
        unmount(entry.target)
