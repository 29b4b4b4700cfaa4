"""The cache of a node, shared by its layers and by its readers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from lazyfs.formats.chunks import UNIT_SIZE

from .caches import Nodes, fill, name, present
from .samples import KIB, NEXT_BOOT, PATIENCE, Layer


def test_what_another_layer_has_is_copied(node: Nodes) -> None:
    cache = node()
    one, two = Layer([40 * KIB] * 6), Layer([40 * KIB] * 6 + [70 * KIB])
    fill(cache.open(name(1), one.chunks), one)
    second = cache.open(name(2), two.chunks)
    assert second.recheck(0) == two.plain(0)
    assert second.recheck(5) == two.plain(5)
    assert second.recheck(6) is None
    assert present(second) == [True, False, False, False, False, True, False]
    assert cache.status()["copied_bytes"] == 80 * KIB


def test_units_are_shared_too(node: Nodes) -> None:
    cache = node()
    layer, other = Layer([200 * KIB]), Layer([200 * KIB, 512])
    first, second = cache.open(name(1), layer.chunks), cache.open(name(2), other.chunks)
    units = [layer.plain(0)[at : at + UNIT_SIZE] for at in range(0, 200 * KIB, UNIT_SIZE)]
    first.put_units(0, {2: units[2], 6: units[6]})
    assert second.recheck(0) is None
    assert second.missing_units(0) == [0, 1, 3, 4, 5]
    second.put_units(0, {number: units[number] for number in (0, 1, 3, 4)})
    first.put_units(0, {5: units[5]})
    assert second.recheck(0) == layer.plain(0)
    assert second.missing_units(0) == []


def test_a_layer_that_nobody_opened_since_the_reboot_gives_what_it_has(node: Nodes) -> None:
    layer, other = Layer([40 * KIB] * 3), Layer([40 * KIB] * 3 + [512])
    before = node()
    fill(before.open(name(1), layer.chunks), layer)
    before.close()
    after = node(boot=NEXT_BOOT)
    assert after.open(name(2), other.chunks).recheck(1) == layer.plain(1)


def test_a_damaged_source_gives_nothing_and_is_dropped(node: Nodes) -> None:
    cache = node()
    layer, other = Layer([40 * KIB] * 3), Layer([40 * KIB] * 3 + [512])
    first = cache.open(name(1), layer.chunks)
    fill(first, layer)
    with (first.directory / "data").open("r+b") as data:
        data.seek(50 * KIB)
        data.write(b"damage")
    second = cache.open(name(2), other.chunks)
    assert second.recheck(1) is None
    assert second.recheck(0) == layer.plain(0)
    assert present(first) == [True, False, True]
    assert [report for report in node.reports if "damaged" in report] == node.reports
    assert len(node.reports) == 1


def test_the_same_chunk_at_another_length_is_another_chunk(node: Nodes) -> None:
    cache = node()
    layer = Layer([40 * KIB, 512])
    fill(cache.open(name(1), layer.chunks), layer)
    assert cache._index.find(layer.chunks.digest(0), 40 * KIB) == [(name(1), 0)]
    assert cache._index.find(layer.chunks.digest(0), 40 * KIB + 512) == []


def test_descriptors_stay_few(node: Nodes) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    cache = node()
    before = count()
    layers = [Layer([64 * KIB] * 2, seed=number) for number in range(110)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
        each.flush()
    assert all(all(present(each)) for each in caches)
    assert count() - before <= 100
    cache.close()
    assert count() <= before


def test_readers_never_see_a_hole(node: Nodes) -> None:
    """Threads read, write and drop the same chunks: every read gives the right bytes or nothing."""
    cache = node()
    layer = Layer([Random(7).randrange(1, 60) * 2048 for _ in range(24)])
    each = cache.open(name(1), layer.chunks)
    fill(each, layer)
    stop = threading.Event()
    wrong: list[int] = []
    hits = [0] * 4

    def reader(seed: int) -> None:
        rng = Random(seed)
        while not stop.is_set():
            offset = rng.randrange(len(layer.device))
            length = rng.randrange(1, min(256 * KIB, len(layer.device) - offset) + 1)
            data = each.read(offset, length)
            if data is not None:
                hits[seed] += 1
                if data != layer.device[offset : offset + length]:
                    wrong.append(offset)

    def writer(seed: int) -> None:
        rng = Random(seed)
        while not stop.is_set():
            index = rng.randrange(len(layer.chunks))
            if missing := each.missing_units(index):
                plain = layer.plain(index)
                if rng.random() < 0.5:
                    each.put(index, plain)
                else:
                    unit = rng.choice(missing)
                    each.put_units(index, {unit: plain[unit * UNIT_SIZE : (unit + 1) * UNIT_SIZE]})

    with ThreadPoolExecutor(7) as threads:
        readers = [threads.submit(reader, seed) for seed in range(4)]
        writers = [threads.submit(writer, seed) for seed in range(2)]
        rng = Random(99)
        number, ends = 0, time.monotonic() + PATIENCE
        # A quick disk lets nobody else run meanwhile.
        while number < 60 or (sum(hits) <= 100 and time.monotonic() < ends):
            number += 1
            each.drop(rng.sample(range(len(layer.chunks)), rng.randrange(1, 12)))
            if number % 10 == 0:
                each.flush()
        stop.set()
        for future in (*readers, *writers):
            future.result()
    assert not wrong
    assert sum(hits) > 100
