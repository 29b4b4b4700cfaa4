"""Where a tar stream is cut into chunks.

    large file   its data is cut from its first byte on, so that the same file gives the same chunks in any
                 layer of any image; the padding behind it belongs to its last chunk
    the rest     headers and small files are packed together. A pack ends before a member whose name says so
                 (a hash of it), once the pack has some size: two versions of a layer come back into step at
                 the next such name, whatever changed before it

A position depends on the stream alone, never on how its bytes arrived.
"""

import zlib
from dataclasses import dataclass

from lazyfs.formats.tarwalk import Member

BLOCK = 512


@dataclass(frozen=True, slots=True)
class CutRules:
    """Sizes in bytes of plain stream."""

    chunk_size: int = 512 * 1024
    """Of a large file's chunks; a pack may be a header larger."""
    large_file: int = 256 * 1024
    """Files of this size and more have chunks of their own."""
    min_pack: int = 128 * 1024
    """A pack does not end at a name before it has this size."""
    name_mask: int = 0xF
    """A pack may end before one name in `name_mask + 1`."""

    def before(self, member: Member, last_cut: int) -> bool:
        """Does a pack that began at `last_cut` end before this member?"""
        pack = member.header_offset - last_cut
        if pack <= 0:
            return False
        following = member.data_offset - member.header_offset
        if member.stored_size < self.large_file:
            following += _padded(member.stored_size)
        if pack + following > self.chunk_size:
            return True
        return pack >= self.min_pack and _name_hash(member.name) & self.name_mask == 0

    def within(self, member: Member) -> range:
        """The cuts that a large file's data needs: before it, at every `chunk_size`, and behind its padding."""
        if member.stored_size < self.large_file:
            return range(0)
        end = member.data_offset + _padded(member.stored_size)
        steps = -(-(end - member.data_offset) // self.chunk_size)
        return range(member.data_offset, member.data_offset + steps * self.chunk_size + 1, self.chunk_size)


def _name_hash(name: bytes) -> int:
    # However the archive was made: `./usr/bin`, `/usr/bin` and `usr/bin` are one name.
    return zlib.crc32(name.lstrip(b"./"))


def end_of(member: Member) -> int:
    """Stream offset behind the member's data and padding."""
    return member.data_offset + _padded(member.stored_size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
