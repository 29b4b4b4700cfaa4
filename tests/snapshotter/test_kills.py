"""The service is killed while a containerd pulls, starts a container and removes all of it again."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.registry import needs_registry
from tests.waiting import wait_until

from .client import PATIENCE, Service
from .engine import Engine, running_engine
from .test_lifecycles import gone

pytestmark = needs_registry

# The service, killed when it has taken a step for the n-th time: before it has answered.
DRIVER = """
import os, signal, sys
from functools import partial
import snapshotter.images, snapshotter.__main__ as program
from snapshotter.lifecycle import Snapshots

step, left = sys.argv.pop(1), int(sys.argv.pop(1))

def reached(name):
    global left
    if name == step:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

snapshotter.images.PATIENCE = 60.0
program.Snapshots = partial(Snapshots, reached=reached)
program.main()
"""
LAYERS = 12
MOMENTS = [
    ("found", 1),  # the daemon has said that the lowest layer need not be downloaded
    ("placed", 3),  # a layer's directory, without its record
    ("provided", 6),  # its record, of which containerd was not told
    ("made", LAYERS + 1),  # the image is mounted, the container has no record
    ("recorded", 1),  # the container's, of which containerd was not told
    ("removed", 4),  # one of the layers that go together
    ("forsaken", 1),  # unmounted, and not deleted
]


def live(engine: Engine, image: str, name: str) -> None:
    engine.pull(image)
    assert len(engine.snapshots()) == LAYERS
    assert engine.run(image, name) == "ready\n"
    engine.remove_all()


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_killed_under_containerd(
    service: Service, short_directory: Callable[[], Path], app: str, moment: tuple[str, int]
) -> None:
    """What containerd was doing may fail. Afterwards all works, and leaves nothing."""
    image = f"{app}:lazy"
    step, count = moment
    service.start(program=("-c", DRIVER, step, str(count)))
    with running_engine(short_directory(), service) as engine:
        with suppress(AssertionError):
            live(engine, image, "before")
        assert service.process is not None
        assert service.process.wait(PATIENCE) == -signal.SIGKILL
        service.start()
        # containerd waits a moment before it tries to connect again.
        wait_until(lambda: answers(engine), "containerd's connection")
        engine.ctr("containers", "delete", engine.id("before"), check=False)
        live(engine, image, "after")
        client = service.client()
        client.cleanup()
        client.close()
        wait_until(lambda: gone(service), "the end of what the image had here")


def answers(engine: Engine) -> bool:
    """Asked for what containerd does not know by itself, as it does that there are no snapshots."""
    key = f"probe{time.monotonic_ns()}"
    if engine.ctr("snapshots", "--snapshotter", "lazyfs", "prepare", key, check=False):
        return False
    engine.ctr("snapshots", "--snapshotter", "lazyfs", "remove", key)
    return True
