"""The result as a page of Markdown and as one line of JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.learning.collection import CLASSES
from benchmarks.learning.judging import Judged
from benchmarks.learning.statistics import Estimate, confusion, estimate
from benchmarks.learning.verdicts import CHANCE, Verdict

TITLES = {"a": "(a) by true class", "b": "(b) by `sonify` from captions", "c": "(c) shuffled"}
Results = Mapping[str, Mapping[str, Judged]]  # by pairs, then "audio" or "zeroed"


def estimates(judged: Results) -> dict[str, Estimate]:
    """Balanced accuracies of each model, and the paired differences that the verdicts need."""
    found: dict[str, Estimate] = {}
    for name, both in judged.items():
        audio, zeroed = both["audio"], both["zeroed"]
        found[name] = estimate(audio.true_R, audio.right_R)
        found[f"{name} zeroed"] = estimate(zeroed.true_R, zeroed.right_R)
        found[f"{name} - zeroed"] = estimate(audio.true_R, audio.right_R - zeroed.right_R)
    right = {name: both["audio"].right_R for name, both in judged.items()}
    for first, second in (("a", "c"), ("b", "a"), ("b", "c")):
        found[f"{first} - {second}"] = estimate(judged[first]["audio"].true_R, right[first] - right[second])
    return found


def markdown(
    found: Mapping[str, Estimate], judged: Results, tables: Mapping[str, Mapping[str, Any]], held: Sequence[Verdict]
) -> str:
    """The whole page."""
    lines = ["## Pairs made by sonify", ""]
    for title, table in tables.items():
        lines += [f"### {title}", "", *_table(["photographs of", *next(iter(table.values()))], _named(table)), ""]
    lines += [f"## Balanced accuracy on held-out recordings (chance {100 * CHANCE:.1f} %)", ""]
    header = ["pairs", "held-out audio", "audio zeroed", "difference"]
    lines += _table(header, [[TITLES[n], *(found[n + part] for part in ("", " zeroed", " - zeroed"))] for n in TITLES])
    lines += ["", f"(a) - (c): {found['a - c']}; (b) - (a): {found['b - a']}; (b) - (c): {found['b - c']}", ""]
    for name, title in TITLES.items():
        for part, one in judged[name].items():
            counts = confusion(one.true_R, one.seen_RS, len(CLASSES))
            lines += [f"### {title}, {part}: pictures by recording's class and by what the eye sees", ""]
            lines += [*_table(["", *CLASSES], [[of, *row] for of, row in zip(CLASSES, counts, strict=True)]), ""]
    lines += ["## Thresholds, written down before the runs", ""]
    lines += _table(["expected", "found", ""], [[v.expected, v.found, "pass" if v.passed else "FAIL"] for v in held])
    return "\n".join([*lines, ""])


def json_line(found: Mapping[str, Estimate], judged: Results, held: Sequence[Verdict], **facts: object) -> dict:
    """Everything that the page says, as plain values."""
    figures = {name: [round(value, 4) for value in (one.value, one.low, one.high)] for name, one in found.items()}
    counts = {
        f"{name} {part}": confusion(one.true_R, one.seen_RS, len(CLASSES)).tolist()
        for name, both in judged.items()
        for part, one in both.items()
    }
    passed = {verdict.expected: bool(verdict.passed) for verdict in held}
    return {"name": "learning", **facts, "balanced_accuracy": figures, "confusion": counts, "passed": passed}


def _named(table: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    return [[name, *row.values()] for name, row in table.items()]


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in shown]
