"""Signals that end a command: raised at once, or held until what is being done is done."""

import os
import signal
from collections.abc import Iterator

import pytest

from lazyfs.cli.interrupts import Interrupted, interruptible


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """All as they were, whatever a test does."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_raised_at_once(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as caught, interruptible():
        send(number)
    assert caught.value.number == number


def test_held_until_released() -> None:
    done = []
    with pytest.raises(Interrupted), interruptible() as interrupts:
        interrupts.hold()
        send(signal.SIGTERM)
        done.append("whole")
        interrupts.release()
        done.append("never")
    assert done == ["whole"]


def test_nothing_came_while_held() -> None:
    with interruptible() as interrupts:
        interrupts.hold()
        interrupts.release()
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_the_second_does_not_disturb_the_undoing() -> None:
    undone = []
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            undone.append("all")
    assert undone == ["all"]
    assert caught.value.number == signal.SIGINT


def test_nothing_takes_it_for_an_error() -> None:
    with pytest.raises(Interrupted), interruptible():
        try:
            send(signal.SIGINT)
        except Exception:  # noqa: BLE001
            pytest.fail("taken for an error")


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
