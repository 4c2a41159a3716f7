"""Recordings on disk, found by one walk, and the rows of a corpus' table that they belong to."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TextIO

from sonify.errors import InputError
from sonify.io.places import is_utf8, open_place
from sonify.io.tars import Member, index_members
from sonify.keys import escape_key
from sonify.rows import Reason, Rejected, SoundRef
from sonify.sources.containers import container
from sonify.stores import Place

# What libsndfile or FFmpeg may open; which of them are really read is decided from their headers.
SOUND_SUFFIXES = (  # a tuple, for `str.endswith`
    *(".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4", ".oga", ".ogg"),
    *(".opus", ".rf64", ".snd", ".w64", ".wav", ".webm"),
)


def stem_of(file: str) -> str:
    """A file's name without its folder and ending; it may begin with `-` and hold further dots."""
    return PurePosixPath(file).stem


def with_files(
    rows: Iterable[SoundRef], files: Mapping[str, str], *, table: Place, folder: Place, expected: str
) -> list[SoundRef]:
    """Give the rows of a corpus' table their files, and refuse those that have none as `missing`.

    A missing row keeps its name without an ending, so that its file, once it is there, is new input.

    Args:
        rows: with the name by which `files` knows them as `file`; of equal ones the first counts.
        files: paths below the corpus' folder.
        table: for the message.
        folder: for the message.
        expected: a file name for the message.

    Raises:
        InputError: no row has a file.
    """
    refs: dict[str, SoundRef] = {}
    for row in rows:
        file = files.get(row.file)
        ref = replace(row, refused=Reason.MISSING) if file is None else replace(row, file=file)
        refs.setdefault(ref.file, ref)
    if not refs:
        raise InputError(f"audio.sources: {table} names no recording")
    if all(ref.refused == Reason.MISSING for ref in refs.values()):
        raise InputError(
            f"audio.sources: none of the {len(refs):,} recordings in {table} is below {folder}: expected files such as"
            f" {expected}"
        )
    return list(refs.values())


def open_text(table: Place, errors: str = "replace") -> TextIO:
    """Open a corpus' table for `csv`."""
    return io.TextIOWrapper(open_place(table), encoding="utf-8-sig", errors=errors, newline="")


def index_archive(source_name: str, root: Place, uri: str) -> tuple[list[Member], list[SoundRef]]:
    """The readable members of an archive, and a refused row for each of the others, so that the run counts them.

    Raises:
        OSError: the archive cannot be read.
    """
    with open_place(container(root, uri)) as file:
        members, rejected = index_members(file, uri)
    unnamed = [member for member in members if not is_utf8(member.name)]
    rejected += [
        Rejected(key=escape_key(f"{uri}/{member.name}"), reason=Reason.UNSUPPORTED, detail="a name that is not UTF-8")
        for member in unnamed
    ]
    # numbered, as a name that is there three times is refused twice
    refused = [refused_ref(source_name, f"{r.key}#{n}", r.reason, r.detail) for n, r in enumerate(rejected)]
    return [member for member in members if is_utf8(member.name)], refused


def refused_ref(source_name: str, file: str, reason: Reason, detail: str) -> SoundRef:
    """A row for something that listing found and nobody can read."""
    return SoundRef(
        corpus=source_name,
        file=file,
        recording=f"{source_name}/{file}",
        text="",
        licence="unknown",
        attribution="",
        refused=reason,
        detail=detail.encode("utf-8", "backslashreplace").decode(),
    )
