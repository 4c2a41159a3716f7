"""Vectors are kept by the content that they are of, so that a second report costs arithmetic.

FOLDER/SPACE/NAME.npy   (N, D) float32
FOLDER/SPACE/NAME.json  of what: the hash of the tower, its preprocessing, the inputs' sha256 in order, that of the .npy

SPACE is a digest of tower and preprocessing. NAME is one of the .json, which is written last: vectors without it do not
count. Files are never changed, so that several processes may use a folder at once; what two of them make twice is
there twice. Whoever removes the folder loses time and nothing else.

N  inputs, D  width of a vector
"""

import hashlib
import io
import json
import logging
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import track

from eval.towers.inputs import read_picture, read_sound
from eval.towers.tower import Tower, Way
from sonify.errors import InputError, WorkError
from sonify.io.commits import digest_of
from sonify.io.write import naming_full_disk, naming_place, write_atomically

log = logging.getLogger(__name__)

Sense = Literal["images", "sounds", "texts"]
Vector = np.ndarray
File = tuple[Path, str]  # with the sha256 of its bytes

BATCH: Mapping[Sense, int] = {"images": 64, "sounds": 8, "texts": 256}
# A shard is written when so much is made, or so much time has gone: a kill costs a minute, and files stay few.
SHARD_INPUTS = 4096
SHARD_SEC = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """What a shard's .json holds."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    tower: str
    preprocessing: str
    inputs: tuple[str, ...]
    sha256: str


# Its header is a Python literal, whose parser says many things of a wrong one.
_NO_ARRAY = (ValueError, OSError, EOFError, MemoryError, ArithmeticError, SyntaxError, TypeError, LookupError)
_NO_ARRAY += (AttributeError, RuntimeError, TokenError)
_INDEX = TypeAdapter(_Index)


class Vectors:
    """Embeds what was not embedded before, and keeps it in a folder; without one for as long as this object lives."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.absolute() if folder is not None else None
        self._spaces: dict[str, _Space] = {}

    def embed_pictures(self, tower: Tower, pictures: Sequence[File]) -> np.ndarray:
        """The (N, D) float32 vectors of picture files, in their order.

        Raises:
            InputError: a file that is decoded is not there, is not that of its sha256, or no picture.
            DiskFull: no room is left.
        """
        return self._embed(tower, "images", [sha256 for _, sha256 in pictures], lambda n: read_picture(*pictures[n]))

    def embed_sounds(self, tower: Tower, sounds: Sequence[File]) -> np.ndarray:
        """As `embed_pictures`, of sound files."""
        return self._embed(tower, "sounds", [sha256 for _, sha256 in sounds], lambda n: read_sound(*sounds[n]))

    def embed_texts(self, tower: Tower, texts: Sequence[str]) -> np.ndarray:
        """As `embed_pictures`, of texts."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        return self._embed(tower, "texts", keys, lambda n: texts[n])

    def _embed(self, tower: Tower, sense: Sense, keys: Sequence[str], read: Callable[[int], Any]) -> np.ndarray:
        way: Way | None = getattr(tower, sense)
        if way is None:
            raise InputError(f"{tower.name}: takes no {sense}; give another tower for what needs them")
        space = self._space(tower, sense, way)
        known = space.read(keys)
        missing = {key: n for n, key in reversed(list(enumerate(keys))) if key not in known}
        if missing:
            what = f"{tower.name}: {sense}"
            batches = _batches(sorted(missing.items(), key=lambda item: item[1]), BATCH[sense])
            console = Console(stderr=True)
            try:
                for batch in track(batches, what, console=console, disable=not console.is_terminal):
                    rows_ND = _checked(way.embed([read(n) for _, n in batch]), len(batch), what)
                    space.add([key for key, _ in batch], rows_ND)
            finally:  # what was made before a file that cannot be read, or Ctrl-C
                space.write()
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    def _space(self, tower: Tower, sense: Sense, way: Way) -> "_Space":
        name = digest_of([tower.sha256, sense, way.preprocessing])[:32]
        if name not in self._spaces:
            self._spaces[name] = _Space(self._folder, name, tower.sha256, way.preprocessing)
        return self._spaces[name]


class _Space:
    """The vectors of one way into one tower: those that are at hand, where others lie, and new ones to be written."""

    def __init__(self, folder: Path | None, name: str, tower: str, preprocessing: str) -> None:
        self._folder = folder
        self._name = name
        self._tower = tower
        self._preprocessing = preprocessing
        self._known: dict[str, Vector] = {}
        self._shards: dict[str, _Index | None] = {}  # None is one that does not count
        self._new: list[str] = []
        self._written = time.monotonic()

    def read(self, keys: Iterable[str]) -> Mapping[str, Vector]:
        """All vectors at hand, with those of the keys that lie in the folder; it grows by what is added."""
        self._written = time.monotonic()
        wanted = set(keys) - self._known.keys()
        if wanted:
            self._list()
        for shard, index in self._shards.items():
            if index is None or wanted.isdisjoint(index.inputs):
                continue
            if (rows_ND := self._load(shard, index)) is not None:
                self._take(index.inputs, rows_ND)
        return self._known

    def add(self, keys: Sequence[str], rows_ND: np.ndarray) -> None:
        """Take up new vectors; they are written when they are many, or some time has gone."""
        self._take(keys, rows_ND)
        self._new += keys
        if len(self._new) >= SHARD_INPUTS or time.monotonic() - self._written > SHARD_SEC:
            self.write()

    def _take(self, keys: Sequence[str], rows_ND: np.ndarray) -> None:
        width = next((len(row) for row in self._known.values()), rows_ND.shape[1])
        if rows_ND.shape[1] != width:
            raise InputError(
                f"tower {self._tower}: expected vectors of width {width} as before, found {rows_ND.shape[1]}: two"
                " networks go by this hash; give each its own"
            )
        self._known |= zip(keys, rows_ND, strict=True)

    def write(self) -> None:
        """Write the new vectors as a shard."""
        new, self._new = self._new, []
        self._written = time.monotonic()
        if self._folder is None or not new:
            return
        stored = io.BytesIO()
        np.save(stored, np.stack([self._known[key] for key in new]).astype("<f4"))
        data = stored.getvalue()
        index = _Index(
            tower=self._tower,
            preprocessing=self._preprocessing,
            inputs=tuple(new),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        listed = json.dumps(asdict(index)).encode() + b"\n"
        path = f"{self._name}/{_name_of(listed)}"
        with naming_full_disk(self._folder), naming_place(self._folder):
            write_atomically(self._folder, f"{path}.npy", data)
            write_atomically(self._folder, f"{path}.json", listed)
        self._shards[_name_of(listed)] = index

    def _list(self) -> None:
        """Read the indices of shards that were not there before."""
        folder = self._folder / self._name if self._folder is not None else None
        if folder is None or not folder.is_dir():
            return
        for path in sorted(folder.glob("*.json")):
            if path.stem not in self._shards:
                self._shards[path.stem] = self._read_index(path)

    def _read_index(self, path: Path) -> _Index | None:
        listed = _read(path)
        if listed is None:  # another process has found it damaged
            return None
        if _name_of(listed) != path.stem:
            self._withdraw(path.stem, "its vectors are made again")
            return None
        try:
            index = _INDEX.validate_json(listed)
        except ValidationError:  # whole, and of another version
            return None
        if (index.tower, index.preprocessing) != (self._tower, self._preprocessing):
            self._withdraw(path.stem, "its vectors are made again", "of another tower or preprocessing")
            return None
        return index

    def _load(self, shard: str, index: _Index) -> np.ndarray | None:
        """The (N, D) vectors of a shard; None where it is damaged."""
        assert self._folder is not None
        data = _read(self._folder / self._name / f"{shard}.npy") or b""
        if hashlib.sha256(data).hexdigest() == index.sha256:
            rows_ND = _rows_of(data)
            if rows_ND is not None and len(rows_ND) == len(index.inputs):
                return rows_ND
        self._withdraw(shard, f"its {len(index.inputs)} vectors are made again")
        return None

    def _withdraw(self, shard: str, then: str, wrong: str = "damaged") -> None:
        assert self._folder is not None
        log.warning("%s: %s; %s", self._folder / self._name / shard, wrong, then)
        self._shards[shard] = None
        with naming_place(self._folder):
            for ending in ("json", "npy"):
                (self._folder / self._name / f"{shard}.{ending}").unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise InputError(f"{path}: cannot be read (is no regular file); choose another folder for the vectors")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); choose another folder for the vectors") from error


def _rows_of(data: bytes) -> np.ndarray | None:
    """The (N, D) vectors that a .npy holds; None where it holds anything that `_checked` would not have let in."""
    try:
        rows_ND = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except _NO_ARRAY:
        return None
    whole = rows_ND.ndim == 2 and rows_ND.dtype == np.float32 and bool(np.isfinite(rows_ND).all())
    return rows_ND if whole and rows_ND.shape[1] else None


def _name_of(listed: bytes) -> str:
    return hashlib.sha256(listed).hexdigest()[:32]


def _batches(items: Iterable[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    left = iter(items)
    return list(iter(lambda: list(islice(left, size)), []))


def _checked(rows: Any, inputs: int, what: str) -> np.ndarray:
    """What a tower gave, refused where it is not a vector for each input."""
    found = getattr(rows, "shape", ()), str(getattr(rows, "dtype", type(rows).__name__))
    if len(found[0]) != 2 or found[0][0] != inputs or not found[0][1] or found[1] != "float32":
        raise InputError(f"{what}: expected ({inputs}, D) float32 from the tower, found {found[0]} {found[1]}")
    if not np.isfinite(rows).all():
        raise WorkError(f"{what}: the tower gives NaN or infinity: its weights are damaged")
    return rows
