"""What a table of models and suites holds, and its forms: `table.json`, `table.csv`, `table.tex`, `table.md`, and
`table.html`, a page that needs no other file. The same reports give the same bytes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from eval.page import page_head, page_style
from eval.report import ALL, ARROWS, UNKNOWN, csv_bytes, latex_escaped, latex_table, printable, say_number
from eval.statistics import Difference
from sonify.io.write import write_whole

VERSION = 1
SIGNS = {"higher": "↑", "lower": "↓"}
MARKS = {"better": "+", "worse": "-"}
AT_FLOOR = "°"
IN_OR_OUT = "in or out"
CSV_COLUMNS = (
    *("model", "control", "suite", "suite_digest", "met", "metric", "on", "better", "value", "low", "high", "floor"),
    *("at_floor", "images", "items", "recordings", "against", "difference", "difference_low", "difference_high", "p"),
    *("p_holm", "compared_items", "verdict", "note"),
)
FORMS = ("table.csv", "table.tex", "table.md", "table.html", "table.json")
CSS = """
body { max-width: none; }
.masthead .warn { margin: 0.75rem 0; }
.models { width: auto; font-size: 0.8125rem; }
.models th, .models td { padding: 0.3rem 0.4rem; }
.models th, .models td { white-space: nowrap; vertical-align: top; border-left: 1px solid var(--line); }
.models sup { color: var(--muted); }
.models .control:not(.control ~ .control) { border-left: 3px double var(--ink); }
.models .suite th { padding-top: 1rem; border-left: 0; }
.models th:first-child { position: sticky; left: 0; background: var(--paper); }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A model's score in a column; without a value `why` says why.

    `at_floor`: it is a mean whose interval does not clear its floor. `difference` is from the chosen model, on the
    `compared_items` that both have; `verdict` is `better`, `worse`, or what `eval.compare` says in their place.
    `notes` are numbers of the table's.
    """

    model: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    floor: str = ""
    at_floor: bool = False
    images: int = 0
    items: int = 0
    recordings: int = 0
    difference: Difference | None = None
    p_holm: float | None = None
    compared_items: int = 0
    verdict: str = ""
    why: str = ""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A score on a suite, over `all` items or those `out` of what the models can have met; a cell for each model."""

    metric: str
    on: str
    better: str
    definition: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteColumns:
    """The columns of a suite; `met` is what each model may have met of it, `warnings` what makes its numbers none."""

    name: str
    digest: str
    wanted: int
    found: int
    met: Mapping[str, str]
    met_notes: Mapping[str, tuple[int, ...]]
    notes: tuple[int, ...]
    warnings: tuple[str, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A model of the table; `control` is what it is where it is none. Its digest may be another on each suite."""

    name: str
    model: str
    control: str
    reports: Mapping[str, str]
    model_sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All of it; `family` is how many tests the p were adjusted for, `note` what has to be said above the table.

    `untested` says of a control, and of a score that random projections judge, why it is in no test.
    """

    version: int = VERSION
    against: str | None
    alpha: float
    seed: int
    family: int
    untested: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    lines: tuple[Line, ...]
    suites: tuple[SuiteColumns, ...]
    notes: tuple[str, ...]


def write_table(table: Table, out: Path) -> None:
    """Write DIR's five files, each whole, the record last.

    Raises:
        DiskFull: no room is left.
        InputError: the folder cannot be written to.
    """
    record = json.dumps(asdict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = (table_latex(table), table_markdown(table), table_html(table), record)
    for name, data in zip(FORMS, (table_csv(table), *(text.encode() for text in texts)), strict=True):
        write_whole(out / name, data)


def legend(table: Table) -> list[str]:
    """How the table is to be read, a sentence each."""
    lines = ["Values with intervals of 95 % over recordings; ↑ higher is better, ↓ lower."]
    controls = [line.name for line in table.lines if line.control]
    if table.against is None:
        lines.append("No differences: no model was chosen from which they are (--against).")
    elif not table.family:
        lines.append(f"No mark says better or worse than {table.against}: there is no test in the table.")
    else:
        lines.append(
            f"+ better and - worse than {table.against}, at a p of at most {table.alpha:g}, paired and adjusted by Holm"
            f" for the {table.family:,} tests of the table; without a mark no difference is shown, which does not mean"
            " that there is none."
        )
    if table.untested.keys() - set(controls):
        lines.append("Scores that random projections judge are in no test and have no such mark: they say nothing.")
    if any(cell.at_floor for suite in table.suites for column in suite.columns for cell in column.cells):
        lines.append(f"{AT_FLOOR} no better than its floor, what the same pictures get for the sounds of others.")
    if controls:
        no_test = "" if table.against is None else ", and are in no difference and in no test"
        lines.append(f"Controls stand after the models: they are no models{no_test}.")
    lines.append(
        "In or out: the share of the suite's items that a model may have met in training (in: the sound with its"
        " picture; audio: the sound alone; out: neither), as far as is known; none out: it may have met each of them;"
        f" {UNKNOWN}: what it was trained on was not named (eval.run --trained-on)."
    )
    return lines


def say_cell(cell: Cell) -> str:
    """A cell as it is read, without its footnotes: empty where there is no value."""
    if cell.value is None:
        return ""
    ends = "" if cell.low is None or cell.high is None else f" [{say_number(cell.low)}, {say_number(cell.high)}]"
    marks = MARKS.get(cell.verdict, "") + AT_FLOOR * cell.at_floor
    return f"{say_number(cell.value)}{ends}{marks and f' {marks}'}"


def say_difference(cell: Cell, against: str | None) -> str:
    """A cell's difference in words; empty where there is none."""
    found = cell.difference
    if found is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.3g}, {found.high:+.3g}]"
    p = "" if found.p is None else f", p {found.p:.3g}"
    holm = "" if cell.p_holm is None else f", by Holm {cell.p_holm:.3g}"
    return f"{found.value:+.3g}{ends} from {against}{p}{holm}, {cell.compared_items:,} items: {cell.verdict}"


def say_line(line: Line) -> str:
    """A model's name, and that it is none."""
    return f"{line.name} (control)" if line.control else line.name


def _say_column(column: Column) -> str:
    return f"{column.metric}{'' if column.on == ALL else f' ({column.on})'} {SIGNS[column.better]}"


def _say_suite(suite: SuiteColumns) -> str:
    return f"{suite.name}, {suite.found:,} of {suite.wanted:,} items"


def table_csv(table: Table) -> bytes:
    """A line a cell."""
    rows = [
        _csv_row(table, line, suite, column, cell)
        for suite in table.suites
        for column in suite.columns
        for line, cell in zip(table.lines, column.cells, strict=True)
    ]
    return csv_bytes([CSV_COLUMNS, *rows])


def _csv_row(table: Table, line: Line, suite: SuiteColumns, column: Column, cell: Cell) -> list[object]:
    found = cell.difference
    compared = (found.value, found.low, found.high, found.p) if found else (None,) * 4
    counts = (cell.images, cell.items, cell.recordings) if cell.value is not None else (None,) * 3
    notes = [cell.why or "", *(table.notes[n - 1] for n in cell.notes)]
    return [
        *(line.name, line.control, suite.name, suite.digest, suite.met.get(line.name, "")),
        *(column.metric, column.on, column.better, cell.value, cell.low, cell.high, cell.floor),
        *("yes" if cell.at_floor else "", *counts, table.against if found else None, *compared, cell.p_holm),
        *(cell.compared_items or None, cell.verdict, "; ".join(dict.fromkeys(filter(None, notes)))),
    ]


def _grid(table: Table) -> Iterator[tuple[Line, list[tuple[str, tuple[int, ...]]]]]:
    """Each model, and its cells as text with their footnotes: of each suite what it has met, and a cell a column."""
    for n, line in enumerate(table.lines):
        cells: list[tuple[str, tuple[int, ...]]] = []
        for suite in table.suites:
            cells.append((suite.met.get(line.name, ""), suite.met_notes.get(line.name, ())))
            cells += [(say_cell(column.cells[n]), column.cells[n].notes) for column in suite.columns]
        yield line, cells


def _warnings(table: Table) -> list[str]:
    """What is said first; a line each, whatever a suite is called."""
    found = [table.note, *(f"{suite.name}: {text}" for suite in table.suites for text in suite.warnings)]
    return [printable(" ".join(line.split())) for line in dict.fromkeys(found) if line]


def table_latex(table: Table) -> str:
    """A table with booktabs, its legend and its footnotes below."""
    groups, names = [""], ["model"]
    for suite in table.suites:
        title = _latex_text(_say_suite(suite)) + _latex_notes(suite.notes)
        groups.append(rf"\multicolumn{{{1 + len(suite.columns)}}}{{c}}{{{title}}}")
        names += [IN_OR_OUT, *(_latex_column(column) for column in suite.columns)]
    models, controls = [], []
    for line, cells in _grid(table):
        row = [_latex_text(say_line(line)), *(_latex_text(text) + _latex_notes(notes) for text, notes in cells)]
        (controls if line.control else models).append(row)
    lines = [
        *(f"% {line}" for line in _warnings(table)),
        *latex_table("l" * len(names), [groups, names], [models, controls]),
        "",
        *(rf"\par {{\footnotesize {_latex_text(text)}}}" for text in legend(table)),
        *(
            rf"\par {{\footnotesize \textsuperscript{{{n}}} {_latex_text(text)}}}"
            for n, text in enumerate(table.notes, start=1)
        ),
    ]
    return "\n".join(lines) + "\n"


def _latex_text(text: str) -> str:
    """Text in LaTeX, on one line, and with no bracket at its start, which the end of the row before would take."""
    signs = {"↑": ARROWS["higher"], "↓": ARROWS["lower"], AT_FLOOR: r"$^{\circ}$"}
    plain = "".join(signs.get(c, c) for c in latex_escaped(printable(" ".join(text.split()))))
    return f"{{}}{plain}" if plain.startswith("[") else plain


def _latex_column(column: Column) -> str:
    on = "" if column.on == ALL else f" ({column.on})"
    return rf"\texttt{{{_latex_text(column.metric)}}}{on} {ARROWS[column.better]}" + _latex_notes(column.notes)


def _latex_notes(notes: Sequence[int]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, notes))}}}" if notes else ""


def table_markdown(table: Table) -> str:
    """A table a suite as GitHub shows it, a row a score and a column a model, with footnotes."""
    names = ["", *(_markdown(say_line(line)) for line in table.lines)]
    lines = [f"**{_markdown(line)}**\n" for line in _warnings(table)]
    for suite in table.suites:
        rows = [names, ["---"] * len(names)]
        rows += [
            [_markdown(*head), *(_markdown(text, notes) for text, notes in cells)]
            for head, cells in _turned(table, suite)
        ]
        title = _markdown(_say_suite(suite), suite.notes)
        lines += [f"### {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [
        *(f"{_markdown(line)}  " for line in legend(table)),
        "",
        *(f"[^{n}]: {_markdown(text)}" for n, text in enumerate(table.notes, start=1)),
    ]
    return "\n".join(lines).rstrip() + "\n"


Noted = tuple[str, tuple[int, ...]]  # a text and its footnotes


def _turned(table: Table, suite: SuiteColumns) -> Iterator[tuple[Noted, list[Noted]]]:
    """The rows of a suite: what each model has met of it, then the scores; a cell a model."""
    met = [(suite.met.get(line.name, ""), suite.met_notes.get(line.name, ())) for line in table.lines]
    yield (IN_OR_OUT, ()), met
    for column in suite.columns:
        yield (_say_column(column), column.notes), [(say_cell(cell), cell.notes) for cell in column.cells]


def _markdown(text: str, notes: Sequence[int] = ()) -> str:
    plain = re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", printable(" ".join(text.split())))
    return plain + "".join(f"[^{n}]" for n in notes)


def table_html(table: Table) -> str:
    """The page: the table, how to read it, its footnotes, and of each model where its reports lie."""
    return "".join(_html(table))


def _html(table: Table) -> Iterator[str]:
    title = "Models by suites"
    yield page_head(title, f"<style>{page_style()}{CSS}</style>")
    yield '<header class="masthead"><div class="title"><p class="brand">sonify evaluation</p>'
    yield f"<h1>{_shown(title)}</h1>"
    yield "".join(f'<p class="warn">{_shown(line)}</p>' for line in _warnings(table))
    yield "".join(f'<p class="lead">{_shown(line)}</p>' for line in legend(table))
    yield '</div></header>\n<main>\n<div class="wide"><table class="scores models"><thead>\n<tr><th>score</th>'
    yield "".join(f"<th{_html_class(line)}>{_shown(say_line(line))}</th>" for line in table.lines)
    yield "</tr>\n</thead>\n"
    for suite in table.suites:
        title = _shown(_say_suite(suite)) + _html_notes(suite.notes)
        yield f'<tbody><tr class="suite"><th colspan="{1 + len(table.lines)}">{title}</th></tr>\n'
        yield f"<tr><th>{IN_OR_OUT}</th>"
        for line in table.lines:
            notes = _html_notes(suite.met_notes.get(line.name, ()))
            yield f"<td{_html_class(line)}>{_shown(suite.met.get(line.name, ''))}{notes}</td>"
        yield "</tr>\n"
        for column in suite.columns:
            name = _shown(_say_column(column))
            yield f'<tr><th title="{_shown(column.definition)}">{name}{_html_notes(column.notes)}</th>'
            for line, cell in zip(table.lines, column.cells, strict=True):
                yield _html_cell(line, cell, table.against)
            yield "</tr>\n"
        yield "</tbody>\n"
    yield "</table></div>\n<section><h2>Footnotes</h2><ol>\n"
    yield "".join(f'<li id="n{n}">{_shown(text)}</li>\n' for n, text in enumerate(table.notes, start=1))
    yield '</ol></section>\n<section><h2>The models</h2><dl class="how">\n'
    for line in table.lines:
        yield f"<dt>{_shown(say_line(line))}</dt><dd>{_shown(line.control or line.model)}</dd>\n"
        for name, place in line.reports.items():
            said = f"{name}: {place}, model {line.model_sha256[name][:12]}"
            yield f"<dd>{_shown(said)}</dd>\n"
    yield "</dl></section>\n</main>\n</body>\n</html>\n"


def _html_class(line: Line) -> str:
    return " class=control" if line.control else ""


def _shown(text: str) -> str:
    """Text, which others may have written, in a page."""
    return escape(printable(text))


def _html_cell(line: Line, cell: Cell, against: str | None) -> str:
    floor = f"floor {cell.floor}" if cell.floor else ""
    said = "; ".join(filter(None, (cell.why, floor, say_difference(cell, against))))
    return f'<td{_html_class(line)} title="{_shown(said)}">{_shown(say_cell(cell))}{_html_notes(cell.notes)}</td>'


def _html_notes(notes: Sequence[int]) -> str:
    links = " ".join(f'<a href="#n{n}">{n}</a>' for n in notes)
    return f"<sup>{links}</sup>" if notes else ""


def print_table(table: Table, file: TextIO) -> None:
    """Print a table a suite, turned so that a terminal has room: a row a score, a column a model."""
    console = Console(file=file, width=max(Console().width, 120))
    for suite in table.suites:
        title = Text(printable(_say_suite(suite) + _print_notes(suite.notes)))
        printed = Printed("", title=title, title_justify="left")
        for line in table.lines:
            printed.add_column(Text(printable(say_line(line))))
        for head, cells in _turned(table, suite):
            printed.add_row(*(Text(printable(text + _print_notes(notes))) for text, notes in (head, *cells)))
        console.print(printed)
    for text in [*_warnings(table), *legend(table), *(f"({n}) {text}" for n, text in enumerate(table.notes, start=1))]:
        file.write(f"{printable(text)}\n")


def _print_notes(notes: Sequence[int]) -> str:
    return f" ({', '.join(map(str, notes))})" if notes else ""
