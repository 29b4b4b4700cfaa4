"""Fixtures of the tests with containerd: a registry, an image in it, and an engine beside a service."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry import Registry, run_registry

from .client import Service
from .engine import Engine, layers, push, running_engine


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout for images on their way to a registry."""
    return tmp_path_factory.mktemp("layouts") / "images"


@pytest.fixture(scope="session")
def app(registry: Registry, images: Path) -> str:
    """An image of 12 layers."""
    return push(images, registry.host, "app", layers(12))


@pytest.fixture
def engine(service: Service, short_directory: Callable[[], Path]) -> Iterator[Engine]:
    """A containerd and a service of the test's own."""
    service.start()
    with running_engine(short_directory(), service) as engine:
        yield engine
