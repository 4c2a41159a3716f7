"""ATTRIBUTION.md: who made the recordings that are heard, a line each."""

import sqlite3
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from sonify.publish.markdown import escape
from sonify.publish.rows import AUDIO

ATTRIBUTION = "ATTRIBUTION.md"
LONGEST_CREDIT = 2000  # names and links are never as long; what is longer is no credit

_HEAD = """# Attribution

The recordings that are heard in this dataset, by corpus and licence as the corpora state them.
"""
_WITH_AUDIO = "What is in this folder of them are their mixes, in `audio`.\n"
_WITHOUT_AUDIO = "None of them is in this folder.\n"


def write_attribution(out: Path, clips: Iterable[tuple[str, str, str, str, str, str]]) -> None:
    """Write a line for each recording from clips' (corpus, recording, file, text, licence, attribution), in any order.

    A recording that is credited in two ways has two lines: no credit is lost. Memory does not follow the clips.
    """
    with sqlite3.connect("") as spool, (out / ATTRIBUTION).open("w", encoding="utf-8", newline="\n") as file:
        spool.execute("CREATE TABLE clip (corpus, recording, file, text, licence, attribution)")
        spool.executemany("INSERT INTO clip VALUES (?, ?, ?, ?, ?, ?)", clips)
        rows = spool.execute(
            "SELECT corpus, licence, recording, min(file), min(text), attribution FROM clip"
            " GROUP BY corpus, licence, recording, attribution ORDER BY 1, 2, 3, 6"
        )
        file.write(_HEAD + (_WITH_AUDIO if (out / AUDIO).is_dir() else _WITHOUT_AUDIO))
        for corpus, of_corpus in groupby(rows, key=lambda row: row[0]):
            file.write(f"\n## {escape(corpus)}\n")
            for licence, of_licence in groupby(of_corpus, key=lambda row: row[1]):
                file.write(f"\n### {escape(licence)}\n\n")
                file.writelines(_line(*row[2:]) for row in of_licence)


def _line(recording: str, name: str, text: str, attribution: str) -> str:
    """`name` is the file in the corpus; a recording that has no public id is named by it."""
    shown = escape(recording, longest=500) if recording else escape(name, longest=500)
    credit = escape(attribution, longest=LONGEST_CREDIT) or "no attribution given"
    return f"- {shown}: {escape(text)} ({credit})\n" if text else f"- {shown} ({credit})\n"
