"""Counts over what is published, made row by row; memory follows the different concepts, not the scenes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sonify.publish.licences import obstacles
from sonify.publish.rows import PublishedClip, PublishedPair, Statistics

LOUDNESS_STEP_LU = 0.5
# Models say things in very many ways; the record names those that matter.
MOST_CONCEPTS = 1000


@dataclass(slots=True)
class Tally:
    """Everything that is counted."""

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
            left_out=_by_name(self.left_out),
        )


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _by_number(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(number): n for number, n in sorted(counts.items())}


def _most_first(counts: Mapping[str, int], most: int | None = None) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
