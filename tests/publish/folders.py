"""A small published folder, written row by row: what the tests of its descriptions read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonify.io.tables import write_rows
from sonify.publish import rows
from sonify.publish.rows import PublishedClip, PublishedPair, PublishedRecord, PublishedShard, Statistics
from sonify.rows import SourceClip

SHA256 = "a" * 64
HOSTILE = "x | [y](http://evil) ![z](u) **b** `c` _d_ ~~e~~ <script>alert(1)</script> &amp; $\\frac{$\n# new\u202e\x00"


def source(concept: str = "dog", clip: str = "esc50-1-0") -> SourceClip:
    return SourceClip(
        concept=concept,
        description=f"sound of a {concept}",
        clip=clip,
        cosine=0.5,
        score=0.7,
        threshold=0.25,
        num_candidates=3,
        target_lufs=-30.0,
        gain_db=-2.0,
    )


def pair(number: int, split: str = "train", **fields: Any) -> PublishedPair:
    """A scene of as many sources as its number says, at least one."""
    values: dict[str, Any] = {
        "image": f"photo-{number:03d}_jpg",
        "image_uri": f"{number:03d}.jpg",
        "image_sha256": SHA256,
        "width": 48,
        "height": 32,
        "split": split,
        "scene": "captions",
        "caption": "a dog",
        "medium": "",
        "check_answer": "",
        "sources": tuple(source(("dog", "rain")[n % 2]) for n in range(max(1, number))),
        "mix_gain_db": 0.0,
        "peak_dbfs": -12.5,
        "mix_sha256": SHA256,
        "image_licence": "unknown",
        "conditions": ("BY", "NC"),
        "contradictions": (),
        "redistributable": False,
    }
    return PublishedPair(**(values | fields))


def clip(number: int = 1, **fields: Any) -> PublishedClip:
    values: dict[str, Any] = {
        "clip": f"esc50-{number}-0",
        "recording": f"freesound/{number}",
        "corpus": "esc50",
        "file": f"{number}.wav",
        "start_sec": 0.0,
        "duration_sec": 5.0,
        "loudness_lufs": -28.0,
        "peak_dbfs": -6.0,
        "text": "dog",
        "licence": "CC-BY-NC-3.0",
        "attribution": "someone, https://freesound.org/s/1_2/",
        "split": "train",
        "sha256": SHA256,
        "conditions": ("BY", "NC"),
        "fingerprint": b"\x00\x01\x02",
    }
    return PublishedClip(**(values | fields))


def statistics(**fields: Any) -> Statistics:
    values: dict[str, Any] = {
        "images": {"train": 3, "validation": 1},
        "scenes": {"train": 3, "validation": 1},
        "concepts": {"dog": 5, "rain": 2},
        "distinct_concepts": 2,
        "sources_in_scene": {"1": 2, "2": 1, "3": 1},
        "copies": {"exact": 7},
        "target_lufs": {"-32.0": 3, "-30.0": 4},
        "clip_uses": {"1": 4, "3": 1, "25": 2},
        "clips": {"esc50": 2},
        "recordings": {"esc50": 2},
        "licences": {"CC-BY-NC-3.0": 2},
        "conditions": {"BY + NC + unknown": 4},
        "contradictions": {},
        "redistributable": 0,
        "left_out": {"excluded": 0, "licence": 0},
    }
    return Statistics(**(values | fields))


def record(**fields: Any) -> PublishedRecord:
    config = {
        "seed": 0,
        "images": {"kind": "folder", "shard_size": 8, "validation": 0.25},
        "audio": {"sources": [{"kind": "esc50", "name": "esc50"}], "clip_seconds": 5.0, "sample_rate": 16000},
        "concepts": {"extractors": [{"kind": "captions", "name": "captions", "file": None}]},
        "retrieval": {"encoder": {"kind": "text"}, "min_cosine": 0.0},
        "mix": {"lufs": [-32.0, -28.0]},
        "render": {"image": "original"},
    }
    values: dict[str, Any] = {
        "format": rows.FORMAT,
        "scenes": ("captions",),
        "config": config,
        "versions": {"sonify": "0.4.0", "python": "3.11.1"},
        "models": {},
        "prompts": {},
        "rendered_from": "",
        "statistics": statistics(),
    }
    return PublishedRecord(**(values | fields))


def write_tables(out: Path, pairs: Sequence[PublishedPair], clips: Sequence[PublishedClip]) -> Path:
    """The tables of a folder with one unit."""
    shard = PublishedShard(
        path="shards/train/u.tar", split="train", unit="u", size_bytes=10, sha256=SHA256, samples=3, complete=True
    )
    for split in sorted({one.split for one in pairs}):
        _write(out / f"data/{split}-u.parquet", PublishedPair, [one for one in pairs if one.split == split])
    _write(out / "clips/esc50-0.parquet", PublishedClip, clips)
    _write(out / rows.SHARDS, PublishedShard, [shard])
    return out


def small_folder(out: Path) -> Path:
    """Four scenes in two splits, and two clips."""
    return write_tables(out, [*(pair(n) for n in range(3)), pair(3, "validation")], [clip(1), clip(2)])


def _write(path: Path, row_type: type, of: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_rows(file, row_type, of)
