"""Parsing /proc/self/mountinfo, and the order in which mounts can be taken away."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.mount.mountinfo import MountEntry, list_mounts, mount_at, parse_mountinfo
from lazyfs.mount.syscalls import bind, unmount

SAMPLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
49 27 0:43 / /a\040b\011c\012d\134e ro,nosuid - fuse.lazyfs lazyfs ro,user_id=0
50 27 0:44 / /odd rw - tmpfs  rw
"""


def test_fields() -> None:
    proc, ext3, fuse, nameless = parse_mountinfo(SAMPLE)
    assert proc == MountEntry(
        22, 27, "0:21", Path("/"), Path("/proc"), ("rw", "relatime"), "proc", "proc", "rw"
    )
    assert (ext3.root, ext3.target, ext3.kind) == (Path("/mnt1"), Path("/mnt2"), "ext3")
    assert (ext3.source, ext3.super_options) == ("/dev/root", "rw,errors=continue")
    assert fuse.target == Path("/a b\tc\nd\\e")
    assert nameless.source == ""


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_any_name_is_read_back(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
    (entry,) = parse_mountinfo(b"1 2 0:3 / /m/" + escaped + b" rw shared:1 - tmpfs none rw\n")
    assert os.fsencode(entry.target) == os.fsencode(Path(os.fsdecode(b"/m/" + name)))


@pytest.mark.root
def test_the_real_table(temp_root: Path) -> None:
    inner = temp_root / "outer" / "in ner\\\n"
    inner.mkdir(parents=True)
    bind(inner.parent, inner.parent)
    bind(inner, inner)
    bind(inner, inner)
    mounts = list_mounts(temp_root)
    assert [entry.target for entry in mounts] == [inner, inner, inner.parent]
    assert mount_at(inner) == mounts[0]
    assert mount_at(temp_root) is None
    for entry in mounts:
        assert unmount(entry.target)
    assert list_mounts(temp_root) == []
