"""What `benchmarks.on_gpu` writes: figures as they come, in one file, and the table that is made of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sonify.errors import InputError
from sonify.io.write import write_whole

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured; `value` is a text where it names something (a GPU, a driver)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    value: float | str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What became of a part. Where it is not `done`, `why` says what happened; figures from before that stand."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    part: str
    title: str
    outcome: Literal["done", "failed", "not measured"]
    why: str = ""
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    tiny: bool
    device: str
    parts: tuple[PartReport, ...]


def read_figure(line: str) -> Figure | None:
    """A figure as a part prints it; None where a library said something, or a part died while it wrote."""
    try:
        return TypeAdapter(Figure).validate_json(line)
    except ValidationError:
        return None


def write_report(path: Path, report: Report) -> None:
    """Write the file, seen whole or as it was before."""
    write_whole(path, TypeAdapter(Report).dump_json(report, indent=1) + b"\n")


def read_report(path: Path) -> Report:
    """Read such a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return TypeAdapter(Report).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: no file of benchmarks.on_gpu: {_printable(where)}: {first['msg']}") from error


def table_of(report: Report) -> Iterator[str]:
    """The lines of a table in Markdown."""
    if report.tiny or report.device == "cpu":
        yield f"**Tiny sizes, {_printable(report.device)}: these figures say nothing but that the code runs.**"
        yield ""
    yield "| what | figure | |"
    yield "|---|---|---|"
    for measured in report.parts:
        yield from rows_of(measured)


def rows_of(measured: PartReport) -> Iterator[str]:
    """The lines of one part."""
    told = "" if measured.outcome == "done" else f"{measured.outcome}: {measured.why}"
    yield _row(f"**{measured.title}**", told, f"{measured.seconds:.0f} s" if measured.seconds else "")
    for figure in measured.figures:
        yield _row(figure.name, f"{_spelt(figure.value)} {figure.unit}".strip(), figure.note)


def _spelt(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _printable(text: str) -> str:
    """What a file or a library says, as a terminal may have it: no control sequence gets through."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(_printable(cell).split()).replace('|', '/') for cell in cells)} |"
