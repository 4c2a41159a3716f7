"""WebDataset archives: indexed without trust, written deterministically.

`tarfile` parses single header blocks only. Its `TarFile` stops in silence where an archive was cut between
members, follows long-name headers by recursion, and reads into memory as many bytes as a header claims.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sonify.io.places import open_place
from sonify.keys import escape_key
from sonify.rows import Reason, Rejected
from sonify.stores import Place

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION_BYTES = 2**20  # of one pax or long-name header; extended attributes make them long, names do not
MAX_NAME_BYTES = 4096  # PATH_MAX of Linux
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_OTHERS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_WITHOUT_DATA = (tarfile.DIRTYPE, *(kind for kind in _OTHERS if kind != tarfile.GNUTYPE_SPARSE))
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_EXTENSIONS = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file of an archive; its data start at byte `offset` of the archive."""

    name: str
    offset: int
    size_bytes: int


def index_tar(place: Place, archive: str) -> tuple[list[Member], list[Rejected]]:
    """List the complete regular files of an uncompressed tar, reading headers only.

    Every other member but a directory is rejected under `archive/name`, escaped; damage, which ends the list,
    is rejected once under `archive`, escaped.

    Raises:
        OSError: the file cannot be read.
    """
    with open_place(place) as file:
        return index_members(file, archive)


def index_members(file: BinaryIO, archive: str, *, whole: bool = True) -> tuple[list[Member], list[Rejected]]:
    """Do what `index_tar` does with an opened archive; a part of one (`whole=False`) ends between two members.

    Raises:
        OSError: the file cannot be read.
    """
    members: list[Member] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    try:
        for kind, member in _scan(file, whole):
            if kind == tarfile.DIRTYPE:
                continue
            refusal = _refusal(kind, member, seen)
            if refusal is None:
                seen.add(member.name)
                members.append(member)
            else:
                key = escape_key(f"{archive}/{member.name[:MAX_NAME_BYTES]}")
                rejected.append(Rejected(key=key, reason=refusal[0], detail=refusal[1]))
    except tarfile.TarError as damage:
        key = escape_key(archive)
        rejected.append(Rejected(key=key, reason=Reason.DAMAGED_ARCHIVE, detail=str(damage)))
    return members, rejected


def iter_files(file: BinaryIO) -> Iterator[Member]:
    """Yield the complete regular files of an opened archive, however many there are, in their order.

    Raises:
        tarfile.TarError: the archive is damaged; the message says where.
    """
    return (member for kind, member in _scan(file) if kind in _FILES)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Read a member's data from the opened archive."""
    file.seek(member.offset)
    data = file.read(member.size_bytes)
    if len(data) < member.size_bytes:
        raise OSError(f"{member.name}: {len(data)} of {member.size_bytes} bytes; the archive was changed")
    return data


class TarWriter:
    """Appends members to a binary file; the same names and data in the same order give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def tell(self) -> int:
        """Where the next member starts."""
        return self._file.tell()

    def add(self, name: str, data: bytes) -> None:
        """Write one regular file: mode 0644, no owner, no time, a pax header only if ustar has no room."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._file.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._file.write(data)
        self._file.write(bytes(-len(data) % BLOCK))

    def close(self) -> None:
        """Write the end marker. The file stays open: its owner syncs and closes it."""
        self._file.write(bytes(2 * BLOCK))


def _refusal(kind: bytes, member: Member, seen: set[str]) -> tuple[Reason, str] | None:
    if kind not in _FILES:
        return Reason.UNSUPPORTED, _OTHERS.get(kind, f"a member of type {kind!r}")
    if len(member.name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        return Reason.UNSUPPORTED, f"a name of more than {MAX_NAME_BYTES} bytes"
    if member.name in seen:
        return Reason.DUPLICATE_KEY, f"again at byte {member.offset}"
    return None


def _scan(file: BinaryIO, whole: bool = True) -> Iterator[tuple[bytes, Member]]:
    """Yield every member whose data are complete, behind its type."""
    end = file.seek(0, os.SEEK_END)
    offset = 0
    of_all: dict[bytes, bytes] = {}  # what global pax headers say of the members that follow
    of_next: dict[bytes, bytes] = {}  # what extension headers say of the next member
    while (whole or offset < end) and (header := _read_header(file, offset)) is not None:
        start = _data_start(file, header.type, offset)
        said = {} if header.type in _EXTENSIONS else of_all | of_next
        size = 0 if header.type in _WITHOUT_DATA else int(said.get(b"size", header.size))
        if start + size > end:
            raise tarfile.ReadError(f"the member at byte {offset} claims {size} bytes, but the file ends at {end}")
        if header.type == tarfile.XGLTYPE:
            of_all |= _read_extension(file, header.type, start, size)
        elif header.type in _EXTENSIONS:
            of_next |= _read_extension(file, header.type, start, size)
        else:
            name = said[b"path"].decode("utf-8", "surrogateescape") if said.get(b"path") else header.name
            kind = tarfile.GNUTYPE_SPARSE if b"sparse" in said else header.type
            yield kind, Member(name=name, offset=start, size_bytes=size)
            of_next = {}
        offset = start + size + -size % BLOCK


def _read_header(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    """Parse one header block, without what extends it; None is the end marker."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise tarfile.ReadError(f"neither a header nor the end marker at byte {offset}: the file ends")
    if block == bytes(BLOCK):
        while chunk := file.read(2**20):
            # A hole in a broken copy looks like the end marker, and so does the end of the first of two
            # archives in one file: both would hide members.
            if chunk.count(0) < len(chunk):
                raise tarfile.ReadError(f"data after the end marker at byte {offset}")
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(f"{error} in the header at byte {offset}") from error
    if header.size < 0:
        raise tarfile.ReadError(f"negative size in the header at byte {offset}")
    return header


def _data_start(file: BinaryIO, kind: bytes, offset: int) -> int:
    """Where a member's data start: behind the header and, of a GNU sparse file, the blocks of its map."""
    start = offset + BLOCK
    if kind == tarfile.GNUTYPE_SPARSE:
        file.seek(offset + 482)  # "isextended"; in the map's blocks it is byte 504
        while file.read(1) not in (b"", b"\0"):
            file.seek(start + 504)
            start += BLOCK
    return start


def _read_extension(file: BinaryIO, kind: bytes, start: int, size: int) -> dict[bytes, bytes]:
    """Return what a pax or GNU header says of path, size and sparseness; nothing else is needed."""
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    if size > MAX_EXTENSION_BYTES:
        raise tarfile.ReadError(f"{size} bytes of extension header at byte {start}")
    file.seek(start)
    body = file.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {b"path": body.split(b"\0", 1)[0]}
    return _parse_pax(body, start)


def _parse_pax(body: bytes, start: int) -> dict[bytes, bytes]:
    """Source: POSIX.1-2024, pax, "pax Extended Header": records of `length keyword=value\\n`."""
    said: dict[bytes, bytes] = {}
    position = 0
    while position < len(body):
        # No size has 19 digits; looking no further keeps the time linear in the header's length.
        digits = body[position : position + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[position + len(digits) + 1 : position + length]
        keyword, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or position + length > len(body):
            raise tarfile.ReadError(f"malformed pax header at byte {start}")
        if keyword == b"size" and not (value[:-1].isdigit() and len(value) < 20):
            raise tarfile.ReadError(f"malformed size in the pax header at byte {start}")
        if keyword in (b"path", b"size"):
            said[keyword] = value[:-1]
        elif keyword.startswith(b"GNU.sparse."):
            said[b"sparse"] = b""
        position += length
    return said
