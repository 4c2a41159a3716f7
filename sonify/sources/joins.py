"""How the names that a table gives its files meet the files that are there.

A name that a file has, byte for byte, is that file. Only where none has it are other ways of writing it tried, each
further from what stands there than the one before: separators, `./`, blanks, quotes and composed letters; the case of
the ending; no ending at all; a path from the root of a machine, or one that begins with the folder's own name. What
could be two files is none of them. Whatever meets nothing is counted, and said by whoever lists.
"""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sonify.errors import InputError
from sonify.stores import Place

log = logging.getLogger(__name__)

# Names that are plain as they stand, which nearly all are.
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_FROM_ROOT = re.compile(r"/|[A-Za-z]:/")
# Of a name that a damaged table has, which may be the rest of the table.
SHOWN_CHARS = 100
# Of several texts of a sample, the one that says so is its caption.
_SAYS = re.compile(r"\.(?:caption|text)s?\.[^./]+$", re.IGNORECASE)
_QUOTES = "\"'\u201c\u201d\u2018\u2019"


def plain(name: str) -> str:
    """A name without what tools put around and into it: `.\\a\\\\b.jpg`, ` "a/b.jpg"` and `./a//b.jpg` are `a/b.jpg`.

    Letters are composed (NFC); macOS writes them decomposed.
    """
    if _PLAIN.fullmatch(name):
        return name
    bare = unicodedata.normalize("NFC", name).strip().strip(_QUOTES).strip().replace("\\", "/")
    root = "/" if bare.startswith("/") else ""
    return root + "/".join(part for part in bare.split("/") if part not in ("", "."))


def with_small_ending(name: str) -> str:
    """A name whose ending is in small letters: `a.JPG` is `a.jpg`."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{ending.lower()}" if dot and "/" not in ending else name


def without_ending(name: str) -> str:
    """A name without its last ending: what some tables give instead of it."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and stem and not stem.endswith("/") and "/" not in ending else name


def below_folder(name: str, folder: str) -> Iterator[str]:
    """What a plain name is below a folder of that name, if it begins with it or comes from the root of a machine."""
    parts = name.split("/")
    ends = range(1, len(parts)) if _FROM_ROOT.match(name) else range(1, min(2, len(parts)))
    yield from ("/".join(parts[end:]) for end in ends if folder and parts[end - 1] == folder)


def spellings(name: str) -> list[str]:
    """The other names that the file which data name so may have: each is to be looked for, in this order."""
    one = plain(name)
    stem, dot, ending = one.rpartition(".")
    endings = (ending, ending.lower(), ending.upper()) if dot and "/" not in ending else ("",)
    written = (f"{stem}.{ending}" if ending else one for ending in endings)
    forms = (unicodedata.normalize(form, spelt) for spelt in written for form in ("NFC", "NFD"))
    return [spelt for spelt in dict.fromkeys(forms) if spelt != name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Which rows of a table meet which files.

    Attributes:
        num_rows: those with a name.
        others: the row's name for each file that a row names otherwise than by the file's own name.
        lost: rows that name no file.
        unclear: rows that could name several files.
        again: rows that name a file which another row names.
        bare: files that no row names.
        met: how many files a row names.
    """

    num_rows: int
    others: Mapping[str, str]
    lost: Sequence[str]
    unclear: Sequence[str]
    again: Sequence[str]
    bare: Sequence[str]
    met: int


def meet(rows: Sequence[str], files: Collection[str], folder: str = "") -> Meeting:
    """Find the file of each row.

    Of the rows that name a file, the one with its very name counts, else the last.

    Args:
        rows: the names, as the table gives them.
        files: paths relative to the folder.
        folder: the folder's own name.
    """
    named = dict.fromkeys(rows)
    there = set(files)
    strange = [row for row in named if row not in there]
    again = _repeated(rows) if len(named) < len(rows) else []
    others: dict[str, str] = {}
    lost: list[str] = []
    unclear: list[str] = []
    index = _Index(files, strange, folder) if strange else None
    for row in strange:
        found = index.find(row) if index else ()
        if len(found) != 1:
            (unclear if found else lost).append(row)
            continue
        (file,) = found
        if file in named:
            again.append(row)
            continue
        if file in others:
            again.append(others[file])
        others[file] = row
    bare = [file for file in files if file not in named and file not in others]
    return Meeting(
        num_rows=len(rows),
        others=others,
        lost=lost,
        unclear=unclear,
        again=again,
        bare=bare,
        met=len(there) - len(bare),
    )


def _repeated(rows: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [row for row in rows if row in seen or seen.add(row)]


class _Index:
    """Files by the ways of writing their names that some rows may mean."""

    def __init__(self, files: Iterable[str], rows: Iterable[str], folder: str) -> None:
        self._folder = folder
        wanted = {key for row in rows for key in self._keys_of_row(row)}
        self._files: dict[tuple[int, str], list[str]] = defaultdict(list)
        for file in files:
            name = plain(file)
            for key in enumerate((name, with_small_ending(name), without_ending(name))):
                if key in wanted:
                    self._files[key].append(file)

    def _keys_of_row(self, row: str) -> Iterator[tuple[int, str]]:
        """The nearest first; the first that any file has decides."""
        name = plain(row)
        for start in (name, *below_folder(name, self._folder)):
            yield 0, start
            yield 1, with_small_ending(start)
            yield 2, start

    def find(self, row: str) -> Sequence[str]:
        return next((self._files[key] for key in self._keys_of_row(row) if key in self._files), ())


def say_meeting(table: str, met: Meeting, noun: str) -> None:
    """Log what met nothing, in one line; nothing where everything met.

    Args:
        table: its name.
        met: what came of it.
        noun: what a file is, such as `image`.
    """
    said = [
        _said(met.lost, "row", "names no file", "name no file"),
        _said(met.unclear, "row", "could name several files", "could name several files"),
        _said(met.again, "row", "names a file again", "name a file again"),
        _said(met.bare, noun, "has no row", "have no row"),
    ]
    if any(said):
        log.warning("%s: %s", table, ", ".join(part for part in said if part))


def _said(names: Sequence[str], noun: str, one: str, many: str) -> str:
    if not names:
        return ""
    what = f"{noun} {one}" if len(names) == 1 else f"{noun}s {many}"
    return f"{len(names):,} {what} (first: {names[0][:SHOWN_CHARS]!r})"


def check_any_met(table: Place, column: str, met: Meeting, folder: Place, *, must: bool = True) -> None:
    """Refuse a table of which no row names a file, where there are rows and files; or only say so, where none must.

    Raises:
        InputError: says what a row that met a file would look like.
    """
    if met.met or not met.num_rows or not met.bare:
        return
    found = [*met.unclear, *met.lost][0]
    what = (
        f"{table}: none of its {met.num_rows:,} rows names a file below {folder}: expected paths relative to it"
        f" in the column {column}, such as {met.bare[0]!r}, found {found[:SHOWN_CHARS]!r}"
    )
    if must:
        raise InputError(what)
    log.warning("%s", what)


def texts_beside(names: Collection[str], media: Collection[str], endings: Sequence[str]) -> dict[str, str]:
    """Of an archive's members, the text that belongs to each image or sound.

    It has the same name but for the ending, whose letters are small or not. Where none has, the members are read as
    WebDataset does, whose samples share a name up to its first dot: `0001.image.jpg` has `0001.txt`, or, where it is
    the sample's only medium, `0001.cls.txt`.

    Args:
        names: of all members.
        media: those of the images or sounds.
        endings: of texts, in small letters; the first that is there counts.
    """
    texts: dict[tuple[str, str], str] = {}
    for name in names:
        stem, _, ending = name.rpartition(".")
        key = stem, ending.lower()
        if key[1] in endings and (ending == key[1] or key not in texts):
            texts[key] = name
    found: dict[str, str] = {}
    for medium in media:
        stem = medium.rpartition(".")[0]
        if text := next((texts[stem, ending] for ending in endings if (stem, ending) in texts), None):
            found[medium] = text
    if left := [medium for medium in media if medium not in found]:
        found |= _texts_of_samples(texts, media, left, endings)
    return found


def _texts_of_samples(
    texts: Mapping[tuple[str, str], str],
    media: Iterable[str],
    left: Iterable[str],
    endings: Sequence[str],
) -> Iterator[tuple[str, str]]:
    """The texts of media for which none of their own name is there."""
    num_media = Counter(map(_sample_of, media))
    dotted: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (stem, ending), name in texts.items():
        if _sample_of(name) != stem:
            dotted[_sample_of(name)].append((ending, name))
    for medium in left:
        sample = _sample_of(medium)
        if text := next((texts[sample, ending] for ending in endings if (sample, ending) in texts), None):
            yield medium, text
        elif num_media[sample] == 1:
            for ending in endings:
                of_ending = [name for found, name in dotted[sample] if found == ending]
                said = [name for name in of_ending if _SAYS.search(name)]
                if len(of_ending) == 1 or len(said) == 1:
                    yield medium, (said or of_ending)[0]
                    break


def _sample_of(name: str) -> str:
    """A name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
