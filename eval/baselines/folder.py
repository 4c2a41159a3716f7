"""The folder that a baseline fills: what is asked of it, what it was made for, what failed, and its pictures looked at.

FOLDER/baseline.json    for which suite, by which recipe and with which seeds it is made; written first
FOLDER/sounds.csv       of a recipe that runs a program: what it is given to hear (or sounds_whole.csv)
FOLDER/images/          the pictures
FOLDER/failed.csv       id, seed, error: what was asked for and is not there
FOLDER/manifest.jsonl   one line a picture (`train.manifest`), written last: a folder without one is not finished
FOLDER/outputs.jsonl    of a recipe that runs a program: what the program says of each picture
FOLDER/log.txt          of a recipe that runs a program: what it printed
FOLDER/.lock            held by the command that is at work in it
"""

import csv
import fcntl
import hashlib
import io
import os
import shutil
import stat
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError

from eval.suites.suite import SOUNDS, SOUNDS_WHOLE, Item, Suite, table_bytes
from sonify.errors import InputError, WorkError
from sonify.io.commits import canonical_json
from sonify.io.write import naming_place, write_whole
from sonify.media.pixels import MAX_PIXELS
from train.manifest import IMAGES, MANIFEST, GeneratedImage, Settings

BASELINE = "baseline.json"
FAILED = "failed.csv"
OUTPUTS = "outputs.jsonl"
LOG = "log.txt"
LOCK = ".lock"
WRITTEN_WHOLE = (BASELINE, SOUNDS, SOUNDS_WHOLE, FAILED, MANIFEST)
VERSION = 1
List = Literal["sounds.csv", "sounds_whole.csv"]
Pair = tuple[str, int]  # an item's id and a seed

# Pillow has readers that start other programs (EPS); no model makes those.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_BYTES = 4 * MAX_PIXELS
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, RuntimeError, ArithmeticError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a model is asked for: a picture of each of these items' sounds with each of these seeds."""

    suite: Suite
    items: Mapping[str, Item]
    sounds: Mapping[str, tuple[Path, str]]  # what is heard of each: the file, and its sha256
    seeds: range
    takes: List

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of it, in order."""
        return tuple((id, seed) for id in self.items for seed in self.seeds)

    def line(self, pair: Pair, image: str, model: tuple[str, str], settings: Settings) -> GeneratedImage:
        """The line of a picture in the manifest; `model` is its name and its digest."""
        sound, sha256 = self.sounds[pair[0]]
        return GeneratedImage(
            image=image,
            sound=str(sound),
            mixed_with=(),
            sound_sha256=(sha256,),
            start_sec=0.0,
            seed=pair[1],
            model=model[0],
            model_sha256=model[1],
            settings=settings,
        )


def ask(suite: Suite, takes: List, seeds: range) -> Asked:
    """Ask for pictures of the sounds of a list; an item whose window is silent stands in the whole one alone.

    Raises:
        InputError: the list has no sound.
    """
    whole = takes == SOUNDS_WHOLE
    items = {item.id: item for item in suite.items if whole or item.window is not None}
    heard = {id: item.sound if whole else item.window for id, item in items.items()}
    sounds = {id: (suite.folder / each.file, each.sha256) for id, each in heard.items() if each is not None}
    if not items:
        raise InputError(f"{suite.folder / takes}: names no sound; prepare the suite again with other settings")
    return Asked(suite=suite, items=items, sounds=sounds, seeds=seeds, takes=takes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFor:
    """What a folder is made for (`baseline.json`); `program` are the files that a command names, by their sha256."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    version: int
    suite: str
    suite_digest: str
    recipe: str
    recipe_sha256: str
    first_seed: int
    seeds: int
    trained_on: tuple[str, ...]
    program: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file."""
        return f"{canonical_json(_MADE_FOR.dump_python(self))}\n".encode()


_MADE_FOR = TypeAdapter(MadeFor)


def read_made_for(folder: Path) -> MadeFor | None:
    """What a folder was made for; None where it was made without `eval.baseline`.

    Raises:
        InputError: it is damaged, or of another version.
    """
    path = folder / BASELINE
    try:
        found = _MADE_FOR.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(f"{path}: cannot be read ({reason}); make the folder again") from None
    if found.version != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, found {found.version}; make the folder again")
    return found


def check_folder(folder: Path, wanted: MadeFor) -> None:
    """Refuse a folder that holds something else than what was begun of just this.

    Raises:
        InputError: it was made for another suite, by another recipe, with seeds that are not asked for now, or by
            something else.
        WorkError: a program has put something else in the place of a file of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: expected a folder, found a file")
    check_names(folder)
    found = read_made_for(folder)
    if found is None:
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise InputError(f"--out {folder}: holds something else than pictures of a baseline; choose another place")
        return
    if found.suite_digest != wanted.suite_digest:
        what = (
            f"the suite {found.suite} as it was before" if found.suite == wanted.suite else f"the suite {found.suite}"
        )
        raise InputError(f"--out {folder}: was made for {what}, not for {wanted.suite}; choose another place")
    if found.recipe_sha256 != wanted.recipe_sha256:
        what = f"the recipe {found.recipe} with other settings" if found.recipe == wanted.recipe else found.recipe
        raise InputError(f"--out {folder}: was made by {what}, not by {wanted.recipe}; choose another place")
    last, last_wanted = (made.first_seed + made.seeds - 1 for made in (found, wanted))
    if found.first_seed < wanted.first_seed or last > last_wanted:
        raise InputError(
            f"--out {folder}: was made with the seeds {found.first_seed} to {last}, which are not all asked for now;"
            " ask for all of them, and for more if you like, or choose another place"
        )


def check_names(folder: Path) -> None:
    """Refuse a folder where a program left a link, a pipe or a folder at a name that we read and write: what a link
    leads to would be overwritten, and a pipe waited for. Its `outputs.jsonl` is judged where it is read.

    Raises:
        InputError: the folder cannot be looked into.
        WorkError: there is one.
    """
    partials = [f".{name}.partial" for name in (*WRITTEN_WHOLE, OUTPUTS)]
    for name in (IMAGES, LOCK, LOG, *WRITTEN_WHOLE, *partials):
        with naming_place(folder / name), suppress(FileNotFoundError):
            mode = (folder / name).lstat().st_mode
            if not (stat.S_ISDIR(mode) if name == IMAGES else stat.S_ISREG(mode)):
                expected = "a folder" if name == IMAGES else "a file"
                raise WorkError(
                    f"{folder / name}: expected {expected}, found {_kind(mode)}; remove it and run the same command"
                    " again, or choose another place"
                )


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISREG, "a file"))
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "a pipe, a socket or a device")


@contextmanager
def hold(folder: Path) -> Iterator[BinaryIO]:
    """One command at a time works in a folder. A program inherits the lock: one that outlives us keeps it.

    Raises:
        InputError: another is at work in it, or it cannot be written to.
        WorkError: as `check_names`.
    """
    with naming_place(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_names(folder)
        handle = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(handle, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"--out {folder}: another command is at work in it, or the program of one that was killed: wait for its"
                " end, or end it"
            ) from None
        check_names(folder)  # another may have ended just now
        yield lock


def is_held(folder: Path, lock: BinaryIO) -> bool:
    """Whether the folder is still the one that was locked; a program may put another, or a link, in its place."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat((folder / LOCK).lstat(), os.fstat(lock.fileno()))
    return False


def clear(path: Path) -> None:
    """Remove what is at a name of ours: of a link the link, of a folder all of it."""
    with naming_place(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def begin(folder: Path, made_for: MadeFor) -> None:
    """Say what the folder is made for, and remove what does not tell what it will hold."""
    write_whole(folder / BASELINE, made_for.to_bytes())
    for name in (MANIFEST, FAILED):
        (folder / name).unlink(missing_ok=True)


def check_program(folder: Path, wanted: MadeFor) -> None:
    """Refuse to go on in a folder with pictures of a program that is another by now: they would pass for one model's.

    Raises:
        InputError: a file that the command names was changed, added or removed.
    """
    found = read_made_for(folder)
    before = found.program if found is not None else wanted.program
    changed = [n for n in sorted(before.keys() | wanted.program.keys()) if before.get(n) != wanted.program.get(n)]
    if changed:
        raise InputError(
            f"--out {folder}: holds pictures that the program made before {changed[0]} was changed; choose another"
            " place, or put it back"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A picture that was asked for and is not there, and why, in one line."""

    id: str
    seed: int
    error: str


def write_failed(folder: Path, failed: Iterable[Failed]) -> None:
    """Write `failed.csv`, whole; nothing failed, and it has a header alone."""
    write_whole(folder / FAILED, table_bytes(("id", "seed", "error"), [(f.id, f.seed, f.error) for f in failed]))


def read_failed(folder: Path) -> tuple[Failed, ...]:
    """The rows of `failed.csv`; none where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FAILED
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return tuple(Failed(id=row["id"], seed=int(row["seed"]), error=row["error"]) for row in rows)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); expected the columns id, seed, error") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What came of a baseline: pictures, of how many items, and how many that were asked for are not there."""

    pictures: int
    items: int
    failed: int


def count(pairs: Collection[Pair], failed: Sequence[Failed]) -> Counts:
    """Count what came of it."""
    return Counts(pictures=len(pairs), items=len({id for id, _ in pairs}), failed=len(failed))


def spell_pair(pair: Pair) -> str:
    """A pair in a message."""
    return f"{pair[0]} with seed {pair[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is seen of a picture: its size, and the sha256 of its bytes and of its pixels; or why it is none."""

    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    pixels_sha256: str = ""
    wrong: str = ""


def look_at(data: bytes) -> Look:
    """Decode a picture to its end, as 8-bit RGB."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return Look(wrong=f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
            if image.mode[0] in "IF":  # Pillow would clip what is above 255
                return Look(wrong=f"pixels of Pillow's mode {image.mode}, which are no colours of 8 bits")
            rgb = image.convert("RGB")
    except Image.DecompressionBombError:
        return Look(wrong=f"at most {MAX_PIXELS:,} pixels are read")
    except _DECODER_ERRORS as error:
        said = "not a picture of a known kind" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        return Look(wrong=one_line(said) or type(error).__name__)
    return Look(
        size=rgb.size,
        sha256=hashlib.sha256(data).hexdigest(),
        pixels_sha256=hashlib.sha256(rgb.tobytes()).hexdigest(),
    )


def look_at_file(path: Path) -> Look:
    """Look at a file; one that cannot be read is no picture."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            return Look(wrong="no regular file")
        if path.stat().st_size > MAX_BYTES:
            return Look(wrong=f"larger than {MAX_BYTES:,} bytes")
        return look_at(path.read_bytes())
    except FileNotFoundError:
        return Look(wrong="no such file")
    except OSError as error:
        return Look(wrong=f"cannot be read ({error.strerror})")


def mark_odd_sizes(looks: Sequence[Look]) -> list[Look]:
    """A model's pictures are of one size, that of most; those of another are none."""
    counted = Counter(look.size for look in looks if not look.wrong)
    usual = max(counted, key=lambda size: (counted[size], size), default=(0, 0))
    wrong = "{} x {} pixels, where most have {} x {}"
    return [
        look if look.wrong or look.size == usual else Look(wrong=wrong.format(*look.size, *usual)) for look in looks
    ]


def check_identical(looks: Mapping[Pair, Look], name: str, *, items_may_be_alike: bool = False) -> None:
    """Refuse two pictures that are pixel for pixel the same; two items with one seed may be, where that is said.

    Raises:
        WorkError: there are such.
    """
    first: dict[str, Pair] = {}
    same: tuple[Pair, Pair] | None = None
    for pair, look in looks.items():
        other = first.setdefault(look.pixels_sha256, pair)
        meant = items_may_be_alike and other[1] == pair[1]
        if other != pair and not meant and same is None:
            same = other, pair
    if same is not None:
        raise WorkError(
            f"{name}: of {len(looks):,} pictures {len(first):,} are different; those of {spell_pair(same[0])} and of"
            f" {spell_pair(same[1])} are the same, pixel for pixel; `deterministic=true` says that this is meant"
        )


def one_line(text: str, limit: int = 200) -> str:
    """What a program or a library said, on one line that a terminal takes."""
    line = " ".join(text.split())[:limit]
    return "".join(character if character.isprintable() else "?" for character in line)
