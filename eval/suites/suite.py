"""A suite as it lies on the disk, written by `python -m eval.prepare`, read by all that evaluates.

SUITE/suite.json          what it was made from, what was wanted and found, and the digest of what a score depends on
SUITE/items.jsonl         one `Item` a line
SUITE/sounds/ID.flac      the whole sound: mono, 16 bit, its own rate
SUITE/windows/ID.flac     the window of it that a model of short clips hears
SUITE/images/ID.png       reference pictures: the centre square, bicubic (ID+2.png and so on where there are several)
SUITE/others/*.png        other real pictures of the corpus, for the floor of the distances
SUITE/sounds.csv          the windows, SUITE/sounds_whole.csv the whole sounds: the lists that models are given
SUITE/pool.csv            the sounds among which a rank is sought: id, sha256
SUITE/missing.csv         what the published list names and was not found or could not be used: id, reason, detail
"""

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from eval.suites.config import without_places
from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.places import is_below

SUITE = "suite.json"
ITEMS = "items.jsonl"
SOUNDS = "sounds.csv"
SOUNDS_WHOLE = "sounds_whole.csv"
POOL = "pool.csv"
MISSING = "missing.csv"
OTHERS = "others"
VERSION = 2
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file of the suite, relative to its folder, with the hash of its bytes."""

    __pydantic_config__ = _STRICT

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One entry of a suite.

    `recording` is the unit of independence: items of one recording are not independent. `ids` say what the recording
    is elsewhere (`youtube:ID`, `freesound:ID`, `sha256:...` of the file as it was published): by them it is known
    whether a model has met it. `window` is None where nothing is heard in it, `references` are empty where the corpus
    has no pictures. `group` is a part of the suite.
    """

    __pydantic_config__ = _STRICT

    id: str
    recording: str
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    split: str
    group: str
    sound: Stored
    seconds: float
    sample_rate_hz: int
    window: Stored | None
    window_start_sec: float
    references: tuple[Stored, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A whole suite; `pool` are the ids of the items whose sounds and pictures a rank is sought among."""

    folder: Path
    name: str
    digest: str
    wanted: int
    missing: Mapping[str, int]  # of those that were wanted, by reason
    replaced: int = 0  # of these, in whose place another of their class stands
    settings: Mapping[str, Any]  # the configuration that it was made from
    items: tuple[Item, ...]
    others: tuple[Stored, ...]
    pool: tuple[str, ...]
    pool_sha256: str

    @property
    def twin_references(self) -> int:
        """How many items have a reference picture that another recording has too: no independent evidence."""
        recordings: dict[str, set[str]] = defaultdict(set)
        for item in self.items:
            for stored in item.references:
                recordings[stored.sha256].add(item.recording)
        return sum(any(len(recordings[stored.sha256]) > 1 for stored in item.references) for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What `suite.json` holds."""

    __pydantic_config__ = _STRICT

    version: int
    name: str
    digest: str
    wanted: int
    found: int
    missing: dict[str, int]
    replaced: int = 0
    twin_references: int = 0
    settings: dict[str, Any]
    others: tuple[Stored, ...]


_ITEM = TypeAdapter(Item)
_RECORD = TypeAdapter(_Record)


def suite_digest(suite: Suite) -> str:
    """The digest of all that a score depends on; where the suite and its corpus lie is not in it, nor who judges."""
    return digest_of(
        {
            "name": suite.name,
            "wanted": suite.wanted,
            "missing": dict(suite.missing),
            "replaced": suite.replaced,
            "settings": without_places(suite.settings),
            "items": [_ITEM.dump_python(item, mode="json") for item in suite.items],
            "others": [stored.sha256 for stored in suite.others],
            "pool": suite.pool_sha256,
        }
    )


def read_suite(folder: Path) -> Suite:
    """Read a prepared suite.

    Raises:
        InputError: it is none, a line of it is damaged, or it is another than when it was made.
    """
    folder = folder.absolute()
    try:
        record = _RECORD.validate_json((folder / SUITE).read_bytes())
        lines = (folder / ITEMS).read_bytes().splitlines()  # of a text they would be at U+2028 as well
        pool_bytes = (folder / POOL).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a suite ({_reason(error)}); `python -m eval.prepare` writes one") from None
    if record.version != VERSION:
        raise InputError(
            f"{folder / SUITE}: expected version {VERSION}, found {record.version}; prepare the suite again"
        )
    items = tuple(_read_item(folder, number, line) for number, line in enumerate(lines, start=1))
    suite = Suite(
        folder=folder,
        name=record.name,
        digest=record.digest,
        wanted=record.wanted,
        missing=record.missing,
        replaced=record.replaced,
        settings=record.settings,
        items=items,
        others=record.others,
        pool=tuple(row["id"] for row in csv.DictReader(io.StringIO(pool_bytes.decode("utf-8"), newline=""))),
        pool_sha256=hashlib.sha256(pool_bytes).hexdigest(),
    )
    if suite_digest(suite) != suite.digest:
        raise InputError(
            f"{folder}: is not as it was prepared ({ITEMS}, {POOL} or {SUITE} was changed); prepare it again"
        )
    return suite


def _read_item(folder: Path, number: int, line: bytes) -> Item:
    try:
        item = _ITEM.validate_json(line)
    except ValidationError as error:
        raise InputError(f"{folder / ITEMS}, line {number}: {_reason(error)}; prepare the suite again") from None
    files = [item.sound, *item.references, *([item.window] if item.window else [])]
    if outside := next((stored.file for stored in files if not is_below(stored.file)), None):
        raise InputError(f"{folder / ITEMS}, line {number}: names {outside!r}, which is not inside the suite")
    return item


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
    return getattr(error, "strerror", None) or str(error)


def item_line(item: Item) -> bytes:
    """The line of `items.jsonl`."""
    return _ITEM.dump_json(item) + b"\n"


def record_bytes(suite: Suite) -> bytes:
    """What `suite.json` holds of a suite."""
    record = _Record(
        version=VERSION,
        name=suite.name,
        digest=suite.digest,
        wanted=suite.wanted,
        found=len(suite.items),
        missing=dict(suite.missing),
        replaced=suite.replaced,
        twin_references=suite.twin_references,
        settings=dict(suite.settings),
        others=suite.others,
    )
    return _RECORD.dump_json(record, indent=2) + b"\n"


def list_bytes(suite: Suite, whole: bool) -> bytes:
    """A list of sounds as models are given it, `sounds_whole.csv` or `sounds.csv`, with the paths of where the suite
    lies now: those in its own lists are of where it was made. Windows in which nothing is heard are left out."""
    rows = []
    for item in suite.items:
        stored = item.sound if whole else item.window
        if stored is not None:
            seconds = item.seconds if whole else _window_seconds(item, suite.settings["heard"])
            row = (item.id, suite.folder / stored.file, round(seconds, 6), item.sample_rate_hz, stored.sha256)
            rows.append(row)
    return table_bytes(("id", "sound", "seconds", "sample_rate_hz", "sha256"), rows)


def _window_seconds(item: Item, heard: Mapping[str, Any]) -> float:
    if heard["windows"] == "all":
        return item.seconds
    return min(item.seconds, round(heard["seconds"] * item.sample_rate_hz) / item.sample_rate_hz)


def table_bytes(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV as all those of a suite are written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
