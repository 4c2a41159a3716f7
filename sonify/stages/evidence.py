"""What speaks for the sounds of a run and what was refused: which matches are weak, and counts over tables of pairs.

A run that was made before any of it was recorded has none: every field then says that nobody asked.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sonify.config import Retrieval
from sonify.retrieval.confirm import SPEECH_LIKELY
from sonify.rows import SourceClip

# A cosine that its limit was set for is right as often as the risk says; one so little above it hardly was let through.
MARGIN = 0.05
# Below this a recording is hardly what was asked for, by the text encoder: the bound under which the configurations
# with it drop a concept. Of other encoders no such bound was measured. A source with a limit of its own needs none.
WEAK_COSINE = 0.2
COUNTED = ("sounds", "limited", "near_limit", "low", "asked", "confirmed", "spoken", "weak", "near_misses")
COLUMNS, LATER = ("sources",), ("refused",)  # of pairs, to count


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Counts over scenes.

    Attributes:
        sounds: recordings that are heard in scenes.
        limited: those that had a limit to reach.
        near_limit: those of them that are within `MARGIN` of it.
        low: those without a limit whose cosine is below `WEAK_COSINE`, by the text encoder.
        asked: those about which a listener was asked.
        confirmed: those of them in which it heard the concept. In the others it heard nothing that tells, or the
            concept is of no class that it could be heard as.
        spoken: those in which it heard somebody speak.
        weak: those that are near their limit, low, or not confirmed.
        refused: concepts that were named and are not heard, by reason.
        near_misses: those of them for which there was a best clip, which was refused.
        presence: those of them of which a model said where it is: `implied`, `off_screen`, `visible`.
    """

    sounds: int
    limited: int
    near_limit: int
    low: int
    asked: int
    confirmed: int
    spoken: int
    weak: int
    refused: Mapping[str, int]
    near_misses: int
    presence: Mapping[str, int]


def weaknesses(source: SourceClip, by_text: bool) -> tuple[str, ...]:
    """What speaks against a match, in words for people; `by_text` says that the text encoder alone compared."""
    found = {
        f"within {MARGIN:g} of its limit": is_near(source.cosine, source.limit),
        f"cosine below {WEAK_COSINE:g}": by_text and is_low(source.cosine, source.limit),
        "not confirmed": is_unconfirmed(bool(source.heard_by), source.support),
    }
    return tuple(words for words, is_so in found.items() if is_so)


# Each takes numbers or arrays of them.


def is_near(cosine: Any, limit: Any) -> Any:
    """Whether a cosine hardly reached its limit."""
    return (limit > 0) & (cosine < limit + MARGIN)


def is_low(cosine: Any, limit: Any) -> Any:
    """Whether a cosine of the text encoder is low, where it had no limit."""
    return (limit <= 0) & (cosine < WEAK_COSINE)


def is_unconfirmed(asked: Any, support: Any) -> Any:
    """Whether a listener was asked about a clip and did not hear the concept in it."""
    return asked & (support <= 0)


def is_spoken(speech: Any) -> Any:
    """Whether somebody speaks in a clip, by what listened to it."""
    return speech >= SPEECH_LIKELY


def is_by_text(retrieval: Retrieval) -> bool:
    """Whether the text encoder alone compares."""
    return retrieval.encoder.kind == "text"


def describe_weak(evidence: Evidence) -> str:
    """Why the weak ones are weak; one may be so in two ways."""
    found = {
        f"within {MARGIN:g} of their limit": evidence.near_limit,
        f"below a cosine of {WEAK_COSINE:g}": evidence.low,
        "not confirmed by who listened": evidence.asked - evidence.confirmed,
    }
    return ", ".join(f"{number:,} {words}" for words, number in found.items() if number)


def weak_sounds(sources: pa.StructArray, by_text: bool) -> np.ndarray:
    """(N,) bool, whether each of N sources of a table has a weakness."""
    cosine, limit = numbers(sources, "cosine"), numbers(sources, "limit")
    weak = is_near(cosine, limit) | is_unconfirmed(_asked(sources), numbers(sources, "support"))
    return weak | is_low(cosine, limit) if by_text else weak


class EvidenceTally:
    """Counts over tables of pairs, of which `COLUMNS` and, where they are there, `LATER` are read."""

    def __init__(self, by_text: bool) -> None:
        self._by_text = by_text
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._presence: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Count a table's."""
        self._counts.update(_count_sources(_rows_in(table, "sources"), self._by_text))
        if "refused" not in table.column_names:
            return
        rows = _rows_in(table, "refused")
        self._refused.update(_values(rows, "reason"))
        self._presence.update(filter(None, _values(rows, "presence")))
        self._counts["near_misses"] += sum(clip != "" for clip in _values(rows, "clip"))

    def total(self) -> Evidence:
        """All that was counted."""
        return Evidence(
            refused=_most_first(self._refused),
            presence=_most_first(self._presence),
            **{name: self._counts[name] for name in COUNTED},
        )


def count_evidence(tables: Iterable[pa.Table], by_text: bool) -> Evidence:
    """Count over all tables."""
    tally = EvidenceTally(by_text)
    for table in tables:
        tally.add(table)
    return tally.total()


def _most_first(found: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _count_sources(sources: pa.StructArray, by_text: bool) -> dict[str, int]:
    cosine, limit, asked = numbers(sources, "cosine"), numbers(sources, "limit"), _asked(sources)
    found = {
        "limited": limit > 0,
        "near_limit": is_near(cosine, limit),
        "low": is_low(cosine, limit) & by_text,
        "asked": asked,
        "confirmed": asked & ~is_unconfirmed(asked, numbers(sources, "support")),
        "spoken": is_spoken(numbers(sources, "speech")),
        "weak": weak_sounds(sources, by_text),
    }
    return {"sounds": len(cosine), **{name: int(mask.sum()) for name, mask in found.items()}}


def _rows_in(table: pa.Table, column: str) -> pa.StructArray:
    return table[column].combine_chunks().flatten()


def numbers(sources: pa.StructArray, name: str) -> np.ndarray:
    """(N,) a number of each source; 0 where the table is of before it was recorded."""
    if sources.type.get_field_index(name) < 0:
        return np.zeros(len(sources))
    return sources.field(name).to_numpy()


def _asked(sources: pa.StructArray) -> np.ndarray:
    if sources.type.get_field_index("heard_by") < 0:
        return np.zeros(len(sources), bool)
    return np.array([value != "" for value in sources.field("heard_by").to_pylist()], bool)


def _values(rows: pa.StructArray, name: str) -> list[str]:
    return rows.field(name).to_pylist()
