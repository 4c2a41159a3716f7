"""What came of a run: which images have a sound, why the others have none, and every row that left.

Only what commits vouch for counts. Images are counted unit by unit, so that memory follows a unit and not the run.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import pyarrow as pa

from sonify import layout
from sonify.engine.job import StoredReject
from sonify.engine.plan import iter_done
from sonify.engine.record import config_of_run
from sonify.installed import spell
from sonify.io.places import for_each
from sonify.io.tables import read_columns, read_rows
from sonify.keys import unescape_key
from sonify.rows import Reason
from sonify.stages.evidence import COLUMNS, LATER, Evidence, EvidenceTally, describe_weak, is_by_text, numbers
from sonify.stages.table import stages_of
from sonify.stores import Place

# A run of more units (a million images in units of 1,000) does not read all its tables only to end.
MOST_UNITS = 1000
# The stages whose rows are images or their scenes, in the order in which an image meets them.
OF_IMAGES = ("concepts", "checks", "pair", "render")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that left, with its stage, its extractor (empty where the stage has none) and its unit."""

    stage: str
    extractor: str
    unit: str
    row: StoredReject

    @property
    def name(self) -> str:
        """What left as its owner calls it: an image's path in the set, a recording's in its corpus."""
        return unescape_key(self.row.key) if self.stage in OF_IMAGES else self.row.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A drawn recording: its cosine, its limit (0.0: none), the concept that it was drawn for, the image's path."""

    cosine: float
    limit: float
    concept: str
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run's images by their fate, and how well their sounds match.

    Attributes:
        with_sound: images in the shards.
        without: how many others left at a stage for a reason, by both; of several the first that an image met. An
            archive that could not be read counts as one.
        evidence: what speaks for the sounds of the scenes, and what was refused in them.
        weakest: the sound whose cosine is the least above its limit.
    """

    with_sound: int
    without: Mapping[tuple[str, str], int]
    evidence: Evidence
    weakest: Match | None

    @property
    def sounds(self) -> int:
        """Recordings drawn for the scenes."""
        return self.evidence.sounds

    @property
    def weak(self) -> int:
        """Those of them that match weakly."""
        return self.evidence.weak

    @property
    def images(self) -> int:
        """All that were looked at and done."""
        return self.with_sound + sum(self.without.values())


def iter_rejects(run_dir: Place) -> Iterator[Reject]:
    """Yield every row that left a run, in the order of stages, units and rows.

    Raises:
        InputError: it is no run.
        WorkError: a table is missing or damaged.
    """
    for stage in stages_of(config_of_run(run_dir)):
        for stored in iter_done(run_dir, stage):
            for file in stored.commit.files:
                if file.path.startswith(f"{layout.REJECTS}/"):
                    rows = read_rows(run_dir / file.path, StoredReject)
                    unit = stored.commit.unit
                    yield from (Reject(stage=stage.name, extractor=stage.part, unit=unit, row=row) for row in rows)


def read_result(run_dir: Place) -> Result:
    """Count a run's images by their fate, as far as they are done.

    Raises:
        InputError: it is no run.
        WorkError: a table is missing or damaged.
    """
    tables: dict[str, list[tuple[str, str]]] = defaultdict(list)  # of each unit: stages and what they wrote of it
    config = config_of_run(run_dir)
    for stage in stages_of(config):
        for stored in iter_done(run_dir, stage) if stage.name in OF_IMAGES else ():
            tables[stored.commit.unit] += ((stage.key, file.path) for file in stored.commit.files)
    with_sound, without = 0, Counter[tuple[str, str]]()
    evidence = EvidenceTally(is_by_text(config.retrieval))
    weakest: Match | None = None
    for images, fates, pairs in for_each(run_dir, lambda unit: _read_unit(run_dir, unit), tables.values()):
        with_sound += len(images)
        without.update(fate for key, fate in fates.items() if key not in images)
        if pairs is not None:
            evidence.add(pairs)
            weakest = _weaker(weakest, weakest_in(pairs))
    return Result(
        with_sound=with_sound,
        without=dict(sorted(without.items(), key=lambda item: (-item[1], item[0]))),
        evidence=evidence.total(),
        weakest=weakest,
    )


def _read_unit(
    run_dir: Place, tables: Sequence[tuple[str, str]]
) -> tuple[frozenset[str], dict[str, tuple[str, str]], pa.Table | None]:
    """The rendered images of a unit, where and why others left, and its pairs."""
    by_folder: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for stage, path in tables:
        by_folder[path.partition("/")[0]].append((stage, path))
    rendered = [path for _, path in by_folder[layout.RENDERS]]
    paired = [path for _, path in by_folder[layout.PAIRS]]
    return (
        _images_in(run_dir, rendered[0] if rendered else None),
        _fates_in(run_dir, by_folder[layout.REJECTS]),
        read_columns(run_dir / paired[0], ["image", *COLUMNS], LATER) if paired else None,
    )


def _images_in(run_dir: Place, renders: str | None) -> frozenset[str]:
    if renders is None:
        return frozenset()
    return frozenset(read_columns(run_dir / renders, ["image"])["image"].to_pylist())


def _fates_in(run_dir: Place, tables: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Where and why each image of a unit left first; that a scene's fellow is missing is no cause."""
    fates: dict[str, tuple[str, str]] = {}
    for stage, path in tables:
        for row in read_rows(run_dir / path, StoredReject):
            if row.key not in fates or fates[row.key] == (stage, Reason.MISSING_SCENE):
                fates[row.key] = (stage, row.reason)
    return fates


def weakest_in(table: pa.Table) -> Match | None:
    """The weakest match of a table of pairs: that which is the least above its limit."""
    column = table["sources"].combine_chunks()
    cosines, limits = (numbers(column.values, name) for name in ("cosine", "limit"))
    if not len(cosines):
        return None
    at = int((cosines - limits).argmin())
    scene = int(np.searchsorted(column.offsets.to_numpy(), at, side="right")) - 1
    return Match(
        cosine=float(cosines[at]),
        limit=float(limits[at]),
        concept=column.values.field("concept")[at].as_py(),
        image=unescape_key(table["image"][scene].as_py()),
    )


def _weaker(first: Match | None, second: Match | None) -> Match | None:
    """The weaker of two matches; the first where they are alike."""
    return min(filter(None, (first, second)), key=lambda match: match.cosine - match.limit, default=None)


def describe_result(result: Result, run_dir: Place, by_text: bool = True) -> Iterator[str]:
    """What a run says at its end, a line each; `by_text`: whether matches are the text encoder's."""
    yield f"{result.with_sound:,} of {result.images:,} images have a sound: {run_dir / layout.SHARDS}"
    if result.without:
        why = ", ".join(f"{n:,} {reason} ({stage})" for (stage, reason), n in result.without.items())
        yield f"{result.images - result.with_sound:,} have none: {why}; each by name: {spell('rejects', run_dir)}"
    found = result.evidence
    if (worst := result.weakest) is None:
        return
    limit = f" (its limit: {worst.limit:.2f})" if worst.limit else ""
    weakest = f"cosine {worst.cosine:.2f}{limit}, is for {worst.concept!r} in {printable(worst.image)}"
    if found.weak:
        hint = "lower retrieval.limit.risk" if found.limited else "raise retrieval.min_cosine"
        yield (
            f"{found.weak:,} of {found.sounds:,} sounds match weakly ({describe_weak(found)}); the weakest, {weakest}:"
            f" listen to them, or {hint}"
        )
    elif not (by_text or found.limited):
        yield f"the weakest match of {found.sounds:,}, {weakest}"


def describe_refused(result: Result) -> Iterator[str]:
    """What else a run says at its end where scenes lack a sound that was named."""
    if refused := result.evidence.refused:
        why = ", ".join(f"{n:,} {reason}" for reason, n in refused.items())
        yield f"named in images with a sound, and not heard: {sum(refused.values()):,} concepts, {why}"


def write_rejects(rejects: Iterable[Reject], file: TextIO) -> None:
    """Write rejects as CSV; `key` is as in the run's tables, `name` as its owner calls it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["stage", "extractor", "unit", "reason", "key", "name", "scene", "detail"])
    for reject in rejects:
        row = reject.row
        cells = (reject.stage, reject.extractor, reject.unit, row.reason, row.key, reject.name, row.scene, row.detail)
        writer.writerow([printable(cell) for cell in cells])


def print_rejects(rejects: Iterable[Reject], file: TextIO) -> None:
    """Write a line for each, and how many there are."""
    reasons: Counter[str] = Counter()
    for reject in rejects:
        reasons[reject.row.reason] += 1
        stage = f"{reject.stage}/{reject.extractor}" if reject.extractor else reject.stage
        scene = f" [{reject.row.scene}]" if reject.row.scene else ""
        detail = f": {reject.row.detail}" if reject.row.detail else ""
        file.write(f"{stage:<16} {reject.row.reason:<14} {printable(reject.name + scene + detail)}\n")
    counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    file.write(f"{reasons.total():,} rejected{': ' if counts else ''}{counts}\n")


def printable(text: str) -> str:
    """Text that others wrote, as a terminal or a spreadsheet may have it: no control sequence gets through."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
