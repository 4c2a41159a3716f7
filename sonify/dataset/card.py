"""What people read in a published folder: its card, README.md, with pictures, and ATTRIBUTION.md.

The card's words are in `card.md`, a template. Other people's text is shown as it is written and does nothing.
"""

import json
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sonify import layout
from sonify.dataset.format import (
    AUDIO,
    CLIPS,
    COPY_KINDS,
    DATA,
    IMAGES,
    LOUDNESS_STEP_LU,
    PAPER,
    PICTURE,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedRecord,
    PublishedShard,
    Statistics,
    code_block,
    escape,
    plain,
)
from sonify.dataset.licences import SA1B_LICENCE
from sonify.dataset.recipe import recipe
from sonify.io.tables import schema_of
from sonify.stages.evidence import MARGIN, WEAK_COSINE

CARD = "README.md"
CONCEPTS_NAMED = 20
_TEMPLATE = Path(__file__).with_name("card.md")
_NAMES = {"sa1b": "Sonified SA-1B"}
# What of the configuration says how a sound came into a scene, as the README of sonify names it.
_SHOWN = ("seed", "images", "audio", "concepts", "retrieval", "mix", "render")
# The hub's steps: https://huggingface.co/docs/hub/datasets-cards
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
SIZES |= {10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B", 10**11: "10B<n<100B", 10**12: "100B<n<1T"}
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}
_DTYPES |= {pa.bool_(): "bool", pa.binary(): "binary"}

PLOTS = "plots"
CONCEPTS_DRAWN = 30
USES_SHOWN = 20  # clips that are heard more often share the last bar
COLOUR = "#3465a4"

ATTRIBUTION = "ATTRIBUTION.md"
LONGEST_CREDIT = 2000  # names and links are never as long; what is longer is no credit
_CREDITS = """# Attribution

The recordings that are heard in this dataset, by corpus and licence as the corpora state them.
"""
_WITH_AUDIO = "What is in this folder of them are their mixes, in `audio`.\n"
_WITHOUT_AUDIO = "None of them is in this folder.\n"


def write_card(out: Path, record: PublishedRecord, licence: str) -> None:
    """Write the card of a folder in which all tables and plots lie; `licence` is that of the metadata."""
    card = DatasetCard.from_template(  # with jinja2, which mlcroissant brings
        _make_head(out, record, licence),
        template_path=str(_TEMPLATE),
        with_audio=(out / AUDIO).is_dir(),
        with_images=(out / IMAGES).is_dir(),
        paper=PAPER,
        sa1b_licence=SA1B_LICENCE,
        plot=plot,
        number="{:,}".format,
        table=table,
        counts=counts,
        share=share,
        escape=escape,
        code_block=code_block,
        **_facts(record),
    )
    (out / CARD).write_text(f"{card}\n", encoding="utf-8", newline="\n")


def dataset_name(record: PublishedRecord) -> str:
    """The name of the dataset, by the images that it is about."""
    return _NAMES.get(record.config["images"]["kind"], "Sonified images")


def _facts(record: PublishedRecord) -> dict[str, Any]:
    """What the template says of a record, beside the record itself."""
    config, statistics = record.config, record.statistics
    extractors = config["concepts"]["extractors"]
    settings = {key: config[key] for key in _SHOWN if key in config}
    return {
        "record": record,
        "config": config,
        "statistics": statistics,
        "images": sum(statistics.images.values()),
        "scenes": sum(statistics.scenes.values()),
        "splits": [(split, n, statistics.scenes[split]) for split, n in statistics.images.items()],
        "sounds": sum(statistics.copies.values()),
        "copies": {copy: statistics.copies.get(copy, 0) for copy in COPY_KINDS},
        "extractors": [
            (one["name"], one["kind"], one.get("model") or "none", one.get("revision") or "") for one in extractors
        ],
        "by_vlm": any(one["kind"] == "vlm" for one in extractors),
        "settings": json.dumps(settings, indent=1, ensure_ascii=False),
        "acted_rows": _acted_rows(record.acted),
        "corpora": [(name, statistics.recordings.get(name, 0), clips) for name, clips in statistics.clips.items()],
        "concepts": list(statistics.concepts.items())[:CONCEPTS_NAMED],
        "evidence": statistics.evidence,
        "evidence_rows": _evidence_rows(statistics.evidence) if statistics.evidence else [],
        "left_out": [(reason, scenes) for reason, scenes in statistics.left_out.items() if scenes],
        "recipe": recipe(config, statistics.clips),
    }


def _acted_rows(acted: Mapping[str, Any]) -> list[tuple[str | int, ...]]:
    """What the rules of the draw came to, split by split."""
    columns = ("split", "clips", "recordings", "top_k", "clips_per_recording")
    rows = [tuple(split[name] for name in columns) for split in acted.get("splits", ())]
    return [(*row[:-1], row[-1] or "any number") for row in rows]


def _evidence_rows(evidence: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What was counted of the sounds, where it could be: without a limit or a listener there is nothing to say."""
    near = f"less than {MARGIN:g} above their limit"
    limited = [("with a limit of their own", evidence["limited"]), (near, evidence["near_limit"])]
    heard = [
        ("about which a listener was asked", evidence["asked"]),
        ("confirmed by it", evidence["confirmed"]),
        ("with speech", evidence["spoken"]),
    ]
    return [
        *(limited if evidence["limited"] else ()),
        *([(f"below a cosine of {WEAK_COSINE:g}, without a limit", evidence["low"])] if evidence["low"] else ()),
        *(heard if evidence["asked"] else ()),
        ("weak: little above the limit, low, or not confirmed", evidence["weak"]),
    ]


@dataclass(frozen=True, slots=True)
class _Table:
    """What `load_dataset(DIR, name)` gives: `files` are patterns in DIR by split, `features` as a card writes them."""

    name: str
    files: Mapping[str, str]
    features: list[dict[str, Any]]


def _tables_of(out: Path, record: PublishedRecord) -> list[_Table]:
    """The tables that are in a folder; a split without a file would not load, and is not named."""
    audio = _audio_features(record.config["audio"]["sample_rate"])
    listed = (
        _Table("pairs", _by_split(DATA), _features(PublishedPair)),
        _Table("clips", {"train": f"{CLIPS}/*.parquet"}, _features(PublishedClip)),
        _Table("shards", {"train": SHARDS}, _features(PublishedShard)),
        _Table(AUDIO, _by_split(AUDIO), audio),
        _Table(IMAGES, _by_split(IMAGES), [_text("image"), {"name": PICTURE, "dtype": "image"}]),
    )
    there = (replace(one, files={s: p for s, p in one.files.items() if any(out.glob(p))}) for one in listed)
    return [one for one in there if one.files]


def _by_split(folder: str) -> dict[str, str]:
    return {split: f"{folder}/{split}-*.parquet" for split in layout.SPLITS}


def _features(row_type: type) -> list[dict[str, Any]]:
    return [_feature(field) for field in schema_of(row_type)]


def _feature(field: pa.Field) -> dict[str, Any]:
    if not pa.types.is_list(field.type):
        return {"name": field.name, "dtype": _DTYPES[field.type]}
    of = field.type.value_type
    element = [_feature(inner) for inner in of] if pa.types.is_struct(of) else _DTYPES[of]
    return {"name": field.name, "list": element}


def _audio_features(sample_rate_hz: int) -> list[dict[str, Any]]:
    return [_text("image"), _text("scene"), {"name": AUDIO, "dtype": {"audio": {"sampling_rate": sample_rate_hz}}}]


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "string"}


def _make_head(out: Path, record: PublishedRecord, licence: str) -> DatasetCardData:
    """The head: what loads the dataset, what its columns are, and how much there is.

    The hub wants no more than a name for a licence that is not one of its own.
    """
    tables = _tables_of(out, record)
    other: dict[str, Any] = {"license_name": "see-the-card"} if licence == "other" else {}
    info = [_info(out, table) for table in tables]
    scenes = sum(split["num_examples"] for split in info[0]["splits"])
    return DatasetCardData(
        license=licence,
        **other,
        pretty_name=dataset_name(record),
        size_categories=next(size for above, size in SIZES.items() if scenes < above),
        task_categories=["any-to-any"],  # the hub has no task between image and sound
        tags=["audio", "image", "image-to-audio", "audio-to-image", "soundscapes", "sonify", f"arxiv:{PAPER}"],
        configs=[_config(table) for table in tables],
        dataset_info=info,
    )


def _config(table: _Table) -> dict[str, Any]:
    files = [{"split": split, "path": path} for split, path in table.files.items()]
    return {"config_name": table.name, "data_files": files} | ({"default": True} if table.name == "pairs" else {})


def _info(out: Path, table: _Table) -> dict[str, Any]:
    splits = [_split(name, out.glob(path)) for name, path in table.files.items()]
    return {
        "config_name": table.name,
        "features": table.features,
        "splits": splits,
        "download_size": sum(file.stat().st_size for path in table.files.values() for file in out.glob(path)),
        "dataset_size": sum(split["num_bytes"] for split in splits),
    }


def _split(name: str, files: Iterable[Path]) -> dict[str, Any]:
    """`num_bytes` is of the rows in memory, as `datasets` counts them."""
    num_bytes = num_rows = 0
    for file in files:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                num_bytes += batch.nbytes
                num_rows += batch.num_rows
    return {"name": name, "num_bytes": num_bytes, "num_examples": num_rows}


def write_plots(out: Path, statistics: Statistics) -> None:
    """Write `plots/*.png`; the same numbers give the same bytes."""
    (out / PLOTS).mkdir(exist_ok=True)
    figures = {
        "concepts": lambda: _concepts(statistics.concepts, statistics.distinct_concepts),
        "sources": lambda: _sources(statistics.sources_in_scene),
        "loudness": lambda: _loudness(statistics.target_lufs),
        "clip_use": lambda: _clip_use(statistics.clip_uses),
    }
    # the settings of whoever runs this are not the dataset's; a script that the font lacks is drawn as boxes
    with mpl.rc_context(mpl.rcParamsDefault), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, draw in figures.items():
            draw().savefig(out / plot(name), metadata={"Software": None})  # it would name the library's version


def plot(name: str) -> str:
    """Where a picture lies in DIR."""
    return f"{PLOTS}/{name}.png"


def _axes(title: str, x: str, y: str, height_inches: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height_inches), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _concepts(concepts: Mapping[str, int], distinct: int) -> Figure:
    shown = sorted(concepts.items(), key=lambda counted: (-counted[1], counted[0]))[:CONCEPTS_DRAWN]
    title = f"The {len(shown)} most frequent of {distinct:,} concepts"
    figure, axes = _axes(title, "times heard", "", height_inches=1.2 + 0.21 * len(shown))
    axes.barh(range(len(shown)), [times for _, times in shown], color=COLOUR)
    # a name with dollar signs is no formula
    axes.set_yticks(range(len(shown)), [plain(name, 40) for name, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _sources(scenes: Mapping[str, int]) -> Figure:
    return _bars("Sounds in a scene", ("sounds", "scenes"), {int(number): times for number, times in scenes.items()})


def _clip_use(uses: Mapping[str, int]) -> Figure:
    shown: Counter[int] = Counter()
    for times, clips in uses.items():
        shown[min(int(times), USES_SHOWN)] += clips
    last = f" ({USES_SHOWN}: as often or more)" if USES_SHOWN in shown else ""
    return _bars("How often a clip is heard", (f"times heard{last}", "clips"), shown)


def _bars(title: str, labels: tuple[str, str], counted: Mapping[int, int]) -> Figure:
    figure, axes = _axes(title, *labels)
    axes.bar(list(counted), list(counted.values()), color=COLOUR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _loudness(sources: Mapping[str, int]) -> Figure:
    """Each bar covers the half LU above its name."""
    figure, axes = _axes("Target loudness of a sound", "integrated loudness, LUFS", "sounds")
    lows = [float(low) for low in sources]
    axes.bar(lows, list(sources.values()), width=LOUDNESS_STEP_LU, align="edge", color=COLOUR, edgecolor="white")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


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
        file.write(_CREDITS + (_WITH_AUDIO if (out / AUDIO).is_dir() else _WITHOUT_AUDIO))
        for corpus, of_corpus in groupby(rows, key=lambda row: row[0]):
            file.write(f"\n## {escape(corpus)}\n")
            for licence, of_licence in groupby(of_corpus, key=lambda row: row[1]):
                file.write(f"\n### {escape(licence)}\n\n")
                file.writelines(_credit(*row[2:]) for row in of_licence)


def _credit(recording: str, name: str, text: str, attribution: str) -> str:
    """`name` is the file in the corpus; a recording that has no public id is named by it."""
    shown = escape(recording, longest=500) if recording else escape(name, longest=500)
    credit = escape(attribution, longest=LONGEST_CREDIT) or "no attribution given"
    return f"- {shown}: {escape(text)} ({credit})\n" if text else f"- {shown} ({credit})\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """A table; numbers are set to the right and get their commas."""
    body = [[f"{cell:,}" if isinstance(cell, int) else escape(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *body])


def share(part: int, whole: int) -> str:
    """A share in words, with one decimal."""
    return f"{100 * part / whole:.1f} %"


def counts(head: Sequence[str], counted: Mapping[str, int], most: int = 50) -> str:
    """A table of counts in their own order, with what was left out of it."""
    shown = list(counted.items())[:most]
    text = table(head, shown)
    left = len(counted) - len(shown)
    return f"{text}\n\n{left:,} more are not shown." if left else text
