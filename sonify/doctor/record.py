"""A recorded examination beside a later one: which answers, cosines, sizes and versions differ.

A recording is what `sonify doctor --record FILE` keeps. Times differ always and are not compared, nor is what a machine
has; outcomes are, of what was found about models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sonify.doctor.findings import Finding, Outcome
from sonify.errors import InputError
from sonify.io.places import read_bytes
from sonify.stores import Place

MAX_BYTES = 64 << 20


class Kind(StrEnum):
    """What differs."""

    OUTCOME = "outcome"
    ANSWER = "answer"
    NUMBER = "number"
    SIZE = "size"
    MODEL = "model"
    INPUT = "input"  # another picture was shown, so that other answers are to be expected
    VERSION = "version"


# The facts that are compared. Of numbers how far they may lie apart: other libraries, threads and devices move a cosine
# in its last digits, and bfloat16 in its third; a VAE's bfloat16 takes some hundredths of a dB.
TOLERANCES: Mapping[str, float] = {"cosines": 0.01, "psnr_db": 0.5, "mean": 0.01, "deviation": 0.01}
COMPARED: Mapping[str, Kind] = {
    "picture_sha256": Kind.INPUT,
    "sounds": Kind.INPUT,
    "model": Kind.MODEL,
    "identity": Kind.MODEL,
    "is_gated": Kind.MODEL,
    "size_bytes": Kind.SIZE,
    "shape": Kind.SIZE,
    "dimension": Kind.SIZE,
    "answer": Kind.ANSWER,
    "finished": Kind.ANSWER,
    "concepts": Kind.ANSWER,
    "reason": Kind.ANSWER,
    "medium": Kind.ANSWER,
    "confirmed": Kind.ANSWER,
    "rows_won": Kind.NUMBER,
    "columns_won": Kind.NUMBER,
    **dict.fromkeys(TOLERANCES, Kind.NUMBER),
}
# What follows from the picture that was shown.
OF_PICTURE = frozenset(("answer", "finished", "concepts", "reason", "medium", "psnr_db"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The findings of an examination and the versions of the libraries that it was made with."""

    findings: tuple[Finding, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that was otherwise; what is on one side only is None on the other."""

    kind: Kind
    about: str
    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.about}: {self.what} was {_spelt(self.before)}, and is {_spelt(self.after)}"


def read_recording(place: Place) -> Recording:
    """Read what `sonify doctor --record` wrote.

    Raises:
        InputError: it cannot be read, or is no recording.
    """
    try:
        data = read_bytes(place, MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from error
    try:
        document = json.loads(data, parse_int=_whole)
        findings = tuple(_finding(row) for row in _typed(document["findings"], list))
        versions = {str(name): _typed(value, str) for name, value in _typed(document["versions"], dict).items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # text that is not UTF-8 is a ValueError
        raise InputError(f"{place}: expected a recording of `sonify doctor --record FILE`: record it again") from error
    return Recording(findings=findings, versions=versions)


def _whole(digits: str) -> int | float:
    """A whole number; one that no arithmetic with fractions takes is infinite."""
    return int(digits) if len(digits) < 300 else float(digits)


def _finding(row: Mapping[str, Any]) -> Finding:
    seconds = row["seconds"]
    return Finding(
        about=_typed(row["about"], str),
        outcome=Outcome(row["outcome"]),
        found=_typed(row["found"], str),
        todo=_typed(row["todo"], str),
        shown=tuple(_typed(line, str) for line in _typed(row["shown"], list)),
        facts=_typed(row["facts"], dict),
        seconds=None if seconds is None else float(seconds),
    )


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def compare(before: Recording, after: Recording) -> list[Difference]:
    """What differs beyond `TOLERANCES`, of models and versions."""
    return [*_compare_findings(before.findings, after.findings), *_compare_versions(before.versions, after.versions)]


def _compare_findings(before: Sequence[Finding], after: Sequence[Finding]) -> Iterator[Difference]:
    then, now = ({one.about: one for one in findings if _is_compared(one)} for findings in (before, after))
    known_now = {one.about: one.outcome for one in after}
    known_then = {one.about: one.outcome for one in before}
    for about in dict.fromkeys((*then, *now)):
        was, found = known_then.get(about), known_now.get(about)
        if was != found:
            yield Difference(kind=Kind.OUTCOME, about=about, what="it", before=was, after=found)
        if about in then and about in now:
            yield from _compare_facts(about, then[about].facts, now[about].facts)


def _is_compared(finding: Finding) -> bool:
    return not COMPARED.keys().isdisjoint(finding.facts)


def _compare_facts(about: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    same_picture = before.get("picture_sha256") == after.get("picture_sha256")
    for name, kind in COMPARED.items():
        was, found = before.get(name), after.get(name)
        comparable = same_picture or name not in OF_PICTURE
        if comparable and not _alike(was, found, TOLERANCES.get(name, 0.0)):
            yield Difference(kind=kind, about=about, what=name, before=was, after=found)


def _alike(before: Any, after: Any, tolerance: float) -> bool:
    """Whether two values are the same, numbers within a tolerance, in lists of one length as well."""
    if isinstance(before, list) and isinstance(after, list):
        same_length = len(before) == len(after)
        return same_length and all(_alike(was, found, tolerance) for was, found in zip(before, after, strict=True))
    if tolerance and isinstance(before, int | float) and isinstance(after, int | float):
        # of what was written with four digits, the difference has no more
        return round(abs(before - after), 6) <= tolerance
    return before == after


def _compare_versions(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield Difference(
                kind=Kind.VERSION, about="versions", what=name, before=before.get(name), after=after.get(name)
            )


def _spelt(value: Any) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False)
