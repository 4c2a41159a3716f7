"""The gallery of a run: a static folder that opens from disk, for looking at pairs and listening to them.

A page opened from disk may not fetch, so data is JavaScript that <script> loads: an index of all images for
search and paging, and a file of details for each PAGE_SIZE images, loaded when one of them is shown.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.engine.record import config_of_run, read_record
from sonify.errors import InputError
from sonify.io.write import naming_place, replacing
from sonify.keys import unescape_key
from sonify.report.pictures import (
    COSINE_STEP,
    GAIN_STEP_DB,
    Media,
    Picture,
    ShownScene,
    Sound,
    Summary,
    clips_of,
    survey_run,
    write_media,
)
from sonify.rows import Clip, Reason, Refused, SourceClip
from sonify.stages.evidence import is_by_text, is_spoken, weaknesses
from sonify.stores import Place, to_run_dir

PAGE_SIZE = 12
FREQUENT_CONCEPTS = 12
PAGE = "index.html"
# Why a concept is not heard, in words for people.
WHY = {
    Reason.NO_MATCH: "no recording is near enough",
    Reason.NOT_CONFIRMED: "not heard in the recordings that are near",
    Reason.SAME_SOURCE: "a sound that the scene has already",
    Reason.NOT_VISIBLE: "not visible",
    Reason.UNCONFIRMED: "the check did not confirm it",
}
ASSETS = (PAGE, "gallery.css", "gallery.js")


def build_gallery(run_dir: Place | str, rows: int = 2000, out: Path | None = None) -> Path:
    """Write a gallery, by default RUN/gallery, replacing an older one, and return its folder.

    Of a run with more than `rows` images, those with the lowest hash of their key are shown, always the same.

    Raises:
        InputError: nothing is rendered yet, `rows` is below 1, or the folder cannot be written.
        WorkError: a shard or the pool lacks what the tables name.
    """
    if rows < 1:
        raise InputError(f"rows: expected at least 1 image to show, found {rows}")
    run_dir = to_run_dir(run_dir)
    target = out or run_dir / layout.GALLERY
    if not isinstance(target, Path):
        raise InputError(f"{run_dir}: a browser opens a gallery from a disk: name a folder with --out")
    summary, pictures = survey_run(run_dir, rows, _compares_by_text(run_dir))
    clips = clips_of(run_dir, pictures)
    with naming_place(target):
        foreign = target.exists() and any(target.iterdir()) and not (target / PAGE).is_file()
    if foreign:
        raise InputError(f"{target}: holds something else than a gallery; choose another place")
    with replacing(target) as folder:
        media = write_media(run_dir, pictures, folder)
        _write_pages(folder, summary, list(zip(pictures, media, strict=True)), clips)
    return target


def _compares_by_text(run_dir: Place) -> bool:
    return read_record(run_dir) is not None and is_by_text(config_of_run(run_dir).retrieval)


def _write_pages(
    folder: Path, summary: Summary, shown: Sequence[tuple[Picture, Media]], clips: Mapping[str, Clip]
) -> None:
    """Write the page, its index and its details; `shown` is in the order of display."""
    assets = resources.files("sonify.report") / "gallery_assets"
    for name in ASSETS:
        (folder / name).write_bytes((assets / name).read_bytes())
    (folder / "data").mkdir()
    index = _index(summary, [picture for picture, _ in shown], clips)
    (folder / "data" / "index.js").write_text(f"window.GALLERY = {_script_json(index)};\n", encoding="ascii")
    for page, first in enumerate(range(0, len(shown), PAGE_SIZE), start=1):
        details = [
            _details(picture, media, clips, summary.by_text) for picture, media in shown[first : first + PAGE_SIZE]
        ]
        script = f"GALLERY.pages[{page}] = {_script_json(details)};\n"
        (folder / "data" / f"page-{page:04d}.js").write_text(script, encoding="ascii")


def _script_json(value: Any) -> str:
    """Return ASCII JSON that, inside a script, cannot end the element, open a comment or break a line."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _index(summary: Summary, pictures: Sequence[Picture], clips: Mapping[str, Clip]) -> dict[str, Any]:
    return {
        "run": summary.run,
        "images": summary.images,
        "scenes": summary.scenes,
        "clips": len(summary.clips),
        "limited_scenes": summary.limited_scenes,
        **({"cut_scenes": summary.cut_scenes} if summary.cut_scenes else {}),
        **({"weak_sounds": summary.weak_sounds, "sounds": summary.cosines.total()} if summary.weak_sounds else {}),
        "histograms": [
            _histogram("Cosine of the clips", summary.cosines, COSINE_STEP, ""),
            _histogram("Gain of the clips", summary.gains_db, GAIN_STEP_DB, "dB"),
            _histogram("Concepts a scene", summary.concepts_in_scene, 1, ""),
        ],
        "concepts": _frequent_concepts(pictures),
        "page_size": PAGE_SIZE,
        "entries": [[p.key, p.split, _weakest_cosine(p), _search_text(p, clips, summary.by_text)] for p in pictures],
        "pages": {},
    }


def _histogram(title: str, bins: Counter[int], step: float, unit: str) -> dict[str, Any]:
    first, last = min(bins, default=0), max(bins, default=0)
    counts = [bins[position] for position in range(first, last + 1)]
    return {"title": title, "first": first, "step": step, "unit": unit, "counts": counts}


def _frequent_concepts(pictures: Sequence[Picture]) -> list[str]:
    """The concepts heard in the most images."""
    heard = ({source.concept for scene in picture.scenes for source in scene.pair.sources} for picture in pictures)
    images = Counter(chain.from_iterable(heard))
    return sorted(images, key=lambda concept: (-images[concept], concept))[:FREQUENT_CONCEPTS]


def _weakest_cosine(picture: Picture) -> float:
    return round(min((s.cosine for scene in picture.scenes for s in scene.pair.sources), default=0.0), 4)


def _search_text(picture: Picture, clips: Mapping[str, Clip], by_text: bool) -> str:
    """Everything that the search looks at, each text once: marks too, so that `weak match` finds what has one."""
    texts = [picture.key, unescape_key(picture.key)]
    for scene in picture.scenes:
        texts.append(scene.pair.caption)
        for source in scene.pair.sources:
            clip = clips[source.clip]
            texts += [source.concept, source.description, clip.text, clip.licence, *_marks(source, by_text)]
        texts += [word for refused in scene.pair.refused for word in (refused.concept, _why(refused))]
    return "\n".join(dict.fromkeys(filter(None, texts)))


def _details(picture: Picture, media: Media, clips: Mapping[str, Clip], by_text: bool) -> dict[str, Any]:
    scenes = zip(picture.scenes, media.sounds, strict=True)
    return {
        "key": picture.key,
        "path": unescape_key(picture.key),
        "split": picture.split,
        "caption": picture.scenes[0].pair.caption,
        "preview": media.preview,
        "width": media.width,
        "height": media.height,
        "scenes": [_scene(scene, sound, clips, by_text) for scene, sound in scenes],
    }


def _scene(scene: ShownScene, sound: Sound, clips: Mapping[str, Clip], by_text: bool) -> dict[str, Any]:
    refused = [_refused(one, clips) for one in scene.pair.refused]
    return {
        "scene": scene.pair.scene,
        "caption": scene.pair.caption,
        "mix_gain_db": round(scene.render.mix_gain_db, 3),
        "peak_dbfs": round(scene.render.peak_dbfs, 3),
        **asdict(sound),
        "sources": [_source(source, clips[source.clip], by_text) for source in scene.pair.sources],
        **({"refused": refused} if refused else {}),
    }


def _source(source: SourceClip, clip: Clip, by_text: bool) -> dict[str, Any]:
    return {
        "concept": source.concept,
        "description": _described(source.concept, source.description),
        "cosine": round(source.cosine, 4),
        "score": round(source.score, 4),
        "threshold": round(source.threshold, 4),
        "num_candidates": source.num_candidates,
        "target_lufs": round(source.target_lufs, 3),
        "gain_db": round(source.gain_db, 3),
        "clip": clip.clip,
        "text": clip.text,
        "corpus": clip.corpus,
        "loudness_lufs": round(clip.loudness_lufs, 3),
        "licence": clip.licence,
        "attribution": clip.attribution,
        **_evidence(source, by_text),
    }


def _described(concept: str, description: str) -> str:
    return "" if description == f"This is a sound of {concept}" else description


def _evidence(source: SourceClip, by_text: bool) -> dict[str, Any]:
    """What speaks for a source, as far as anything was recorded of it."""
    heard = {"heard_by": source.heard_by, "heard": source.heard, "support": source.support, "purity": source.purity}
    marks = _marks(source, by_text)
    return {
        **({"limit": round(source.limit, 4)} if source.limit else {}),
        **(heard | {"speech": source.speech} if source.heard_by else {}),
        **({"marks": marks} if marks else {}),
    }


def _marks(source: SourceClip, by_text: bool) -> list[str]:
    """What a listener should know before the rest."""
    weak = [f"weak match: {words}" for words in weaknesses(source, by_text)]
    return [*weak, *([f"speech {source.speech:.2f}"] if is_spoken(source.speech) else [])]


def _refused(refused: Refused, clips: Mapping[str, Clip]) -> dict[str, Any]:
    near = clips.get(refused.clip)
    return {
        "concept": refused.concept,
        "description": _described(refused.concept, refused.description),
        "why": _why(refused),
        "near": (near.text or near.clip) if near else refused.clip,
        "cosine": round(refused.cosine, 4),
        "heard": refused.heard,
    }


def _why(refused: Refused) -> str:
    if refused.reason == Reason.NOT_VISIBLE and refused.presence:
        return refused.presence.replace("_", " ")
    return WHY.get(refused.reason, refused.reason.replace("_", " "))
