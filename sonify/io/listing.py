"""Listing what people bring: an input folder is walked here and nowhere else, so that all see the same files in it.

Links are followed, to folders as well: a set is often put together of links. What lists a run's own files is
`sonify.io.places`.
"""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sonify.errors import InputError
from sonify.io.places import DISK_TROUBLE, files_below, is_below, is_utf8
from sonify.stores import Place

log = logging.getLogger(__name__)

# What systems and programs leave beside people's files; what begins with a dot is always theirs.
_JUNK = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    }
)
_ENDING = re.compile(r"\.[a-z0-9_+~-]{1,16}")
ENDINGS_NAMED = 12  # on one line
# A folder may be linked under several names; more are links that lead to each other in every order.
MAX_LINKED_NAMES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one walk below a folder found, relative, `/` between the parts, each list in a fixed order.

    Attributes:
        files: those of the endings that were asked for.
        others: the rest.
        linked: the folders, each with its `/`, that links lead to.
        junk: how many files are no input of anybody: see `is_junk`.
        unnameable: how many have names that no table or path can hold.
        astray: how many links lead nowhere, or back to a folder above them.
    """

    files: list[str]
    others: list[str] = field(default_factory=list)
    linked: tuple[str, ...] = ()
    junk: int = 0
    unnameable: int = 0
    astray: int = 0


def list_files(root: Place, suffixes: Collection[str]) -> Listing:
    """Walk below `root` once: the files whose suffix, in small letters, is one of `suffixes`, and what else is there.

    Links are followed, to folders as well: a folder that is linked twice is there twice, and a link back to a folder
    above it is not followed.

    Raises:
        InputError: a folder cannot be listed, or links lead in circles.
        TransientError: the store cannot be reached.
    """
    walk = _Walk()
    files: list[str] = []
    others: list[str] = []
    lost: list[str] = []
    junk = 0
    for name in walk.files_below(root):
        if is_junk(name):
            junk += 1
        elif not is_below(name) or not is_utf8(name):
            lost.append(name)
        else:
            (files if os.path.splitext(name)[1].lower() in suffixes else others).append(name)
    if lost:
        log.warning("%d files are left out: their names are not UTF-8, or no path (%r)", len(lost), min(lost))
    files.sort()  # in place: a copy of ten million names would be one too many
    others.sort()
    return Listing(
        files=files,
        others=others,
        linked=tuple(sorted(walk.linked)),
        junk=junk,
        unnameable=len(lost),
        astray=walk.astray,
    )


def iter_inputs(root: Place) -> Iterator[str]:
    """The names that `list_files` finds, of whatever ending, in no order and as they come; raises what it raises."""
    return (name for name in _Walk().files_below(root) if not is_junk(name) and is_below(name) and is_utf8(name))


def say_passed_over(root: Place, listing: Listing, aside: Iterable[str] = (), hint: str = "") -> None:
    """Log, on one line, what a listing passed over, so that with what it took all that is there is counted.

    Args:
        root: the folder that was listed.
        listing: what was found.
        aside: those of `listing.others` that are read as tables or texts, each once.
        hint: what would read some of the rest.
    """
    read_beside = Counter(map(_ending_of, aside))
    endings = Counter(map(_ending_of, listing.others)) - read_beside
    first = sorted(endings.items(), key=lambda found: (-found[1], found[0]))[:ENDINGS_NAMED]
    named = [f"{count:,} {ending}" for ending, count in first]
    if (rest := endings.total() - sum(count for _, count in first)) > 0:
        named.append(f"{rest:,} of other endings")
    counts = (
        (listing.junk, "of no use (._*, .DS_Store, __MACOSX/ and their like)"),
        (listing.unnameable, "with names that no table can hold"),
        (listing.astray, "that are no files (links that lead nowhere or back, pipes)"),
    )
    parts = [f"ignored: {', '.join(named)}{hint}"] if named else []
    parts += [f"{count:,} {what}" for count, what in counts if count]
    if parts:
        read = f", {read_beside.total():,} read beside them" if read_beside else ""
        log.info("%s: %s files are input%s; %s", root, f"{len(listing.files):,}", read, "; ".join(parts))


def _ending_of(name: str) -> str:
    """A file's ending in small letters, where it is one that can be printed."""
    suffix = os.path.splitext(name)[1].lower()  # a `PurePath` of each would take twice as long
    return suffix if _ENDING.fullmatch(suffix) else "(no ending)"


def is_junk(name: str) -> bool:
    """Whether a file, below a folder or in an archive, is one that a system or program left there (`._a.jpg`)."""
    parts = name.split("/")
    return any((part[:1] == "." and part not in (".", "..")) or part.lower() in _JUNK for part in parts)


class _Walk:
    """A walk through links to folders as well, and what it noted on its way."""

    def __init__(self) -> None:
        self.linked: list[str] = []
        self.astray = 0
        self._names: Counter[tuple[int, int]] = Counter()  # of each folder that a link leads to

    def files_below(self, root: Place) -> Iterator[str]:
        """Every file below the root, in no order.

        Raises:
            InputError: a folder cannot be listed, or links lead in circles.
            TransientError: the store cannot be reached.
        """
        yield from self._local_files(root) if isinstance(root, Path) else files_below(root)  # a store has no links

    def _local_files(self, root: Path) -> Iterator[str]:
        try:  # a link to a folder above the root would lead back into it
            above = frozenset(_identity(os.stat(folder)) for folder in Path(os.path.realpath(root)).parents)
        except OSError:
            above = frozenset()  # nothing is there, or the listing says what is wrong
        waiting = [("", above)]  # each folder with those on the way to it, by which a link back is known
        while waiting:
            prefix, way = waiting.pop()
            try:
                way |= {_identity(os.stat(root / prefix))}
                with os.scandir(root / prefix) as entries:
                    for entry in entries:
                        name = f"{prefix}{entry.name}"
                        match self._kind_of(entry, name, way):
                            case "folder":
                                waiting.append((f"{name}/", way))
                            case "file":
                                yield name
                            case None:
                                self.astray += 1
            except OSError as error:
                # what is gone since its folder was listed is no more input than what somebody else's bin keeps shut
                if not (isinstance(error, FileNotFoundError) or (prefix and is_junk(prefix))):
                    raise InputError(f"{root / prefix}: cannot be listed: {error.strerror or error}") from error

    def _kind_of(self, entry: os.DirEntry[str], name: str, way: frozenset[tuple[int, int]]) -> str | None:
        """What lies under a name; a folder's type comes with its listing, so that only links cost a look."""
        if not entry.is_symlink():
            if entry.is_dir(follow_symlinks=False):
                return "folder"
            return "file" if entry.is_file(follow_symlinks=False) else None
        try:
            found = os.stat(entry.path)
        except OSError as error:
            if error.errno in DISK_TROUBLE:
                raise
            return None  # leads nowhere, or to itself
        if stat.S_ISDIR(found.st_mode):
            return self._follow(entry.path, name, _identity(found), way)
        return "file" if stat.S_ISREG(found.st_mode) else None

    def _follow(self, path: str, name: str, folder: tuple[int, int], way: frozenset[tuple[int, int]]) -> str | None:
        if folder in way or is_junk(name):
            return None
        self._names[folder] += 1
        if self._names[folder] > MAX_LINKED_NAMES:
            raise InputError(f"{path}: links lead to this folder by over {MAX_LINKED_NAMES} names: remove some")
        self.linked.append(f"{name}/")
        return "folder"


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
