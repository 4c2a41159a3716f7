"""Score what a model made for a suite.

    python -m eval.run --suite SUITE --manifest FOLDER --out REPORT

SUITE is what `eval.prepare` wrote, FOLDER what `train.generate` or `eval.baseline` filled. REPORT gets `report.json`,
`scores.csv`, `scores.tex`, `items.csv` and a page to look at and listen to, `index.html`. Vectors are kept in `vectors`
beside REPORT, by what was looked at and by which weights, so that a second report costs arithmetic.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.run", extra="eval"))

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.evidence import check_files, tower_of
from eval.measures import DISTANCES, MEANS
from eval.met import Levels, levels_of, read_met
from eval.page import write_page
from eval.pictures import Made, pictures_digest, read_made
from eval.report import (
    ITEMS,
    LATEX,
    REPORT,
    SCORES,
    VERSION,
    Report,
    check_out,
    items_csv,
    left_out,
    made_and_judged,
    printable,
    report_bytes,
    say_floor,
    say_model,
    say_number,
    say_value,
    scores_csv,
    scores_latex,
    warn_of_random,
)
from eval.score import Scored, distance_estimates, gather_for, needs_of, roles_of, score
from eval.statistics import Estimate
from eval.suites.config import METRICS
from eval.suites.suite import Suite, read_suite
from eval.towers import config
from eval.towers.cache import Vectors
from eval.towers.opened import libraries_of, load_towers, make_towers, open_judges
from eval.towers.tower import Judges
from sonify.config.loader import make_settings
from sonify.errors import InputError, did_you_mean
from sonify.io.write import naming_full_disk, naming_place, replacing
from sonify.stores import Place, to_place
from sonify.terminal import Parser, argument_of, run_command

VECTORS = "vectors"
TABLE_COLUMNS = 120  # what a table of scores needs, where the terminal is narrower or there is none
TOWERS = "towers"  # the configuration that comes along
PARTS = {"landscapes_itw": ("landscapes", "itw")}  # of kinds of suites that are several corpora


def main(argv: Sequence[str] | None = None, prog: str = "eval.run") -> int:
    """Run the command and return its exit code."""
    arguments = build_parser(prog).parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog=prog, description="Score what a model made for a suite.")
    parser.add_argument("--suite", type=Path, required=True, help="what eval.prepare wrote")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FOLDER", help="the model's pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder of the report")
    parser.add_argument(
        "--towers", help="YAML of the networks that judge (default: those of the suite, else those that come along)"
    )
    parser.add_argument("--metrics", nargs="+", help="a part of the suite's metrics", metavar="METRIC")
    parser.add_argument(
        "--trained-on",
        nargs="+",
        type=argument_of(to_place),
        metavar="RUN|CSV",
        help="what the model was trained on: runs, releases, published datasets, tables of recordings (eval.met)",
    )
    parser.add_argument("--vectors", type=Path, help="where vectors are kept (default: `vectors` beside REPORT)")
    parser.add_argument("--seed", type=int, default=0, help="of resamples and derangements (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="towers.KEY=VALUE", help="one tower in another way")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.seed < 0:
        raise InputError(f"--seed: expected 0 or more, found {arguments.seed}")
    # overrides after --metrics are read as metrics
    metrics = [word for word in arguments.metrics or () if "=" not in word]
    overrides = [*(word for word in arguments.metrics or () if "=" in word), *arguments.overrides]
    suite = read_suite(arguments.suite)
    vectors = arguments.vectors or arguments.out.absolute().parent / VECTORS
    check_out(arguments.out, {"the suite": suite.folder, "the folder of the pictures": arguments.manifest})
    _check_vectors(vectors, suite.folder, arguments.out)
    towers = choose_towers(suite, arguments.towers, overrides)
    request = Request(
        suite=suite,
        manifest=arguments.manifest,
        vectors=vectors,
        metrics=choose_metrics(suite, metrics),
        trained_on=tuple(arguments.trained_on or ()),
        towers=towers,
        seed=arguments.seed,
    )
    made, report, scored, levels = evaluate(request, open_judges(towers, roles_of(request.metrics)))
    write_report(arguments.out, suite, made, report, scored, levels)
    tell(report)
    sys.stdout.write(f"{arguments.out / 'index.html'}\n{arguments.out / REPORT}\n")


def _check_vectors(vectors: Path, suite: Path, out: Path) -> None:
    """Refuse to keep vectors in the suite, or in the report, which is replaced whole."""
    place = vectors.resolve()
    for what, folder in (("the suite", suite), ("the report", out)):
        if folder.resolve() in (place, *place.parents):
            raise InputError(f"--vectors {vectors}: lies in {what} ({folder}); choose another place")


def choose_towers(suite: Suite, towers: str | None, overrides: Sequence[str] = ()) -> config.Towers:
    """The towers that are asked for, else those that the suite was prepared with, else those that come along.

    Raises:
        InputError: the file, a key or a path is wrong.
    """
    of_suite = suite.settings.get("towers")
    if towers is None and of_suite and not (isinstance(of_suite, Mapping) and not any(of_suite.values())):
        return make_towers(of_suite, f"{suite.folder}: the suite's towers", overrides)
    return load_towers(towers or TOWERS, overrides)


def choose_metrics(suite: Suite, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics that are asked for, else the suite's.

    Raises:
        InputError: there is none of that name.
    """
    if wrong := next((name for name in asked or () if name not in METRICS), None):
        if (metric := _metric_of(wrong)) is not None:
            raise InputError(f"--metrics: {wrong} is a score that the metric {metric} gives; ask for {metric}")
        raise InputError(
            f"--metrics: no metric {wrong!r}{did_you_mean(wrong, METRICS)}; expected some of {', '.join(METRICS)}"
        )
    return tuple(asked or suite.settings.get("metrics") or METRICS)


def _metric_of(score: str) -> str | None:
    names = {mean.name: mean.asked for mean in MEANS}
    names |= {name: distance.asked for distance in DISTANCES for name in distance.names}
    return names.get(score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be scored; `vectors` is where they are kept (None: nowhere), `trained_on` what `eval.met` reads.

    `towers` is what the judges were opened from, for the record; None: they are the caller's own.
    """

    suite: Suite
    manifest: Path
    vectors: Path | None
    metrics: tuple[str, ...] = METRICS
    trained_on: tuple[Place, ...] = ()
    towers: config.Towers | None = None
    seed: int = 0


def evaluate(request: Request, judges: Judges) -> tuple[Made, Report, Scored, Levels]:
    """Score the pictures of a manifest; what a notebook calls, with towers of its own if it likes.

    Raises:
        InputError: the pictures are not of this suite, none can be used, or a tower cannot be had.
        DiskFull: no room is left for the vectors.
    """
    suite, trained_on = request.suite, request.trained_on
    made = read_made(suite, request.manifest)
    # what the page shows and no metric looks at, before the work
    check_files(suite, {"images", "sounds"} - {need.way for need in needs_of(request.metrics)})
    levels = levels_of(suite.items, read_met(trained_on) if trained_on else None)
    evidence = gather_for(suite, [made], judges, Vectors(request.vectors), request.metrics)
    scored = score(evidence, made, request.metrics, levels.out if trained_on else None, request.seed)
    report = Report(
        version=VERSION,
        suite=suite.name,
        suite_folder=str(suite.folder),
        suite_digest=suite.digest,
        wanted=suite.wanted,
        found=len(suite.items),
        missing_in_suite=dict(suite.missing),
        model=made.model,
        model_sha256=made.model_sha256,
        manifest=str(made.folder),
        pictures_sha256=pictures_digest(made),
        items_without_picture=made.missing,
        unusable=dict(made.unusable),
        failed=len(made.failed),
        identical=made.identical,
        settings=dict(made.settings),
        heard=made.heard,
        image_px=made.size,
        met={str(level): count for level, count in levels.counts.items()},
        trained_on=tuple(map(str, trained_on)),
        said_of_training=made.trained_on,
        domain=_domain(suite, made),
        towers=_towers_of(judges),
        judged_by=request.towers.model_dump(mode="json") if request.towers else None,
        vectors=str(request.vectors) if request.vectors else None,
        metrics=request.metrics,
        seed=request.seed,
        libraries=libraries_of(judges, request.towers),
        scores=scored.scores,
    )
    return made, report, scored, levels


def distances_on(report: Report, ids: Collection[str], other: Report) -> dict[str, Estimate | str]:
    """The distances of a report again, from the vectors that are kept: on a part of its items, and of these on one
    picture for each seed that the other report has too, since a distance depends on how many pictures there are.

    Raises:
        InputError: the suite or the pictures are not there any more or were changed, or the towers cannot be had.
    """
    if report.judged_by is None:
        raise InputError("its towers were a caller's own")
    suite = read_suite(Path(report.suite_folder))
    made = read_made(suite, Path(report.manifest))
    if (suite.digest, pictures_digest(made)) != (report.suite_digest, report.pictures_sha256):
        raise InputError(f"{report.manifest} or {report.suite_folder} is another than when the report was made")
    distances = [distance.asked for distance in DISTANCES if distance.asked in report.metrics]
    towers = make_settings(report.judged_by, config.Towers, "the report's towers", check_paths=False)
    judges = open_judges(towers, roles_of(distances))
    for role, sha256 in sorted({pair for one in report.scores for pair in one.towers.items()}):
        tower = tower_of(judges, role)
        if role in roles_of(distances) and (tower is None or tower.sha256 != sha256):
            raise InputError(f"towers.{role} has other weights than when the report was made")
    vectors = Vectors(Path(report.vectors) if report.vectors else None)
    evidence = gather_for(suite, [made], judges, vectors, distances)
    shared = {(picture.item.id, picture.seed) for picture in read_made(suite, Path(other.manifest)).pictures}
    first = {(picture.item.id, picture.seed): picture for picture in reversed(made.pictures)}
    pictures = [first[key] for key in sorted(first.keys() & shared) if key[0] in ids]
    if not pictures:
        raise InputError("no picture of one has the item and the seed of one of the other")
    return distance_estimates(evidence, pictures, distances)


def _domain(suite: Suite, made: Made) -> tuple[str, ...]:
    """What the model is said to be trained on of the suite's corpus, such as vggsound_train of a suite of VGGSound."""
    corpora = PARTS.get(kind := str(suite.settings.get("kind")), (kind,))
    return tuple(name for name in made.trained_on if name.lower().startswith(corpora))


def _towers_of(judges: Judges) -> dict[str, str]:
    towers = {field.name: tower_of(judges, field.name) for field in fields(Judges)}
    return {role: f"{tower.name}: {tower.model}" for role, tower in towers.items() if tower is not None}


def write_report(out: Path, suite: Suite, made: Made, report: Report, scored: Scored, levels: Levels) -> None:
    """Write a report's folder, whole, in the place of an older one.

    Raises:
        InputError: the folder holds something else, or cannot be written to.
        DiskFull: no room is left.
    """
    check_out(out, {"the suite": suite.folder, "the folder of the pictures": made.folder})
    with naming_place(out), naming_full_disk(out), replacing(out) as folder:
        (folder / REPORT).write_bytes(report_bytes(report))
        (folder / SCORES).write_bytes(scores_csv(report))
        (folder / LATEX).write_bytes(scores_latex(report))
        (folder / ITEMS).write_bytes(items_csv(suite, made, levels.of, scored.items))
        write_page(folder, suite, made, report, scored.items)


def tell(report: Report) -> None:
    """Print the scores, and what was left out of them."""
    title = Text(printable(f"{say_model(report)} on {report.suite}"))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    parts = {each.on for each in report.scores}
    for column in ("metric", *(["on"] if len(parts) > 1 else []), "value [95 %]", "floor", "ceiling", "pictures"):
        table.add_column(
            column, justify="right" if column in ("floor", "ceiling", "pictures") else "left", no_wrap=True
        )
    for each in (each for each in report.scores if each.estimate is not None):
        on = [each.on] if len(parts) > 1 else []
        ceiling = say_number(each.beside.get("ceiling"))
        cells = (each.metric, *on, say_value(each), say_floor(each), ceiling, f"{each.images:,}")
        table.add_row(*(Text(cell) for cell in cells))
    Console(file=sys.stdout, width=max(Console().width, TABLE_COLUMNS)).print(table)
    warning = warn_of_random(report)
    lines = [*_unmeasured(report), *_notes(report), *made_and_judged(report), *left_out(report)]
    for line in [*([warning] if warning else []), *lines]:
        sys.stdout.write(f"{printable(line)}\n")


def _unmeasured(report: Report) -> list[str]:
    return _by_text("not measured: ", {each.metric: each.reason for each in report.scores if each.estimate is None})


def _notes(report: Report) -> list[str]:
    notes = {each.metric: each.estimate.note for each in report.scores if each.estimate and each.estimate.note}
    return _by_text("", notes)


def _by_text(before: str, texts: Mapping[str, str]) -> list[str]:
    """A line for each text, with all that it is said of."""
    named: dict[str, list[str]] = {}
    for name, text in texts.items():
        named.setdefault(text, []).append(name)
    return [f"{before}{', '.join(names)}: {text}" for text, names in named.items()]
