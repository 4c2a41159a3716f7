"""What a publication says of itself in `sonify.json`: how its run was made, and counts over what is in it."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from upath import UPath

from sonify.config import Config, LaionClapEncoder, Section, Vlm
from sonify.dataset.format import FORMAT, LOUDNESS_STEP_LU, PublishedClip, PublishedPair, PublishedRecord, Statistics
from sonify.dataset.licences import obstacles
from sonify.dataset.render_from import DRAWING, acted_json, published_folder, read_declaration
from sonify.engine.record import RunRecord
from sonify.media.mixing import is_cut_off
from sonify.vlm.questions import check_question, concepts_prompt

# Where and how hard somebody works; nothing that is published depends on it.
_PRIVATE = frozenset({"engine", "published", "url", "api_key_env", "environment", "command"})
# Models say things in very many ways; the record names those that matter.
MOST_CONCEPTS = 1000


def make_record(config: Config, run: RunRecord, statistics: Statistics) -> PublishedRecord:
    """Describe what is published, without the places and the secrets of the machine that it was made on."""
    plain, models, prompts, acted = _without_places(config), _models(run.models), _prompts(config), run.acted
    if config.published:  # concepts were found by whoever published first
        origin = read_declaration(published_folder(config))
        plain["concepts"] = origin.config["concepts"]
        plain["images"].pop("shard_size", None)  # units are those of the dataset
        if config.published.missing != "repair":  # and clips drawn; who renders neither listens nor limits
            drawn = origin.config["retrieval"]
            plain["retrieval"] |= {name: drawn[name] for name in DRAWING if name in drawn}
            acted = acted_json(origin.acted)
        models, prompts = {**origin.models, **models}, dict(origin.prompts)
    return PublishedRecord(
        format=FORMAT,
        scenes=config.scenes,
        config=plain,
        versions=dict(sorted(run.versions.items())),
        models=models,
        prompts=prompts,
        rendered_from=config.published.digest if config.published else "",
        statistics=statistics,
        acted=acted,
    )


def record_json(record: PublishedRecord) -> bytes:
    """The record as it is written; counts stay in their order, which says what is most frequent."""
    return (json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _without_places(value: Any) -> Any:
    """A section as plain values: paths are left out, and of a model that is a folder or a file its name stays."""
    if isinstance(value, Section):
        names = [name for name in type(value).model_fields if name not in _PRIVATE]
        kept = {name: getattr(value, name) for name in names if not isinstance(getattr(value, name), Path | UPath)}
        if isinstance(value, LaionClapEncoder):
            kept["checkpoint"] = value.checkpoint.name
        return {name: _without_places(inner) for name, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value]
    if isinstance(value, Mapping):
        return {name: _without_places(inner) for name, inner in value.items()}
    return _model_name(value) if isinstance(value, str) else value


def _model_name(text: str) -> str:
    """Hub ids stay as they are; the configuration makes the paths of folders absolute."""
    return PurePath(text).name if text.startswith("/") else text


def _models(models: Mapping[str, str]) -> dict[str, str]:
    """What each model is, by its name; two folders of one name are told apart by what they hold."""
    named: dict[str, str] = {}
    for model, identity in sorted(models.items()):
        name = _model_name(model)
        named[f"{name} ({identity[:12]})" if name in named else name] = identity
    return dict(sorted(named.items()))


def _prompts(config: Config) -> dict[str, str]:
    asked = [extractor for extractor in config.concepts.extractors if isinstance(extractor, Vlm)]
    most = config.concepts.max_concepts
    prompts = {one.name: concepts_prompt(most, one.answers, one.language) for one in asked}
    if config.concepts.check:
        # an image's own concepts and foils stand in the place of the dots
        prompts |= {f"{one.name} (check)": check_question(["..."]) for one in config.concepts.extractors}
    return prompts


@dataclass(slots=True)
class Tally:
    """Counts over what is published, row by row; memory follows the different concepts, not the scenes."""

    images: Counter[str] = field(default_factory=Counter)
    scenes: Counter[str] = field(default_factory=Counter)
    concepts: Counter[str] = field(default_factory=Counter)
    sources_in_scene: Counter[int] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    target_lufs: Counter[int] = field(default_factory=Counter)  # by number of steps
    clip_uses: Counter[int] = field(default_factory=Counter)
    clips: Counter[str] = field(default_factory=Counter)
    recordings: dict[str, set[str]] = field(default_factory=dict)
    licences: Counter[str] = field(default_factory=Counter)
    conditions: Counter[str] = field(default_factory=Counter)
    contradictions: Counter[str] = field(default_factory=Counter)
    obstacles: Counter[str] = field(default_factory=Counter)  # scenes by what forbids to pass them on
    redistributable: int = 0
    lowered: int = 0
    cut_off: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def add_image(self, pairs: Iterable[PublishedPair]) -> None:
        """Count the scenes of one image."""
        for n, pair in enumerate(pairs):
            self.images[pair.split] += int(n == 0)
            self.scenes[pair.split] += 1
            self.sources_in_scene[len(pair.sources)] += 1
            self.conditions[" + ".join(pair.conditions) or "none"] += 1
            self.contradictions.update(pair.contradictions)
            self.obstacles.update(obstacles(pair.conditions))
            self.redistributable += pair.redistributable
            self.lowered += pair.mix_gain_db < 0
            self.cut_off += is_cut_off(pair.mix_gain_db, pair.peak_dbfs)
            for source in pair.sources:
                self.concepts[source.concept] += 1
                self.copies[source.copy] += 1
                self.target_lufs[math.floor(source.target_lufs / LOUDNESS_STEP_LU)] += 1

    def add_clip(self, clip: PublishedClip, uses: int) -> None:
        """Count a clip that is heard."""
        self.clip_uses[uses] += 1
        self.clips[clip.corpus] += 1
        self.licences[clip.licence] += 1
        self.recordings.setdefault(clip.corpus, set()).add(clip.recording)

    def statistics(self) -> Statistics:
        """The counts as they are written."""
        target_lufs = {f"{step * LOUDNESS_STEP_LU:.1f}": n for step, n in sorted(self.target_lufs.items())}
        return Statistics(
            images=_by_name(self.images),
            scenes=_by_name(self.scenes),
            concepts=_most_first(self.concepts, MOST_CONCEPTS),
            distinct_concepts=len(self.concepts),
            sources_in_scene=_by_number(self.sources_in_scene),
            copies=_by_name(self.copies),
            target_lufs=target_lufs,
            clip_uses=_by_number(self.clip_uses),
            clips=_by_name(self.clips),
            recordings={corpus: len(names) for corpus, names in sorted(self.recordings.items())},
            licences=_most_first(self.licences),
            conditions=_most_first(self.conditions),
            contradictions=_most_first(self.contradictions),
            redistributable=self.redistributable,
            lowered=self.lowered,
            cut_off=self.cut_off,
            left_out=_by_name(self.left_out),
        )


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _by_number(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(number): n for number, n in sorted(counts.items())}


def _most_first(counts: Mapping[str, int], most: int | None = None) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
