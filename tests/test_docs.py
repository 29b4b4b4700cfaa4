"""What the documents say of the tests is true."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_PLACES = ("lazyfs status", "lazyfs doctor", "daemon.log")
FAULTS = _NAMED.findall((REPOSITORY / "docs" / "faults.md").read_text())


def test_the_table_of_faults_names_tests() -> None:
    rows = [
        line for line in (REPOSITORY / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(FAULTS) == sum(not row.startswith("| fault ") for row in rows)


def test_what_an_operator_sees_is_looked_for_by_the_test() -> None:
    """In the table's third column stand the words, in the file of the test that is named beside them."""
    for row in (REPOSITORY / "docs" / "faults.md").read_text().splitlines():
        named = _NAMED.search(row)
        if named is not None:
            source = (REPOSITORY / named[1]).read_text()
            for words in re.findall(r"`([^`]+)`", row.split("|")[3]):
                # A command or a file says where to look; N and M stand for numbers.
                wanted = re.sub(r"\b[NM]\b", lambda _: r"(\d+|\\d\+)", re.escape(words))
                assert words in _PLACES or re.search(wanted, source), (named[0], words)


@pytest.mark.parametrize(("path", "name"), sorted(set(FAULTS)))
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (REPOSITORY / path).read_text()
