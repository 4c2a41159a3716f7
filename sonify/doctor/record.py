"""An examination that was recorded, beside a later one: which answers, cosines, sizes and versions differ.

A recording is what `sonify doctor --record FILE` keeps. Times differ always and are not compared, nor is what a machine
has; outcomes are, of what was found about models.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.errors import InputError
from sonify.io.places import read_whole
from sonify.stores import Place

# Of numbers how far they may lie apart: other libraries, threads and devices move a cosine in its last digits, and
# bfloat16 in its third; a VAE's bfloat16 takes some hundredths of a dB.
TOLERANCES: Mapping[str, float] = {"cosines": 0.01, "psnr_db": 0.5, "mean": 0.01, "deviation": 0.01}
# What was shown and played: where it was another, other answers are to be expected.
PICTURE, SOUNDS = "picture_sha256", "sounds"
OF_PICTURE = ("answer", "finished", "concepts", "reason", "medium", "psnr_db")
OF_SOUNDS = ("rows_won", "columns_won", "cosines")
OF_MODELS = ("model", "identity", "size_bytes", "shape", "dimension", "confirmed", "mean", "deviation")
COMPARED = (PICTURE, SOUNDS, *OF_MODELS, *OF_PICTURE, *OF_SOUNDS)
# From what one wishes for to what one does not; what is not looked at any more is last.
WORSE = (Outcome.OK, Outcome.NOTE, Outcome.NOT_TRIED, Outcome.FAULT, None)
LONGEST_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The findings of an examination and the versions of the libraries that it was made with."""

    findings: tuple[Finding, ...]
    versions: Mapping[str, str]


def read_examination(place: Place) -> Examination:
    """Read what `sonify doctor --record` wrote.

    Raises:
        InputError: it cannot be read, or is no recording.
    """
    try:
        document = json.loads(read_whole(place))
        findings = tuple(_finding(row) for row in document["findings"])
        return Examination(findings=findings, versions=dict(document["versions"]))
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # text that is not UTF-8 is a ValueError
        raise InputError(f"{place}: expected a recording of `sonify doctor --record FILE`: record it again") from error


def _finding(row: dict[str, Any]) -> Finding:
    typed = {"outcome": Outcome(row["outcome"]), "shown": tuple(row["shown"]), "facts": dict(row["facts"])}
    return Finding(**(row | typed))


def compare_examinations(before: Examination, after: Examination) -> Iterator[Finding]:
    """What differs beyond `TOLERANCES`, of models and versions, each a finding.

    A note is what explains others or is better than it was: a version, what was shown or played, an outcome.
    """
    differences = [
        *_compare_findings(before.findings, after.findings),
        *(
            _difference(Outcome.NOTE, "versions", name, before.versions.get(name), after.versions.get(name))
            for name in sorted({*before.versions, *after.versions})
            if before.versions.get(name) != after.versions.get(name)
        ),
    ]
    yield from differences
    if not differences:
        yield Finding(about="compared", outcome=Outcome.OK, found="models and versions are as they were recorded")


def _compare_findings(before: Sequence[Finding], after: Sequence[Finding]) -> Iterator[Finding]:
    then, now = ({one.about: one for one in findings} for findings in (before, after))
    compared = [one.about for one in (*before, *after) if not one.facts.keys().isdisjoint(COMPARED)]
    for about in dict.fromkeys(compared):
        was, found = then.get(about), now.get(about)
        outcomes = [one.outcome if one else None for one in (was, found)]
        if outcomes[0] != outcomes[1]:
            is_worse = WORSE.index(outcomes[1]) > WORSE.index(outcomes[0])
            yield _difference(Outcome.FAULT if is_worse else Outcome.NOTE, about, "it", *outcomes)
        if was and found:
            yield from _compare_facts(about, was.facts, found.facts)


def _compare_facts(about: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Finding]:
    explained: set[str] = set()
    for shown, follows in ((PICTURE, OF_PICTURE), (SOUNDS, OF_SOUNDS)):
        if before.get(shown) != after.get(shown):
            explained.update(follows)
            yield _difference(Outcome.NOTE, about, shown, before.get(shown), after.get(shown))
    for name in (*OF_MODELS, *OF_PICTURE, *OF_SOUNDS):
        was, found = before.get(name), after.get(name)
        if name not in explained and not _alike(was, found, TOLERANCES.get(name, 0.0)):
            yield _difference(Outcome.FAULT, about, name, was, found)


def _difference(outcome: Outcome, about: str, what: str, before: Any, after: Any) -> Finding:
    return Finding(
        about="compared",
        outcome=outcome,
        found=f"{about}: {what} was {_spelt(before)}, and is {_spelt(after)}",
        facts={"about": about, "what": what, "before": before, "after": after},
    )


def _alike(before: Any, after: Any, tolerance: float) -> bool:
    """Whether two values are the same, numbers within a tolerance, in lists of one length as well."""
    if isinstance(before, list) and isinstance(after, list):
        same_length = len(before) == len(after)
        return same_length and all(_alike(was, found, tolerance) for was, found in zip(before, after, strict=True))
    if tolerance and isinstance(before, int | float) and isinstance(after, int | float):
        # of what was written with four digits, the difference has no more
        return round(abs(before - after), 6) <= tolerance
    return before == after


def _spelt(value: Any) -> str:
    return "not there" if value is None else one_line(json.dumps(value, ensure_ascii=False), LONGEST_CHARS)
