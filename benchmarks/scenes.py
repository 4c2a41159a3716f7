"""Does an ear hear what was mixed, by how far the ambience is below the rest, and with events or without?

    SONIFY_TEST_DATA=... python -m benchmarks.scenes

One minute. The photographs are mixed under each setting with the recordings that their captions name, one source in a
scene and up to five; YAMNet, which knows nothing of the concepts, listens. Prints one JSON line: for each setting the
share of sources that it hears, of single scenes and of mixed ones, there of the foreground, the ambience and events.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonify.config import Config
from sonify.report.status import pairs_of_run
from sonify.rows import Concept, Pair, SourceClip
from sonify.running import run
from sonify.stages.scene import is_ambience
from tests.builders import small_config, sounds_in
from tests.test_heard import Ear, agrees, scenes, write_joined_captions

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "before": {},
    "snr -6": {"snr_db": [-6.0, -6.0]},
    "snr 0": {"snr_db": [0.0, 0.0]},
    "snr 6": {"snr_db": [6.0, 6.0]},
    "snr 12": {"snr_db": [12.0, 12.0]},
    "snr 20": {"snr_db": [20.0, 20.0]},
    "events": {"events": {}},
    "snr 6, events": {"snr_db": [6.0, 6.0], "events": {}},
    "lufs -45 to -15": {"lufs": [-45.0, -15.0]},
}
MIN_COSINE = 0.2


@dataclass(frozen=True, slots=True)
class Heard:
    """A source of a scene, and how it is heard there."""

    image: str
    scene: str
    concept: str
    mixed: bool
    ambient: bool
    placed: bool


def config_of(data: Path, root: Path, name: str, mix: Mapping[str, Any]) -> Config:
    joined = write_joined_captions(data / "photos", root / "joined.csv")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "joined", "file": str(joined)}]
    return small_config(
        root,
        name,
        images={"path": str(data / "photos"), "shard_size": 64},
        audio=sounds_in(data / "sounds"),
        concepts={"extractors": extractors},
        retrieval={"min_cosine": MIN_COSINE},
        mix=dict(mix),
    )


def heard_in(config: Config, ear: Ear) -> Iterator[tuple[Pair, list[str]]]:
    """Each scene, and what is heard in it."""
    pairs = sorted(pairs_of_run(config.run_dir), key=lambda pair: (pair.image, pair.scene))
    mixes = scenes(Path(str(config.run_dir)))
    for pair, (concepts, samples) in zip(pairs, mixes, strict=True):
        assert [source.concept for source in pair.sources] == concepts
        yield pair, ear(samples)


def listen(config: Config, ear: Ear) -> dict[Heard, bool]:
    """For each source of a run: what it is, and whether it is heard."""
    return {
        Heard(
            pair.image, pair.scene, source.concept, len(pair.sources) > 1, _ambient(source), bool(source.onsets_sec)
        ): (agrees(source.concept, classes))
        for pair, classes in heard_in(config, ear)
        for source in pair.sources
    }


def _ambient(source: SourceClip) -> bool:
    return is_ambience(Concept(concept=source.concept, description=source.description))


def summarise(found: Mapping[Heard, bool], before: Mapping[Heard, bool]) -> dict[str, float]:
    """The share that is heard of each kind, and how many there are; of events also how many were without."""
    whole = {replace(one, placed=False): heard for one, heard in before.items()}
    kinds: dict[str, list[bool]] = {}
    for one, heard in found.items():
        kinds.setdefault("mixed" if one.mixed else "single", []).append(heard)
        if one.mixed:
            kinds.setdefault("ambience" if one.ambient else "foreground", []).append(heard)
        if one.placed:
            kinds.setdefault("events", []).append(heard)
            kinds.setdefault("the same, whole", []).append(whole[replace(one, placed=False)])
    shares = {kind: round(sum(heard) / len(heard), 4) for kind, heard in sorted(kinds.items())}
    return shares | {f"{kind} n": len(heard) for kind, heard in sorted(kinds.items())}


def main() -> None:
    folder = os.environ.get("SONIFY_TEST_DATA")
    if not folder:
        sys.exit("SONIFY_TEST_DATA is not set: name the folder of real photographs, recordings and weights")
    data = Path(folder)
    ear = Ear(data / "weights" / "yamnet")
    found: dict[str, dict[Heard, bool]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name, mix in SETTINGS.items():
            config = config_of(data, Path(root), f"run-{len(found)}", mix)
            run(config)
            found[name] = listen(config, ear)
    shares = {name: summarise(heard, found["before"]) for name, heard in found.items()}
    print(json.dumps({"name": "scenes", "unit": "share heard", **shares}))


if __name__ == "__main__":
    main()
