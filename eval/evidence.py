"""All vectors that a report rests on: every picture, sound and text of a suite, as each tower takes it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from eval.pictures import Made
from eval.suites.suite import Suite
from eval.towers.cache import Vectors
from eval.towers.tower import Judges, Tower, Way
from sonify.errors import InputError
from sonify.io.write import sha256_of


class Need(NamedTuple):
    """One way into the tower of a role: what a metric needs."""

    role: str
    way: Literal["images", "sounds", "texts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Vectors of one tower (M, D), found by the hash of an input's bytes, or by a text itself."""

    vectors_MD: np.ndarray
    row: Mapping[str, int]

    def take(self, keys: Iterable[str]) -> np.ndarray:
        """The vectors of these inputs, in their order."""
        return self.vectors_MD[[self.row[key] for key in keys]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The tables of a suite and of what was made for it."""

    suite: Suite
    judges: Judges
    tables: Mapping[Need, Table]

    def take(self, role: str, way: Literal["images", "sounds", "texts"], keys: Iterable[str]) -> np.ndarray:
        """The vectors (N, D) of inputs."""
        return self.tables[Need(role, way)].take(keys)


def tower_of(judges: Judges, role: str) -> Tower | None:
    """The tower of a role."""
    return getattr(judges, role)


def way_of(judges: Judges, need: Need) -> Way | None:
    """The way in; None where there is no tower, or it has no such way."""
    tower = tower_of(judges, need.role)
    return getattr(tower, need.way) if tower is not None else None


def gather(
    suite: Suite,
    made: Sequence[Made],
    judges: Judges,
    vectors: Vectors,
    needs: Collection[Need],
    texts: Mapping[str, Collection[str]],
) -> Evidence:
    """Bring all to vectors; what `vectors` keeps already costs nothing.

    Args:
        needs: which ways of which towers; those that there are not are left out.
        texts: by role, what its text way reads.

    Raises:
        InputError: a file of the suite is not there any more, or a tower cannot be had.
        DiskFull: no room is left for the vectors.
    """
    check_files(suite, {need.way for need in needs})
    pictures = _pictures_of(suite, made)
    sounds = {item.sound.sha256: suite.folder / item.sound.file for item in suite.items}
    tables: dict[Need, Table] = {}
    for need in sorted(needs):
        tower = tower_of(judges, need.role)
        if tower is None or way_of(judges, need) is None:
            continue
        if need.way == "texts":
            keys = sorted(set(texts.get(need.role, ())))
            found = vectors.embed_texts(tower, keys)
        else:
            files = pictures if need.way == "images" else sounds
            keys = list(files)
            embed = vectors.embed_pictures if need.way == "images" else vectors.embed_sounds
            found = embed(tower, [(files[key], key) for key in keys])
        tables[need] = Table(vectors_MD=found, row={key: row for row, key in enumerate(keys)})
    return Evidence(suite=suite, judges=judges, tables=tables)


def check_files(suite: Suite, ways: Collection[str]) -> None:
    """Refuse files of a suite that are others than when it was prepared; kept vectors would not tell.

    Args:
        ways: `images` are the references and the other real pictures, `sounds` the whole ones.

    Raises:
        InputError: one is not there, or is another.
    """
    files = [reference for item in suite.items for reference in item.references] if "images" in ways else []
    files += list(suite.others) if "images" in ways else []
    files += [item.sound for item in suite.items] if "sounds" in ways else []
    for stored in files:
        path = suite.folder / stored.file
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise InputError(f"{path}: cannot be read (is no regular file); prepare the suite again")
            found = sha256_of(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if found != stored.sha256:
            raise InputError(f"{path}: is not as it was prepared; prepare the suite again")


def _pictures_of(suite: Suite, made: Sequence[Made]) -> dict[str, Path]:
    """The references, the other real pictures and what was made, by hash; each once."""
    found: dict[str, Path] = {}
    for stored in [reference for item in suite.items for reference in item.references] + list(suite.others):
        found.setdefault(stored.sha256, suite.folder / stored.file)
    for picture in (picture for each in made for picture in each.pictures):
        found.setdefault(picture.sha256, picture.path)
    return found


def by_item(suite: Suite) -> dict[str, int]:
    """The place of each item."""
    return {item.id: place for place, item in enumerate(suite.items)}
