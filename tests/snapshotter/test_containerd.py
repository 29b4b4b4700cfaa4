"""Debian's containerd, its clients, and images in a registry."""

import pytest

from lazyfs.daemon.client import DaemonClient
from tests.registry import needs_registry

from .client import Service
from .engine import Engine, shown

pytestmark = needs_registry


def test_pulled_lazily_and_run(engine: Engine, service: Service, app: str) -> None:
    engine.pull(f"{app}:lazy")
    assert len(engine.snapshots()) == 12
    # Nothing is mounted before something is to be seen; of the image only manifest and config were downloaded.
    assert shown(service) == []
    assert len(engine.blobs()) == 2
    assert engine.run(f"{app}:lazy", "c1") == "ready\n"
    assert engine.run(f"{app}:lazy", "c2", "sh", "-c", "cat /etc/layer* /etc/message") == "11023456789ready\n"
    assert len(shown(service)) == 1
    status = DaemonClient(service.node).status()
    assert len(status["layers"]) == 12


def test_one_lower_directory(engine: Engine, service: Service, app: str) -> None:
    engine.pull(f"{app}:lazy")
    said = engine.run(f"{app}:lazy", "c", "grep", " / ", "/proc/mounts")
    options = said.split()[3].split(",")
    lower = [option for option in options if option.startswith("lowerdir=")]
    assert len(lower) == 1
    assert ":" not in lower[0]
    assert len([option for option in options if option.startswith(("upperdir=", "workdir="))]) == 2


def test_an_image_that_was_not_converted(engine: Engine, service: Service, app: str) -> None:
    engine.pull(f"{app}:plain")
    assert len(engine.blobs()) == 14
    assert engine.run(f"{app}:plain", "c") == "ready\n"
    assert shown(service) == []


@pytest.mark.parametrize("tag", ["lazy", "plain"])
def test_pulled_without_labels(engine: Engine, service: Service, app: str, tag: str) -> None:
    """`ctr images pull` downloads everything first, and unpacks it as for any other snapshotter."""
    engine.ctr("images", "pull", "--plain-http", "--snapshotter", "lazyfs", f"{app}:{tag}")
    assert len(engine.blobs()) == 14
    assert engine.run(f"{app}:{tag}", "c") == "ready\n"
    assert shown(service) == []
