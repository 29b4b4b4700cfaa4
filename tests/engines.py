"""Engines of today for tests: where neither they nor Go are there, tests of them are skipped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.process import FailedError


def containerd_2() -> Path:
    return _or_skip(engines.containerd_2)


def docker() -> Path:
    return _or_skip(engines.docker)


def _or_skip(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except FailedError as error:
        pytest.skip(str(error))
