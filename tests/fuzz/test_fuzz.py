"""Parsers refuse what is wrong by an error of ours: what was found once, and a fixed number of new inputs.

`make fuzz` feeds them a million each.
"""

from contextlib import suppress
from random import Random

import pytest

from lazyfs.errors import LazyfsError

from .corpus import kept
from .parser import Parser
from .parsers import PARSERS

INPUTS = 300

each_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
pytestmark = pytest.mark.usefixtures("time_limit")


@each_parser
def test_what_was_found_once(parser: Parser) -> None:
    for data in kept(parser.name):
        with suppress(LazyfsError):
            parser.take(data)


@each_parser
def test_inputs_that_are_nearly_right(parser: Parser) -> None:
    rng = Random(0)
    outcomes = {_is_taken(parser, parser.make(rng)) for _ in range(INPUTS)}
    assert False in outcomes, "nothing was refused: the changes do nothing"


def _is_taken(parser: Parser, data: bytes) -> bool:
    try:
        parser.take(data)
    except LazyfsError as error:
        assert "\n" not in error.message
        return False
    return True
