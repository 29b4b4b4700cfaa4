"""What an ELF program asks for before it runs: its interpreter, its libraries, where to look for them.

System V ABI, chapters 4 and 5 (program header, dynamic linking); bytes in, values out. A file comes from an image and
may say anything: what is read of it is bounded, and what cannot be meant is `None`, or left out.
"""

import struct
from dataclasses import dataclass

MAX_NAME = 4096
MAX_LIBRARIES = 256
MAX_SEGMENTS = 64
MAX_TABLE = 64 << 10
"""Bytes of the dynamic section that are looked at."""

_MAGIC = b"\x7fELF"
_CLASSES = {1: ("IIIIIHHHHHH", "IIIIIIII", "iI"), 2: ("IQQQIHHHHHH", "IIQQQQQQ", "qQ")}
_ORDERS = {1: "<", 2: ">"}
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29


@dataclass(frozen=True, slots=True)
class ElfNeeds:
    """`search` are the directories of DT_RUNPATH, else of DT_RPATH, as written: `$ORIGIN` is not replaced."""

    interpreter: bytes | None
    libraries: tuple[bytes, ...]
    search: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def elf_needs(data: bytes) -> ElfNeeds | None:
    """What the ELF file that begins with, or is, `data` asks for; None when it is no ELF file.

    Where `data` ends before what is to be read, that is left out.
    """
    if data[:4] != _MAGIC or len(data) < 64 or data[4] not in _CLASSES or data[5] not in _ORDERS:
        return None
    segments = _segments(data)
    interpreter = None
    for segment in segments:
        if segment.kind == _PT_INTERP:
            interpreter = _text(data, segment.offset, min(segment.size, MAX_NAME)) or None
    return ElfNeeds(interpreter, *_dynamic(data, segments))


def _segments(data: bytes) -> list[_Segment]:
    wide, order = data[4] == 2, _ORDERS[data[5]]
    header, entry = (struct.Struct(order + each) for each in _CLASSES[data[4]][:2])
    # e_type, e_machine come first; then the fields of the class.
    fields = header.unpack_from(data, 20)
    start, size, count = fields[2], fields[6], min(fields[7], MAX_SEGMENTS)
    found = []
    for number in range(count if size >= entry.size else 0):
        at = start + number * size
        if at + entry.size > len(data):
            break
        values = entry.unpack_from(data, at)
        kind, offset, address, length = (
            (values[0], values[2], values[3], values[5]) if wide else (values[0], *values[1:3], values[4])
        )
        found.append(_Segment(kind, offset, address, length))
    return found


def _dynamic(data: bytes, segments: list[_Segment]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Libraries, and directories to look for them in."""
    entry = struct.Struct(_ORDERS[data[5]] + _CLASSES[data[4]][2])
    needed: list[int] = []
    values: dict[int, int] = {}
    for segment in segments:
        if segment.kind != _PT_DYNAMIC:
            continue
        end = min(segment.offset + min(segment.size, MAX_TABLE), len(data))
        for at in range(segment.offset, end - entry.size + 1, entry.size):
            tag, value = entry.unpack_from(data, at)
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED and len(needed) < MAX_LIBRARIES:
                needed.append(value)
            elif tag in (_DT_STRTAB, _DT_RPATH, _DT_RUNPATH):
                values[tag] = value
    strings = _in_file(segments, values.get(_DT_STRTAB, -1))
    if strings is None:
        return (), ()
    libraries = tuple(filter(None, (_text(data, strings + each, MAX_NAME) for each in needed)))
    path = values.get(_DT_RUNPATH, values.get(_DT_RPATH))
    search = _text(data, strings + path, MAX_NAME) if path is not None else b""
    return libraries, tuple(filter(None, search.split(b":")))[:MAX_LIBRARIES]


def _in_file(segments: list[_Segment], address: int) -> int | None:
    """Where in the file an address of the running program lies."""
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    return None


def _text(data: bytes, start: int, limit: int) -> bytes:
    """The text that ends with a zero byte; b"" where there is none of at most so many bytes."""
    if not 0 <= start < len(data):
        return b""
    end = data.find(b"\0", start, start + limit)
    return data[start:end] if end >= 0 else b""
