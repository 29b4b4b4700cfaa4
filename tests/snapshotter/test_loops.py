"""Pulls and removals again and again: what the processes hold in the end."""

from dataclasses import dataclass

from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.mountinfo import all_mounts
from tests.registry import needs_registry
from tests.waiting import wait_until

from .client import Service, descriptors_of, resident_kib, threads_of
from .engine import Engine
from .test_lifecycles import gone

pytestmark = needs_registry

WARM_UP = 5
ROUNDS = 20
SLACK = 8
"""Threads and connections that some round needed at once and the ones before did not: less than half of the rounds."""
GROWTH_KIB = 6 * 1024
"""Of resident memory in all rounds: no measure of a leak, which would be several MiB in each."""


@dataclass(frozen=True)
class Held:
    """By a process."""

    descriptors: int
    threads: int
    resident_kib: int


def held(pid: int) -> Held:
    return Held(descriptors_of(pid), threads_of(pid), resident_kib(pid))


def live(engine: Engine, service: Service, image: str, run: bool) -> None:
    engine.pull(image)
    if run:
        assert engine.run(image, "c") == "ready\n"
    engine.remove_all()
    wait_until(lambda: gone(service), "the end of what the image had here")


def test_what_a_loop_leaves(engine: Engine, service: Service, app: str) -> None:
    """Threads and descriptors are made as they are needed, up to a number: so what counts is what grows later on."""
    image = f"{app}:lazy"
    daemon = DaemonClient(service.node)
    live(engine, service, image, run=True)
    assert service.process is not None
    pids = service.process.pid, daemon.status()["pid"]
    mounts = len(all_mounts())
    for _ in range(WARM_UP):
        live(engine, service, image, run=True)
    before = [held(pid) for pid in pids]
    for number in range(ROUNDS):
        live(engine, service, image, run=number % 2 == 0)
    wait_until(lambda: daemon.status()["layers"] == [], "the daemon to let go of the layers")
    assert daemon.status()["images"] == []
    wait_until(lambda: len(all_mounts()) == mounts, "the end of all mounts")
    assert daemon.status()["pid"] == pids[1]
    for then, now in zip(before, [held(pid) for pid in pids], strict=True):
        assert now.descriptors <= then.descriptors + SLACK
        assert now.threads <= then.threads + SLACK
        assert now.resident_kib < then.resident_kib + GROWTH_KIB
