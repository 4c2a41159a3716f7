"""The pool's clips while scenes are chosen: who may be heard, under what conditions, and how often each is.

Of each clip a number and a few bytes are held; memory follows the pool, and not the scenes.
"""

from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import repeat
from pathlib import PurePosixPath

import numpy as np

from sonify import layout
from sonify.errors import WorkError
from sonify.io.places import load_array
from sonify.media.fingerprint import fingerprint
from sonify.mixing import pcm_sha256
from sonify.publish.committed import CommittedUnit, Table
from sonify.publish.licences import conditions_of, in_order
from sonify.publish.rows import PublishedClip
from sonify.rows import Clip, SoundRef
from sonify.stages.pool import names_of

COLUMNS = ("clip", "recording", "corpus", "file", "licence", "sha256")
# A corpus has few licences, and very many clips.
conditions = lru_cache(maxsize=4096)(conditions_of)


class Pool:
    """What is known of each clip while scenes are chosen."""

    def __init__(self, tables: Iterable[tuple[CommittedUnit, Table]], excluded: frozenset[str]) -> None:
        self._units: list[CommittedUnit] = []
        self._numbers: dict[str, int] = {}
        self._licence_of = array("l")
        self._excluded = bytearray()
        self.named: set[str] = set()  # lines of the exclusion list that name something here
        self._uses = array("q")
        licences: dict[str, int] = {}
        for unit, table in tables:
            self._units.append(unit)
            for row in table.columns(COLUMNS).to_pylist():
                self._numbers[row["clip"]] = len(self._numbers)
                self._licence_of.append(licences.setdefault(row["licence"], len(licences)))
                named = excluded & _names(row) if excluded else frozenset()
                self.named |= named
                self._excluded.append(bool(named))
                self._uses.append(0)
        self.licences = tuple(licences)

    def licence_of(self, clip: str) -> str:
        """The licence of a clip, as its corpus writes it."""
        return self.licences[self._licence_of[self._number(clip)]]

    def is_excluded(self, clip: str) -> bool:
        """Whether the exclusion list names the clip or its recording."""
        return bool(self._excluded[self._number(clip)])

    def hear(self, clips: Iterable[str]) -> None:
        """Note that a published scene uses these clips."""
        for clip in clips:
            self._uses[self._number(clip)] += 1

    def uses(self, clip: str) -> int:
        """How many published sources are this clip."""
        return self._uses[self._number(clip)]

    def _number(self, clip: str) -> int:
        if clip not in self._numbers:
            raise WorkError(f"the pool holds no clip {clip!r} although a pair uses it; run `sonify verify`")
        return self._numbers[clip]

    def heard(self, sample_rate_hz: int) -> Iterator[tuple[str, list[PublishedClip]]]:
        """The name of each pool unit of which something is heard, and those clips in its order.

        Raises:
            WorkError: the samples are not those that were measured.
        """
        for unit in self._units:
            table = unit.table(layout.clips(unit.name))
            rows = [(row, clip) for row, clip in enumerate(table.rows(Clip)) if self.uses(clip.clip)]
            if rows:
                try:
                    array = load_array(unit.run_dir / layout.audio(unit.name))
                except ValueError as error:  # its header is not one
                    raise WorkError(f"the pool's samples of unit {unit.name} are damaged: `sonify verify`") from error
                samples = (array[row] for row, _ in rows)
                with ThreadPoolExecutor() as threads:  # a fingerprint takes 5 ms, nearly all in numpy
                    clips = threads.map(_published, (clip for _, clip in rows), samples, repeat(sample_rate_hz))
                yield unit.name, list(clips)


def _names(row: dict[str, str]) -> frozenset[str]:
    """Under what a clip may be excluded."""
    ref = SoundRef(
        corpus=row["corpus"], file=row["file"], recording=row["recording"], text="", licence="", attribution=""
    )
    without_ending = PurePosixPath(ref.key).with_suffix("").as_posix()
    return names_of(ref) | {row["clip"], row["sha256"], without_ending}


def _published(clip: Clip, samples: np.ndarray, sample_rate_hz: int) -> PublishedClip:
    if pcm_sha256(samples) != clip.sha256:
        raise WorkError(
            f"the pool's samples of {clip.clip!r} are damaged; `sonify verify` with --repair withdraws them"
        )
    return PublishedClip(
        **{name: getattr(clip, name) for name in Clip.__slots__},
        conditions=in_order(conditions(clip.licence)),
        fingerprint=fingerprint(samples, sample_rate_hz),
    )
