"""What an examination found: a row each, how it is told, and what all of them come to."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# Colours and the like, whose letters are printable: `ESC [ 31 m`, and titles, `ESC ] ... BEL`.
ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class Outcome(StrEnum):
    """What a finding means for the work that would be started."""

    OK = "ok"
    NOTE = "note"  # it will run, though not as one may expect
    FAULT = "fault"  # it would stop, or do something else than was asked
    NOT_TRIED = "not tried"  # `found` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    `about` names it (`gpu`, `llava`, `jobs/rayjob.yaml:34`), `found` says what was seen and `todo` what mends it, each
    in one line; `shown` are lines to look at, such as an answer or a table. `facts` are for programs and for a later
    comparison: of JSON's types, with units in their names.
    """

    about: str
    outcome: Outcome
    found: str
    todo: str = ""
    shown: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


def one_line(text: object, longest: int = 400) -> str:
    """What somebody else said in one line of at most so many characters, with nothing in it that a terminal obeys."""
    line = " ".join(_shown(str(text)).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in ESCAPES.sub("", text))


def tell(findings: Iterable[Finding]) -> Iterator[str]:
    """The lines of a report, as the findings come in; names of files are in them, and what models say."""
    for finding in findings:
        took = "" if finding.seconds is None or finding.seconds < 0.1 else f" ({finding.seconds:.1f} s)"
        yield _shown(f"{finding.outcome:9}  {finding.about}: {finding.found}{took}")
        if finding.todo:
            yield _shown(f"{'':11}{finding.todo}")
        yield from (_shown(f"{'':11}{line}") for line in finding.shown)


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON has them."""
    return [asdict(finding) for finding in findings]


def count_faults(findings: Iterable[Finding]) -> int:
    """How many things would stop the work or bend it."""
    return sum(finding.outcome is Outcome.FAULT for finding in findings)
