"""Extended headers of pax: records, and what the values in them mean.

Specification: POSIX.1-2017 *pax*, "pax Extended Header"; the vendors' keywords are in tar(5) of
libarchive. An empty value takes back what a global header said, so that the member's own header
block counts again (as Go reads it). The one exception is an extended attribute, which may well be
empty: GNU tar writes, and both GNU tar and containerd set, an empty one.

``hdrcharset`` needs no care here, because names stay bytes. Access lists and SELinux labels as
text (``SCHILY.acl.*``, ``RHT.security.selinux``) are not read, as containerd does not either.
"""

import binascii
import re

from lazyfs.errors import BadInputError
from lazyfs.formats.tar_header import MAX_SIZE

Records = dict[bytes, bytes]

SCHILY_XATTR = b"SCHILY.xattr."
LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."

_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_WITHOUT_NUL = frozenset((b"path", b"linkpath", b"GNU.sparse.name"))

_integer = re.compile(rb"([+-]?)0*([0-9]{1,19})").fullmatch
_time = re.compile(rb"([+-]?[0-9]{1,19})(?:\.([0-9]*))?").fullmatch
_base64 = re.compile(rb"[A-Za-z0-9+/]*=*").fullmatch
_any_escape = re.compile(rb"%([0-9A-Fa-f]{2})")
_gnu_escape = re.compile(rb"%(25|3[Dd])")


def parse_records(body: bytes) -> Records:
    """The records of one extended header; the last of a name counts.

    The pairs of the sparse format 0.0, the only records that are meant to repeat, come out joined
    as the ``GNU.sparse.map`` of 0.1.
    """
    records: Records = {}
    sparse: list[bytes] = []
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + 20)
        digits = body[start : max(space, start)]
        end = start + int(digits) if digits.isdigit() else 0
        equals = body.find(b"=", space + 1, end)
        if not space + 1 < equals < end <= len(body) or body[end - 1] != 0x0A:
            raise BadInputError(
                f"the record at byte {start} of its extended header is not as long as it says"
            )
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(sparse) % 2] or b"," in value:
                raise BadInputError("the sparse map in its extended header is out of order")
            sparse.append(value)
        elif b"\0" in (value if key in _WITHOUT_NUL else key):
            raise BadInputError(f"a NUL byte in the extended header record {key[:80]!r}")
        else:
            records[key] = value
        start = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def integer(value: bytes) -> int:
    match = _integer(value)
    if match is None or abs(result := int(match[1] + match[2])) > MAX_SIZE:
        raise BadInputError(f"{value[:40]!r} in its extended header is not a number of 64 bits")
    return result


def timestamp(value: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds (0 to 999,999,999, counted forward) of a decimal time.

    Digits beyond the ninth are dropped. ``-1.5`` is second -2 and 500,000,000 nanoseconds.
    """
    match = _time(value)
    if match is None or abs(seconds := int(match[1])) >= MAX_SIZE:
        raise BadInputError(f"{value[:40]!r} in its extended header is not a time")
    nanoseconds = int((match[2] or b"")[:9].ljust(9, b"0"))
    if nanoseconds and value.startswith(b"-"):
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def extended_attributes(records: Records) -> tuple[tuple[bytes, bytes], ...]:
    """Names and values, sorted; of two spellings of one name that of SCHILY counts."""
    ours: Records = {}
    theirs: Records = {}
    for key, value in records.items():
        if key.startswith(SCHILY_XATTR):
            written = key[len(SCHILY_XATTR) :]
            # GNU tar escapes what a keyword cannot hold; libarchive, which writes each attribute
            # under both keywords, quotes the name in both.
            escape = _any_escape if LIBARCHIVE_XATTR + written in records else _gnu_escape
            ours[escape.sub(_unescape, written)] = value
        elif key.startswith(LIBARCHIVE_XATTR):
            name = _any_escape.sub(_unescape, key[len(LIBARCHIVE_XATTR) :])
            theirs[name] = _decode_base64(value)
    if not ours and not theirs:
        return ()
    merged = theirs | ours
    if any(not name or b"\0" in name for name in merged):
        raise BadInputError("an extended attribute without a name, or with a NUL byte in its name")
    return tuple(sorted(merged.items()))


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())


def _decode_base64(value: bytes) -> bytes:
    digits = value.rstrip(b"=")
    if _base64(value) is None or len(digits) % 4 == 1:
        raise BadInputError("an extended attribute (LIBARCHIVE.xattr) is not base64")
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
