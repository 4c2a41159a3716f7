"""What a recording's container says before a library opens it: which one may, and which of the bytes are the recording.

Containers of uncompressed sound, and Ogg, are libsndfile's where their format is known to be; all else is FFmpeg's.
libsndfile 1.2.2 has an open integer overflow in IMA ADPCM (CVE-2026-37555) and a history of others in its rarer
parsers, so that a format which is not named here never reaches it.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

# WAVE format tags: PCM, floats, A-law and mu-law; MS and IMA ADPCM, MP2, MP3, AAC, WMA and AC-3, which FFmpeg reads.
_WAV_PLAIN = frozenset({1, 3, 6, 7})
_WAV_FFMPEG = frozenset({0x02, 0x11, 0x50, 0x55, 0xFF, 0x160, 0x161, 0x2000})
_WAV_EXTENSIBLE = 0xFFFE
_AIFC_PLAIN = frozenset({b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64"})
_AIFC_PLAIN |= frozenset({b"alaw", b"ALAW", b"ulaw", b"ULAW"})
_CAF_PLAIN = frozenset({b"lpcm", b"alaw", b"ulaw"})
_W64_FMT = b"fmt \xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_W64_RIFF = b"riff\x2e\x91\xcf\x11"
# What is written before and behind samples.
_CHUNKS = frozenset(
    {
        *(b"fmt ", b"data", b"LIST", b"fact", b"bext", b"iXML", b"cue ", b"smpl", b"inst", b"PEAK", b"id3 ", b"ID3 "),
        *(b"JUNK", b"junk", b"PAD ", b"FLLR", b"axml", b"chna", b"plst", b"acid", b"strc", b"_PMX", b"afsp", b"DISP"),
    }
)
# More are no recording but a trap for whoever walks over them.
_MOST_CHUNKS = 1000
_MOST_TAGS = 16
_HEAD_BYTES = 4096
_UNKNOWN = 2**32 - 1
# A radio's recording has one for each song.
MOST_CHAINS = 10_000
_OGG_BEGIN = b"OggS\0\x02"
_SCAN_BYTES = 4 << 20
Order = Literal["little", "big"]
_MPEG = re.compile(rb"\xff[\xe0-\xff]")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file from `start` up to `stop`, with a `head` before them."""

    start: int
    stop: int
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Layout:
    """Who reads a recording, and which parts of its file, one after the other (none: the file as it is).

    `refused` is what the container holds that nobody here reads.
    """

    reader: Literal["libsndfile", "ffmpeg"]
    parts: tuple[Part, ...] = ()
    refused: str = ""


class View(io.RawIOBase):
    """A part of a file as a file. Of damaged ones libsndfile seeks what lies before the first byte.

    A file on disk refuses that and stays where it is; an exception would be printed by the callback that calls this.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file = file
        self._part = part
        self._size = len(part.head) + part.stop - part.start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            return -1
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as the head, or the part of the file, goes."""
        head = self._part.head[self._at : self._at + len(buffer)]
        if head:
            data = head
        else:
            at = self._at - len(self._part.head)
            self._file.seek(self._part.start + at)
            data = self._file.read(max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Bytes:
    """The bytes of a file by their place; those of its head, where most is said, are read once."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.head = file.read(_HEAD_BYTES)
        self._file = file

    def at(self, start: int, size: int) -> bytes:
        """So many bytes, or fewer where the file ends."""
        if start + size <= len(self.head):
            return self.head[start : start + size]
        if start >= self.size:
            return b""
        self._file.seek(start)
        return self._file.read(size)


def layout_of(file: BinaryIO) -> Layout:
    """Read as much of the container as says who is to read it."""
    data = _Bytes(file)
    size, start = data.size, 0
    for _ in range(_MOST_TAGS):  # in front: ID3 by everybody's players, APE by some
        head = data.at(start, 10)
        if head.startswith(b"ID3"):
            start += _id3_bytes(head)
        elif head.startswith(b"APETAGEX"):
            start += 32 + int.from_bytes(data.at(start + 12, 4), "little")
        else:
            break
    head = data.at(start, _HEAD_BYTES)
    layout = _layout_of(data, start, size, head)
    if layout.parts or layout.refused:
        return layout
    if _MPEG.match(head):
        stop = _before_tags(data, size)
        begins_with_tag = start > 0 and data.at(0, 3) != b"ID3"
        return Layout("ffmpeg", (Part(start, stop),)) if stop < size or begins_with_tag else layout
    return Layout(layout.reader, (Part(start, size),)) if start and head else layout


def _layout_of(data: _Bytes, start: int, size: int, head: bytes) -> Layout:
    match head[:4]:
        case b"RIFF" | b"RIFX" | b"RF64" if head[8:12] == b"WAVE":
            layout = _wav(data, start, size, head)
        case b"riff" if head.startswith(_W64_RIFF):
            layout = _w64(data, start, size)
        case b"FORM" if head[8:12] in (b"AIFF", b"AIFC"):
            layout = _aiff(data, start, size)
        case b"caff":
            layout = _caf(data, start, head)
        case b"OggS":
            layout = _ogg(data, start, size, head)
        case b"fLaC":
            # 36 bits count the samples. An encoder that writes to a pipe leaves them zero: libsndfile then fails
            # at the end of the file.
            counted = int.from_bytes(head[21:26], "big") & (2**36 - 1) > 0
            layout = Layout("libsndfile" if counted else "ffmpeg")
        case b".snd" if head[8:12] == bytes(4):  # never finished; all ones say "to the end"
            layout = Layout("libsndfile", (Part(start + 12, size, head[:8] + b"\xff" * 4),))
        case found:
            layout = Layout("libsndfile" if found in (b".snd", b"dns.") else "ffmpeg")
    return layout


def _id3_bytes(head: bytes) -> int:
    """How long a tag is. Source: ID3v2.4.0, section 3.1: seven bits in each byte; 16 is the flag of a footer."""
    size = sum((byte & 127) << 7 * (3 - n) for n, byte in enumerate(head[6:10]))
    return 10 + size + (10 if len(head) > 5 and head[5] & 16 else 0)


def _before_tags(data: _Bytes, size: int) -> int:
    """Where MPEG audio ends: before APE and LYRICS3 tags, of which decoders make errors; ID3's FFmpeg knows.

    Source: APEv2, https://wiki.hydrogenaud.io/index.php?title=APEv2_specification; LYRICS3 v2.00.
    """
    stop, found = size, False
    for _ in range(_MOST_TAGS):
        tail = data.at(max(stop - 128, 0), min(stop, 128))
        if tail.startswith(b"TAG") and len(tail) == 128:
            stop -= 128
        elif tail[-32:-24] == b"APETAGEX":
            length, flags = struct.unpack("<I4xI", tail[-20:-8])
            stop, found = stop - length - (32 if flags & 1 << 31 else 0), True
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            stop, found = stop - 15 - int(tail[-15:-9]), True
        else:
            break
    return stop if found and stop > 0 else size


@dataclass(frozen=True, slots=True)
class _Chunk:
    name: bytes
    start: int
    size: int


def _chunks(data: _Bytes, start: int, size: int, order: Order) -> Iterator[_Chunk]:
    """The chunks of a RIFF or IFF file. Some writers forget the byte behind an odd one: the next name is then there."""
    for _ in range(_MOST_CHUNKS):
        head = data.at(start, 8)
        if len(head) < 8:
            return
        chunk = _Chunk(head[:4], start + 8, int.from_bytes(head[4:], order))
        yield chunk
        start = chunk.start + chunk.size
        if chunk.size % 2 and (start >= size or data.at(start, 4) not in _CHUNKS):
            start += 1


def _wav(data: _Bytes, start: int, size: int, head: bytes) -> Layout:
    """A WAVE file. One whose header says no length, or cannot be walked as libsndfile does, gets a head made here."""
    order: Order = "big" if head[:4] == b"RIFX" else "little"
    form, extended, padded, end = b"", None, True, start + 12
    for chunk in _chunks(data, start + 12, size, order):
        padded &= chunk.start - 8 == end  # every chunk so far has the byte that it is to have
        end = chunk.start + chunk.size + chunk.size % 2
        if chunk.name == b"ds64":
            extended = int.from_bytes(data.at(chunk.start + 8, 8), "little")
        elif chunk.name == b"fmt " and not form:
            form = data.at(chunk.start, min(chunk.size, 64))
        elif chunk.name == b"data" and form:
            tag = _format_tag(form, order)
            left = size - chunk.start
            if tag not in _WAV_PLAIN | _WAV_FFMPEG:
                return Layout("ffmpeg", refused=f"WAV of format tag {tag:#06x}")
            if head[:4] == b"RF64" and chunk.size == _UNKNOWN:
                unfinished = extended is None or not 0 < extended <= left
            else:
                unfinished = chunk.size == 0 and left > 0 and not _ends_in_chunks(data, chunk.start, size, order)
            if order == "little" and (unfinished or not padded):
                return _made_wav(form, chunk.start, left if unfinished else min(chunk.size, left))
            if not padded:
                break  # libsndfile might find another format there
            return Layout("libsndfile" if tag in _WAV_PLAIN else "ffmpeg")
    return Layout("ffmpeg")  # which says what is missing


def _format_tag(form: bytes, order: Order) -> int:
    tag = int.from_bytes(form[:2], order)
    return int.from_bytes(form[24:26], order) if tag == _WAV_EXTENSIBLE else tag


def _made_wav(form: bytes, start: int, length: int) -> Layout:
    head = struct.pack("<4sI4s4sI", b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", len(form)) + form + b"\0" * (len(form) % 2)
    head += struct.pack("<4sI", b"data", min(length, _UNKNOWN))
    return Layout("ffmpeg", (Part(start, start + length, head),))


def _ends_in_chunks(data: _Bytes, start: int, size: int, order: Order) -> bool:
    """Whether what follows is nothing but chunks up to the end: then samples of size 0 are none."""
    end = start
    for chunk in _chunks(data, start, size, order):
        if chunk.name not in _CHUNKS:
            return False
        end = chunk.start + chunk.size
    return size <= end <= size + 1


def _w64(data: _Bytes, start: int, size: int) -> Layout:
    """Source: Sony Pictures Digital Wave 64: chunks of a GUID and a size with both, in steps of 8 bytes."""
    at = start + 40
    for _ in range(_MOST_CHUNKS):
        chunk = data.at(at, 26)
        if len(chunk) < 26 or at > size:
            break
        if chunk.startswith(_W64_FMT):
            tag = int.from_bytes(chunk[24:26], "little")
            if tag == _WAV_EXTENSIBLE:
                tag = int.from_bytes(data.at(at + 48, 2), "little")
            if tag not in _WAV_PLAIN | _WAV_FFMPEG:
                return Layout("ffmpeg", refused=f"W64 of format tag {tag:#06x}")
            return Layout("libsndfile" if tag in _WAV_PLAIN else "ffmpeg")
        length = int.from_bytes(chunk[16:24], "little")
        at += max(length, 24) + -length % 8
    return Layout("ffmpeg")


def _aiff(data: _Bytes, start: int, size: int) -> Layout:
    """An AIFF or AIFF-C file: of both the form is told by how long their COMM is, as libsndfile tells it."""
    for chunk in _chunks(data, start + 12, size, "big"):
        if chunk.name == b"COMM":
            plain = chunk.size < 22 or data.at(chunk.start + 18, 4) in _AIFC_PLAIN
            return Layout("libsndfile" if plain else "ffmpeg")
    return Layout("ffmpeg")


def _caf(data: _Bytes, start: int, head: bytes) -> Layout:
    """Core Audio Format; what recorders write says -1 for the size of its samples, which libsndfile refuses."""
    if head[8:12] != b"desc" or head[28:32] not in _CAF_PLAIN:
        return Layout("ffmpeg")
    at = start + 8
    for _ in range(_MOST_CHUNKS):
        chunk = data.at(at, 12)
        if len(chunk) < 12:
            break
        length = int.from_bytes(chunk[4:], "big", signed=True)
        if chunk[:4] == b"data":
            return Layout("libsndfile" if length > 0 else "ffmpeg")
        if length < 0:
            break
        at += 12 + length
    return Layout("ffmpeg")


def _ogg(data: _Bytes, start: int, size: int, head: bytes) -> Layout:
    """Vorbis and Opus, of which libsndfile reads the first chain, and what a radio sends is one a song.

    Source: RFC 3533, sections 4 and 6: a chain begins with a page of flag 2, one for each of its streams.
    """
    if not _is_vorbis_or_opus(head):
        return Layout("ffmpeg")
    chains: list[int] = []
    behind = -1  # the first page of a stream
    for at in _ogg_begins(data, start, size):
        if at == behind:
            return Layout("ffmpeg")  # several streams at once: a film, with its sound
        chains.append(at)
        if len(chains) > MOST_CHAINS:
            return Layout("ffmpeg", refused=f"Ogg of over {MOST_CHAINS} chains")
        page = data.at(at, 27 + 255)
        behind = at + 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 27 else -1
        if not _is_vorbis_or_opus(page):
            return Layout("ffmpeg", refused="Ogg with a chain that is neither Vorbis nor Opus")
    if len(chains) < 2:
        return Layout("libsndfile")
    return Layout("libsndfile", tuple(Part(*ends) for ends in zip(chains, [*chains[1:], size], strict=True)))


def _is_vorbis_or_opus(page: bytes) -> bool:
    packet = page[27 + page[26] :] if len(page) > 26 else b""
    return packet.startswith((b"\x01vorbis", b"OpusHead"))


def _ogg_begins(data: _Bytes, start: int, size: int) -> Iterator[int]:
    for block_start in range(start, size, _SCAN_BYTES):
        block = data.at(block_start, min(_SCAN_BYTES + len(_OGG_BEGIN) - 1, size - block_start))
        at = -1
        while (at := block.find(_OGG_BEGIN, at + 1)) >= 0:
            yield block_start + at
