"""Whether a model may have met what it is judged by: by the ids of what it was trained on, never from memory.

    python -m eval.met RUN [RUN ...] --out recordings.csv

writes what a model was trained on as ids that others can join their suites with. RUN is a run of `sonify` (its whole
pool), a training run or a released model (`recordings.txt`), a published dataset, or such a table itself:

    id,kind,seen      kind: youtube | freesound | sha256 | bbc; seen: pair | audio (audio where there is no such column)

`pair`: the recording was seen together with its own picture; `audio`: only its sound was heard.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.met", extra="eval"))

import argparse
import csv
import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

from eval.suites.suite import Item
from sonify import layout
from sonify.config import FolderSounds
from sonify.dataset.format import CHECKSUMS, RECORD
from sonify.dataset.read import hash_files, read_clips
from sonify.dataset.render_from import open_published
from sonify.engine.record import config_of_run
from sonify.errors import InputError
from sonify.io.places import child, is_file, read_whole
from sonify.io.write import naming_place, sha256_of, write_whole
from sonify.pool import clip_columns
from sonify.stores import Place, to_folder, to_place
from sonify.terminal import Parser, argument_of, run_command

Level = Literal["in", "audio", "out", "unknown"]
LEVELS: tuple[Level, ...] = Level.__args__
RECORDINGS = "recordings.txt"  # of a release, as `train.checkpoints` has it; to import that takes torch
TABLE = "recordings.csv"
COLUMNS = ("id", "kind", "seen")
SEEN = ("pair", "audio")
_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "youtube": (re.compile(r"[A-Za-z0-9_-]{11}"), "11 letters of a video's address"),
    "freesound": (re.compile(r"[1-9][0-9]{0,11}"), "a sound's number"),
    "sha256": (re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits"),
    "bbc": (re.compile(r"[A-Za-z0-9_-]{1,60}"), "a recording's name without its ending"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What a model was trained on, as ids (`youtube:ID`): with their pictures, and by sound alone.

    `unnamed` recordings have no id that anyone else could know them by: an item may be among them and not be found.
    """

    pairs: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()
    unnamed: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of ids that there are; an item without one of these cannot be looked up."""
        return frozenset(name.partition(":")[0] for name in self.pairs | self.audio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The level of each item, by id."""

    of: Mapping[str, Level]

    @property
    def counts(self) -> dict[Level, int]:
        """Items by level, each named."""
        counted = Counter(self.of.values())
        return {level: counted[level] for level in LEVELS}

    @property
    def out(self) -> tuple[str, ...]:
        """The items that the model has not met, in the suite's order."""
        return tuple(name for name, level in self.of.items() if level == "out")


def level_of(item: Item, met: Met) -> Level:
    """`in`: the recording was seen as a pair; `audio`: its sound was heard; `out`: neither; `unknown`: not to be told.

    The strongest of an item's ids counts.
    """
    ids = set(item.ids)
    if ids & met.pairs:
        return "in"
    if ids & met.audio:
        return "audio"
    return "out" if any(name.partition(":")[0] in met.kinds for name in ids) else "unknown"


def levels_of(items: Iterable[Item], met: Met | None) -> Levels:
    """The level of every item; all are `unknown` where nothing is known of the training data."""
    nothing = Met()
    return Levels(of={item.id: level_of(item, met or nothing) for item in items})


def read_met(sources: Iterable[Place]) -> Met:
    """Read what a model was trained on from all of these: tables, runs, releases, published datasets.

    Raises:
        InputError: one is none of these, or damaged.
        WorkError: a run's table is damaged.
    """
    return reduce(_join, (_read(place) for place in sources), Met())


def _join(one: Met, other: Met) -> Met:
    return Met(pairs=one.pairs | other.pairs, audio=one.audio | other.audio, unnamed=one.unnamed + other.unnamed)


def _read(place: Place) -> Met:
    if is_file(place):
        return _read_names(place) if place.name == RECORDINGS else _read_table(place)
    if is_file(place / TABLE):
        return _read_table(place / TABLE)
    if is_file(place / layout.RUN):
        return _read_run(place)
    if is_file(place / RECORD):
        return _read_published(place)
    for names in (place / RECORDINGS, place / "pipeline" / RECORDINGS):
        if is_file(names):
            return _read_names(names)
    raise InputError(
        f"{place}: expected what a model was trained on: a {TABLE} ({','.join(COLUMNS)}), a run of `sonify`, a training"
        f" run that has ended, a released model ({RECORDINGS}) or a published dataset; found none of these"
    )


def _read_table(path: Place) -> Met:
    found: dict[str, set[str]] = {seen: set() for seen in SEEN}
    # a table that a spreadsheet wrote begins with a mark of its encoding
    reader = csv.DictReader(io.StringIO(_text_of(path, "utf-8-sig"), newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if not {"id", "kind"} <= set(names):
            raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, found {','.join(names)[:200]!r}")
        for row in reader:
            if wrong := _fault_of(row):
                raise InputError(f"{path}, line {reader.line_num}: {wrong}")
            found[row.get("seen") or "audio"].add(f"{row['kind']}:{row['id']}")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no row of a table ({error})") from None
    if not any(found.values()):
        raise InputError(f"{path}: names no recording")
    return Met(pairs=frozenset(found["pair"]), audio=frozenset(found["audio"]))


def _fault_of(row: Mapping[str | None, str | None]) -> str:
    kind, name, seen = row["kind"] or "", row["id"] or "", row.get("seen") or "audio"
    if None in row:
        return f"expected {','.join(COLUMNS)}, found more values than columns"
    if kind not in _FORMS:
        return f"kind: expected one of {', '.join(_FORMS)}, found {kind[:80]!r}"
    form, meaning = _FORMS[kind]
    if not form.fullmatch(name):
        return f"id: expected that of {kind}, {meaning}; found {name[:80]!r}"
    if seen not in SEEN:
        return f"seen: expected one of {', '.join(SEEN)}, found {seen[:80]!r}"
    return ""


def _text_of(path: Place, encoding: str) -> str:
    try:
        return read_whole(path).decode(encoding)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from None


def _read_names(path: Place) -> Met:
    """The recordings of a release, as `sonify` names them; only their sounds were heard, with other pictures."""
    names = {line for line in _text_of(path, "utf-8").splitlines() if line}
    if not names:
        raise InputError(f"{path}: names no recording")
    return _met_of(names)


def _met_of(recordings: Iterable[str], hashes: Mapping[str, Collection[str]] | None = None) -> Met:
    """What the names of recordings say, such as `freesound/1234`; those that say nothing go by the `hashes` of their
    files, where there are some."""
    found: set[str] = set()
    unnamed = 0
    for recording in set(recordings):
        named = _id_of(recording)
        ids = {named} if named else {f"sha256:{sha256}" for sha256 in (hashes or {}).get(recording, ())}
        found |= ids
        unnamed += not ids
    return Met(audio=frozenset(found), unnamed=unnamed)


def _id_of(recording: str) -> str:
    """The public id in a recording's name, for a folder's `metadata.csv` behind the folder's own name; none where the
    name is that of somebody's file."""
    kind, _, name = "/".join(recording.split("/")[-2:]).partition("/")
    return f"{kind}:{name}" if kind in _FORMS and _FORMS[kind][0].fullmatch(name) else ""


def _read_published(place: Place) -> Met:
    folder = open_published(place)
    for name, found in hash_files(place, sorted(folder.clips.values())):
        if found != folder.files[name]:
            raise InputError(f"{place}/{name}: another sha256 than {CHECKSUMS} says: get the folder again")
    return _met_of(clip.recording for unit in folder.clips for clip in read_clips(folder, unit))


def _read_run(run_dir: Place) -> Met:
    """The pool of a run, with what is held out for validation: by that, too, a model is chosen.

    The files of a folder of sounds are hashed, as nothing else tells them from others; this takes as long as reading
    them. A file that is there no more leaves its recording unnamed.
    """
    folders = {one.name: one.path for one in config_of_run(run_dir).audio.sources if isinstance(one, FolderSounds)}
    table = clip_columns(run_dir, ["recording", "corpus", "file"])
    if not table.num_rows:
        raise InputError(f"{run_dir}: its pool holds no clip; expected a run of which the stage `pool` is done")
    hashes: dict[str, set[str]] = defaultdict(set)
    files = {tuple(row.values()) for row in table.to_pylist()}
    for recording, corpus, file in sorted(files):
        if corpus in folders and not _id_of(recording) and is_file(there := child(folders[corpus], file)):
            hashes[recording].add(sha256_of(there))
    return _met_of((recording for recording, *_ in files), hashes)


def write_recordings(met: Met, out: Path) -> None:
    """Write the table by which others look their items up; a recording that was seen both ways stands there once.

    Raises:
        InputError: no recording has an id, or the place cannot be written.
    """
    if not met.kinds:
        raise InputError(
            f"--out {out}: none of {met.unnamed} recordings has an id that others could know it by; name them"
            " youtube/ID or freesound/ID in the column `recording` of metadata.csv, or leave the files where they were"
        )
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in sorted(met.pairs | met.audio):
        kind, _, public = name.partition(":")
        writer.writerow((public, kind, "pair" if name in met.pairs else "audio"))
    with naming_place(out):
        write_whole(out, buffer.getvalue().encode())


def summary(met: Met) -> str:
    """What was found, in a line."""
    counted = Counter(name.partition(":")[0] for name in met.pairs | met.audio)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counted.items())) or "none"
    pairs, unnamed = f"{len(met.pairs):,} seen as pairs", f"{met.unnamed:,} without an id, which nobody can look up"
    return f"recordings: {kinds} ({pairs}); {unnamed}"


def main(argv: Sequence[str] | None = None, prog: str = "eval.met") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Write what a model was trained on as ids that others can look up.")
    parser.add_argument("sources", type=argument_of(to_place), nargs="+", metavar="RUN", help="what it was trained on")
    parser.add_argument("--out", type=argument_of(to_folder), required=True, help=f"the table, such as {TABLE}")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    met = read_met(arguments.sources)
    write_recordings(met, arguments.out)
    sys.stdout.write(f"{summary(met)}\n")
