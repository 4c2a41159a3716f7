"""Does an independent ear hear what was paired? YAMNet, which knows nothing of the concepts, listens to the mixes."""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from sonify.captions.ontology import find_sounds, load_ontology, match_sounds
from sonify.captions.words import tokenize
from sonify.running import run
from tests.builders import members_of, small_config, sounds_in, write_csv

# Of 521 classes; a mix of three has three sources to be found among them.
BEST_CLASSES = 10
WINDOW = 15_600  # 0.975 s


class Ear:
    """YAMNet: 16 kHz mono to the classes that it hears best in any window."""

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - prints when it is imported

        self._interpreter = Interpreter(str(folder / "yamnet.tflite"))
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_input_details()[0]
        self._input, self._shape = details["index"], details["shape"]
        self._scores = self._interpreter.get_output_details()[0]["index"]
        with (folder / "yamnet_class_map.csv").open(newline="") as file:
            self._mids = [row["mid"] for row in csv.DictReader(file)]

    def _score(self, window: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input, window.astype(np.float32).reshape(self._shape))
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._scores).reshape(-1)

    def __call__(self, samples: np.ndarray) -> list[str]:
        """The ids of the best classes."""
        windows = np.lib.stride_tricks.sliding_window_view(samples / 32768, WINDOW)[:: WINDOW // 2]
        scores = np.max([self._score(window) for window in windows], axis=0)
        return [self._mids[n] for n in np.argsort(-scores)[:BEST_CLASSES]]


def agrees(concept: str, heard: list[str]) -> bool:
    """Whether a class of the concept, one below it or its parent is among what is heard."""
    ontology = load_ontology()
    named = {match.class_id for match in match_sounds(tokenize(concept))}
    for class_id in heard:
        distances = ontology[class_id].distances
        if named & set(distances) or any(ontology[n].distances.get(class_id) == 1 for n in named):
            return True
    return False


def scenes(run_dir: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """The concepts and the samples of each rendered scene."""
    contents = members_of(run_dir / "shards")
    for name, data in contents.items():
        if name.endswith(".json"):
            record = json.loads(data)
            for scene in record["scenes"]:
                flac = contents[f"{record['key']}.{scene['scene']}.flac"]
                samples, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
                assert rate == 16000
                yield [source["concept"] for source in scene["sources"]], samples


def write_joined_captions(photos: Path, table: Path) -> Path:
    """Captions that name what is in two photographs, so that scenes have several sources."""
    with (photos / "captions.csv").open(newline="") as file:
        rows = [(row["file"], row["caption"]) for row in csv.DictReader(file)]
    sounding = [(name, caption) for name, caption in rows if find_sounds(caption)]
    joined = [
        (name, f"{caption}, {sounding[(n + 1) % len(sounding)][1]}, {sounding[(n + 7) % len(sounding)][1]}")
        for n, (name, caption) in enumerate(sounding)
    ]
    return write_csv(table, ("file", "caption"), joined)


def test_an_independent_classifier_hears_what_was_paired(test_data, tmp_path):
    joined = write_joined_captions(test_data / "photos", tmp_path / "joined.csv")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "joined", "file": str(joined)}]
    config = small_config(
        tmp_path,
        images={"path": str(test_data / "photos"), "shard_size": 64},
        audio=sounds_in(test_data / "sounds"),
        concepts={"extractors": extractors},
        retrieval={"min_cosine": 0.2},
    )
    run(config)
    ear = Ear(test_data / "weights" / "yamnet")
    found = [(concepts, ear(samples)) for concepts, samples in scenes(Path(str(config.run_dir)))]
    hits: Counter[str] = Counter()
    for n, (concepts, heard) in enumerate(found):
        kind = "single" if len(concepts) == 1 else "mixed"
        _, elsewhere = found[(n + len(found) // 2) % len(found)]
        for concept in concepts:
            hits[f"{kind} asked"] += 1
            hits[f"{kind} heard"] += agrees(concept, heard)
            hits[f"{kind} by chance"] += agrees(concept, elsewhere)
    logging.getLogger(__name__).info("%s", dict(hits))  # pytest -o log_cli=true --log-level=INFO shows it

    for kind in ("single", "mixed"):
        heard, chance = hits[f"{kind} heard"] / hits[f"{kind} asked"], hits[f"{kind} by chance"] / hits[f"{kind} asked"]
        assert heard > 0.4
        assert heard > 3 * chance
