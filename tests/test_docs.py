"""What the documents say of the tests is true."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FAULTS = _NAMED.findall((REPOSITORY / "docs" / "faults.md").read_text())


def test_the_table_of_faults_names_tests() -> None:
    rows = [
        line for line in (REPOSITORY / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(FAULTS) == sum(not row.startswith("| fault ") for row in rows)


@pytest.mark.parametrize(("path", "name"), sorted(set(FAULTS)))
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (REPOSITORY / path).read_text()
