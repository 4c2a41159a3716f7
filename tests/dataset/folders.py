"""Published folders: small ones written row by row, and one of a run with another copy of what it was made from."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonify.dataset import format as rows
from sonify.dataset.format import CHECKSUMS, PublishedClip, PublishedPair, PublishedRecord, PublishedShard, Statistics
from sonify.dataset.write import publish
from sonify.io.tables import read_rows, write_rows
from sonify.rows import Pair, Render, SourceClip
from sonify.running import run
from tests.builders import SUBJECTS, small_config, write_photos, write_sounds

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


TEXTS = {f"{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(16)}
CAPTIONS = {
    f"{n:03d}.jpg": f"a photo of a {SUBJECTS[n % len(SUBJECTS)]} and a {SUBJECTS[(n + 3) % len(SUBJECTS)]}"
    for n in range(20)
}


# Draws whatever is nearest, so that in a small pool nearly every image is heard.


def own(root, **sections):
    """What a renderer's configuration names: images, sounds, the folder."""
    base = {
        "images": {"kind": "folder", "path": str(root / "photos")},
        "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}]},
    }
    return small_config(root, **(base | sections))


def published_run(root):
    """A run of two scenes an image, and what was published of it: `root/run` and `root/published`."""
    write_photos(root / "photos", CAPTIONS)
    write_sounds(root / "sounds", TEXTS)
    config = small_config(root, **own_run(root))
    run(config)
    publish(config.run_dir, root / "published")
    return root


def own_run(root):
    """The sections of the run that is published, over the input below `root`."""
    return {
        "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": 8, "validation": 0.3},
        "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0.4},
        # the nearest by words is drawn, however far it is
        "retrieval": {"draws": 2, "limit": None, "encoder": {"kind": "text", "matching": "words"}},
        "mix": {"lufs": [-30.0, -26.0]},
        "seed": 3,
    }


def copy_of(first, root):
    """Another copy of the images, the recordings and the folder."""
    for name in ("photos", "sounds", "published"):
        shutil.copytree(first / name, root / name)
    return root


def elsewhere(root, missing="stop", **sections):
    return own(root, published={"path": str(root / "published"), "missing": missing}, **sections)


def shard_hashes(run_dir):
    return {
        path.relative_to(run_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run_dir / "shards").glob("*/*.tar"))
    }


def pairs(run_dir):
    return {(row.image, row.scene): row for path in run_dir.glob("pairs/*") for row in read_rows(path, Pair)}


def mixes(run_dir):
    rows = (row for path in run_dir.glob("renders/*") for row in read_rows(path, Render))
    return {(row.image, row.scene): row.mix_sha256 for row in rows}


def heard_files(run_dir):
    return sorted({source.clip for pair in pairs(run_dir).values() for source in pair.sources})


def remove_recording(root, run_dir):
    """Delete a recording that is heard, one of 16, and return its clip."""
    clip = heard_files(run_dir)[0]
    (root / "sounds" / clip.removeprefix("folder/").partition("#")[0]).unlink()
    return clip


def seal(folder):
    """Write checksums that hold, as a stranger would."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines))
