"""The page of a report: the scores with their intervals, and of each metric the items that it finds best and worst, to
look at and listen to. A folder that opens from disk, in the style of a run's gallery."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from eval.measures import Score
from eval.pictures import Made, Picture
from eval.report import (
    MEDIA,
    PAGE,
    STYLE,
    Report,
    left_out,
    made_and_judged,
    say_floor,
    say_model,
    say_number,
    say_towers,
    say_value,
    warn_of_random,
)
from eval.suites.suite import Item, Suite

SHOWN = 12  # items at each end of a metric
BESIDE = 4  # pictures of an item that are shown; its value is the mean over all
THUMB_PX = 256
CSS = """
.scores { width: 100%; border-collapse: collapse; margin: 1rem 0; font-size: 0.9375rem; }
.scores th, .scores td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; }
.scores .n { text-align: right; white-space: nowrap; }
.scores th:first-child { white-space: nowrap; }
.scores .why { color: var(--muted); font-size: 0.8125rem; }
.span { position: relative; display: block; width: 9rem; height: 0.75rem; background: var(--soft); }
.span i { position: absolute; top: 0.25rem; height: 0.25rem; background: var(--bar); }
.span b, .span u, .span s { position: absolute; top: 0; width: 2px; height: 0.75rem; background: var(--ink); }
.span u { background: var(--focus); }
.span s { background: var(--accent); }
.wide { overflow-x: auto; }
.wide .scores { min-width: 54rem; }
.legend { color: var(--muted); font-size: 0.8125rem; }
summary { cursor: pointer; display: list-item; }
.how dt { margin-top: 0.6rem; font-weight: 600; }
.how dd { color: var(--muted); font-size: 0.875rem; }
.end figcaption { color: var(--muted); font-size: 0.75rem; }
.ends { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0.9rem; }
.end { padding: 0.6rem; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
.end div { display: grid; grid-template-columns: 1fr 1fr; gap: 0.3rem; }
.end img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; background: var(--soft); }
.end audio { width: 100%; margin-top: 0.4rem; }
.end p { font-size: 0.8125rem; }
.warn { padding: 0.5rem 0.8rem; border: 2px solid var(--focus); font-weight: 600; }
h2 { margin-top: 2rem; font-size: 1.25rem; }
h3 { margin-top: 1rem; font-size: 0.9375rem; color: var(--muted); }
"""
LEGEND = (
    "Black is the value, green its interval of 95 %. The floor is what the same pictures get for sounds of others,"
    " of a distance what other real pictures have; the ceiling is what the references get."
)
POLICY = (
    "default-src 'none'; style-src 'self' file: 'unsafe-inline'; img-src 'self' file: data:; media-src 'self' file:"
)


def write_page(folder: Path, suite: Suite, made: Made, report: Report, items: Mapping[str, np.ndarray]) -> None:
    """Write `index.html`, its style and the media that it shows into a report's folder.

    Raises:
        OSError: a file of the suite is not there any more, or the folder cannot be written to.
    """
    shown = {name: ends_of(values_I) for name, values_I in items.items()}
    wanted = sorted({place for places in shown.values() for end in places for place in end})
    pictures = _pictures_of(made)
    (folder / MEDIA).mkdir()
    for place in wanted:
        _write_media(folder / MEDIA, suite, suite.items[place], pictures[suite.items[place].id])
    (folder / STYLE).write_text(page_style(), encoding="utf-8")
    body = "".join([*_head(report), *_table(report), *_ends(suite, report.scores, shown, items, pictures)])
    (folder / PAGE).write_text(body, encoding="utf-8")


def page_style() -> str:
    """The style of a run's gallery, and what evaluation adds to it."""
    style = (resources.files("sonify.report") / "gallery_assets" / "gallery.css").read_text(encoding="utf-8")
    return style + CSS


def page_head(title: str, style: str) -> str:
    """A page up to its body; `style` is the element that gives or names its style."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n"
        f'<link rel="icon" href="data:,">\n{style}\n</head>\n<body>\n'
    )


def ends_of(values_I: np.ndarray) -> tuple[list[int], list[int]]:
    """The places of the items with the highest values, highest first, and with the lowest; none is in both."""
    order = [place for place in np.argsort(-values_I, kind="stable").tolist() if not np.isnan(values_I[place])]
    each = min(SHOWN, len(order) // 2)
    return order[:each], order[::-1][:each]


def _pictures_of(made: Made) -> dict[str, list[Picture]]:
    found: dict[str, list[Picture]] = {}
    for picture in made.pictures:
        found.setdefault(picture.item.id, []).append(picture)
    return found


def _write_media(folder: Path, suite: Suite, item: Item, pictures: Sequence[Picture]) -> None:
    for n, picture in enumerate(pictures[:BESIDE]):
        _thumbnail(picture.path, folder / f"{item.id}-{n}.jpg")
    if item.references:
        _thumbnail(suite.folder / item.references[0].file, folder / f"{item.id}-reference.jpg")
    (folder / f"{item.id}.flac").write_bytes((suite.folder / item.sound.file).read_bytes())


def _thumbnail(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BICUBIC)
    small.save(target, format="JPEG", quality=88)


def _head(report: Report) -> Iterator[str]:
    yield page_head(f"{say_model(report)} on {report.suite}", f'<link rel="stylesheet" href="{STYLE}">')
    yield '<header class="masthead"><div class="title"><p class="brand">sonify evaluation</p>'
    yield f'<h1>{escape(say_model(report))}</h1><p class="lead">on {escape(report.suite)}, {report.found:,} of'
    yield f" {report.wanted:,} items; suite {report.suite_digest[:12]}, model {report.model_sha256[:12]}</p>"
    if warning := warn_of_random(report):
        yield f'<p class="warn">{escape(warning)}</p>'
    yield "".join(f'<p class="lead">{escape(line)}</p>' for line in [*made_and_judged(report)[:1], *left_out(report)])
    yield "</div></header>\n<main>\n"


def _table(report: Report) -> Iterator[str]:
    titles = ("metric", "on", "value [95 %]", "floor, value, ceiling", "floor", "ceiling", "pictures", "recordings")
    plain = ("metric", "value [95 %]", "floor, value, ceiling")
    heads = "".join(f"<th{'' if title in plain else ' class=n'}>{title}</th>" for title in titles)
    yield f'<p class="legend">{LEGEND}</p>\n<div class="wide"><table class="scores"><thead><tr>{heads}</tr></thead>'
    yield "<tbody>\n"
    for score in report.scores:
        ceiling = say_number(score.beside.get("ceiling"))
        note = score.reason or (score.estimate.note if score.estimate else "")
        arrow = "↑" if score.better == "higher" else "↓"
        yield f'<tr><th title="{escape(score.definition)}">{escape(score.metric)} {arrow}</th>'
        yield f"<td class=n>{score.on}</td><td>{escape(say_value(score))}<span class=why> {escape(note)}</span></td>"
        yield f"<td>{_span(score)}</td><td class=n>{say_floor(score)}</td><td class=n>{ceiling}</td>"
        yield f"<td class=n>{score.images:,}</td><td class=n>{score.recordings:,}</td></tr>\n"
    yield '</tbody></table></div>\n<details><summary>How each was measured</summary><div class="how">\n'
    yield f"<dt>all</dt><dd>{escape('. '.join(made_and_judged(report)))}</dd>\n"
    for score in (score for score in report.scores if score.on == "all"):
        how = [score.definition, *say_towers(report, score), *score.preprocessing]
        how += [f"pool {score.pool_sha256[:12]}"] if score.pool_sha256 else []
        yield f"<dt>{escape(score.metric)}</dt><dd>{escape('. '.join(filter(None, how)))}</dd>\n"
    yield "</div></details>\n"


def _span(score: Score) -> str:
    """The interval on a line from the least to the largest of it, its floor and its ceiling; nothing without these."""
    estimate = score.estimate
    tags = {"floor": "u", "floor_recordings": "u", "ceiling": "s"}
    marks = {tag: score.beside[name] for name, tag in tags.items() if name in score.beside}
    if estimate is None or estimate.low is None or estimate.high is None or not marks:
        return ""
    least, most = min([estimate.low, *marks.values()]), max([estimate.high, *marks.values()])
    if most <= least:
        return ""

    def at(value: float) -> float:
        return round(100 * (value - least) / (most - least), 2)

    interval = f'<i style="left:{at(estimate.low)}%;width:{at(estimate.high) - at(estimate.low):.2f}%"></i>'
    ticks = "".join(f'<{tag} style="left:calc({at(mark)}% - 1px)"></{tag}>' for tag, mark in marks.items())
    return f'<span class=span>{interval}{ticks}<b style="left:calc({at(estimate.value)}% - 1px)"></b></span>'


def _ends(
    suite: Suite,
    scores: Sequence[Score],
    shown: Mapping[str, tuple[list[int], list[int]]],
    items: Mapping[str, np.ndarray],
    pictures: Mapping[str, Sequence[Picture]],
) -> Iterator[str]:
    definitions = {score.metric: score.definition for score in scores}
    for name, ends in shown.items():
        yield f"<section><h2>{escape(name)}</h2><p>{escape(definitions[name])}</p>\n"
        for title, places in zip(("highest", "lowest"), ends, strict=True):
            cards = "".join(
                _card(item, float(items[name][place]), len(pictures[item.id]))
                for place, item in ((place, suite.items[place]) for place in places)
            )
            yield f'<h3>{title}</h3><div class="ends">{cards}</div>\n'
        yield "</section>\n"
    yield "</main>\n<footer>Below the pictures the whole sound.</footer>\n"
    yield "</body>\n</html>\n"


def _card(item: Item, value: float, count: int) -> str:
    said = " · ".join(item.labels or item.captions) or item.id
    images = "".join(_figure(f"{item.id}-{n}", "made") for n in range(min(count, BESIDE)))
    real = _figure(f"{item.id}-reference", "reference") if item.references else ""
    mean = f", the mean of {count:,} pictures, of which {BESIDE} are shown" if count > BESIDE else ""
    return (
        f'<article class="end"><div>{images}{real}</div>'
        f'<audio controls preload="none" src="{MEDIA}/{item.id}.flac"></audio>'
        f"<p><b>{say_number(value)}</b>{mean} {escape(said)}</p><p>{escape(item.id)}</p></article>"
    )


def _figure(name: str, what: str) -> str:
    image = f'<img src="{MEDIA}/{name}.jpg" alt="{what}" loading="lazy">'
    return f"<figure>{image}<figcaption>{what}</figcaption></figure>"
