"""ELF files of this machine beside readelf, and bytes that are none."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.elf import MAX_LIBRARIES, MAX_NAME, ElfNeeds, elf_needs

PROGRAM = Path(sys.executable).resolve()


def by_readelf(file: Path) -> tuple[str | None, list[str]]:
    said = subprocess.run(
        ["readelf", "--wide", "--program-headers", "--dynamic", str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    interpreter = re.search(r"program interpreter: (.*)\]", said)
    return interpreter and interpreter[1], re.findall(r"\(NEEDED\).*\[(.*)\]", said)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_what_a_program_needs_is_what_readelf_says() -> None:
    interpreter, libraries = by_readelf(PROGRAM)
    needs = elf_needs(PROGRAM.read_bytes())
    assert needs is not None
    assert needs.interpreter == (interpreter.encode() if interpreter else None)
    assert needs.libraries == tuple(each.encode() for each in libraries)
    assert libraries


def test_the_beginning_alone_names_the_interpreter() -> None:
    whole = elf_needs(PROGRAM.read_bytes())
    needs = elf_needs(PROGRAM.read_bytes()[:4096])
    assert whole is not None
    assert needs == ElfNeeds(whole.interpreter, (), ())


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_what_is_no_elf_file_needs_nothing(data: bytes) -> None:
    assert elf_needs(data) is None


def is_bounded(needs: ElfNeeds | None) -> bool:
    if needs is None:
        return True
    names = (needs.interpreter or b"", *needs.libraries, *needs.search)
    return len(needs.libraries) <= MAX_LIBRARIES and all(len(name) < MAX_NAME for name in names)


@given(st.binary(max_size=600), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_hostile_bytes_are_never_an_error(tail: bytes, kind: int, order: int) -> None:
    assert is_bounded(elf_needs(b"\x7fELF" + bytes([kind, order]) + tail))


@given(st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=40), st.data())
def test_a_damaged_program_is_never_an_error(damage: list[tuple[int, int]], data: st.DataObject) -> None:
    bytes_ = bytearray(BEGINNING)
    # The header and the program headers, more often than what comes after them.
    for at, value in damage:
        bytes_[at % data.draw(st.sampled_from([64, 1024, 8192]))] = value
    assert is_bounded(elf_needs(bytes(bytes_)))


BEGINNING = PROGRAM.read_bytes()
