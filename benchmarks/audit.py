"""Do the metrics tell a true sound from a wrong one, on small models that learned to see what they hear?

    python -m benchmarks.audit --data DIR --out runs/learning [--steps N] [--fold 5] [--seeds N]

Takes the models of `benchmarks.learning` (or trains them: the same command, the same folders): one on pairs of the same
class and one on shuffled pairs, which learned nothing and of which no metric should tell anything. The held-out
recordings of a fold are prepared as a suite, each model paints them, and `eval.audit` holds every picture against its
own sound, against those of other classes, and against what the model paints with guidance off.

Two classifiers stand for the towers: MobileNet sees how much of each of six classes is in a picture, YAMNet hears how
much of each is in a sound, by fixed lists of the names that ImageNet and AudioSet have for them. The vector of either
is the logarithm of the six, about their mean, so that the cosine of two is their correlation over the labels. YAMNet's
scores are also the models' condition: the ear that judges is the ear that they were trained with.

The page of figures lies in OUT/audit; prints one JSON line.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.audit", extra="dev"))

import csv
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.learning.bench import Bench, Fold, held_out, open_bench, train_on
from benchmarks.learning.collection import CLASSES, TARGET_LUFS, Recording
from benchmarks.learning.judging import GUIDANCE, STEPS, paint
from benchmarks.learning.senses import SCALE, Ear, Eye
from eval.audit import Audit, audit, verdicts, write_audit
from eval.pictures import Made, Picture, read_made
from eval.prepare import prepare
from eval.score import gather_for, picture_values
from eval.suites.config import FolderSuite
from eval.suites.suite import SUITE, Suite, read_suite
from eval.towers.cache import Vectors
from eval.towers.inputs import at_rate
from eval.towers.tower import Judges, Sound, Tower, Way
from sonify.config.loader import make_settings
from sonify.io.write import sha256_of
from sonify.terminal import Parser, run_command
from train.manifest import MANIFEST, GeneratedImage, GenerationSettings, write_image, write_manifest
from train.pipeline import AudioPixArtPipeline

log = logging.getLogger(__name__)

# What models are trained on, and what they are called then.
KINDS = {"a": "pairs of the same class", "c": "shuffled pairs"}
METRICS = ("ais_cosine", "ais_z", "ais_rank", "aic")
SAMPLE_RATE_HZ = 16_000
FULL_SCALE = 32768
LEAST = 1e-4  # of a class's score: what is not heard at all is not heard infinitely less
# AudioSet's names for what the six classes sound like; `benchmarks.learning.senses` has ImageNet's.
HEARD_AS: Mapping[str, Sequence[str]] = {
    "cat": ("Cat", "Purr", "Meow", "Caterwaul"),
    "chirping_birds": ("Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet"),
    "dog": ("Dog", "Bark", "Whimper (dog)", "Canidae, dogs, wolves"),
    "engine": ("Engine", "Engine starting", "Engine knocking", "Medium engine (mid frequency)"),
    "insects": ("Insect", "Cricket", "Mosquito", "Fly, housefly", "Bee, wasp, etc."),
    "sea_waves": ("Ocean", "Waves, surf"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.audit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds `learning/` and `weights/`")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="of benchmarks.learning, too")
    parser.add_argument("--steps", type=int, default=700, help="of each model")
    parser.add_argument("--fold", type=int, default=5, help="that is held out")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each held-out recording")
    arguments = parser.parse_args(argv)

    def work() -> None:
        bench = open_bench(arguments.data, arguments.out)
        found = measure(bench, arguments.fold, arguments.steps, arguments.seeds)
        print(json.dumps(json_line(found, arguments.steps, arguments.seeds)))

    return run_command("benchmarks.audit", work)


def measure(bench: Bench, fold: int, steps: int, num_seeds: int) -> Audit:
    """Train what is not trained, paint what is not painted, and audit."""
    out = bench.out / "audit" / f"fold-{fold}-{steps}"
    suite = held_out_suite(bench, fold, bench.out / "audit" / f"fold-{fold}" / "suite")
    audio_RTD = {Path(one.recordings[0]).stem: one.audio_TD for one in held_out(bench, fold)}
    held = Fold(bench, fold)
    made: list[Made] = []
    nulls: list[Made] = []
    for name, title in KINDS.items():
        painter = _Painter(lambda name=name: train_on(bench, held, name, steps), title, num_seeds)
        conditions = np.stack([audio_RTD[item.id] for item in suite.items])
        made.append(painter(suite, conditions, out / f"pictures-{name}"))
        nulls.append(painter(suite, np.zeros_like(conditions), out / f"pictures-{name}-null"))
    judges = classifiers(bench.data.parent / "weights", bench.eye, bench.ear)
    evidence = gather_for(suite, [*made, *nulls], judges, Vectors(out / "vectors"), METRICS)

    def scorer(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        return {name: values.values_N for name, values in picture_values(evidence, pictures, METRICS).items()}

    found = audit(suite, made, scorer, nulls)
    write_audit(found, out)
    return found


def held_out_suite(bench: Bench, fold: int, folder: Path) -> Suite:
    """The recordings of a fold as a suite; takes of the same upload are one recording."""
    if (folder / SUITE).is_file():
        return read_suite(folder)
    table = folder.parent / "sounds.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "sound", "label", "recording"))
        writer.writerows(held_out_table(bench.data, bench.recordings, fold))
    config = {"kind": "folder", "name": f"learning_fold_{fold}", "path": str(table), "metrics": list(METRICS)}
    return prepare(make_settings(config, FolderSuite), folder)


def held_out_table(data: Path, recordings: Sequence[Recording], fold: int) -> list[tuple[str, str, str, str]]:
    """Id, file, label and upload of each recording of a fold; ESC-50's `5-9032-B-0.flac` is a take of upload 9032."""
    files = [((data / "sounds" / one.file).resolve(), one.name) for one in recordings if one.fold == fold]
    return [(file.stem, str(file), name, "-".join(file.stem.split("-")[:2])) for file, name in files]


class _Painter:
    """Fills folders with a model's pictures; the model is loaded when some are missing."""

    def __init__(self, load: Callable[[], AudioPixArtPipeline], title: str, num_seeds: int) -> None:
        self._load = load
        self._pipeline: AudioPixArtPipeline | None = None
        self._title = title
        self._num_seeds = num_seeds

    def __call__(self, suite: Suite, audio_RTD: np.ndarray, folder: Path) -> Made:
        if not (folder / MANIFEST).is_file():
            self._pipeline = self._pipeline or self._load()
            log.info("%s: painting %d pictures", folder, self._num_seeds * len(suite.items))
            (folder / "images").mkdir(parents=True, exist_ok=True)
            rows: list[GeneratedImage] = []
            for seed in range(self._num_seeds):
                pixels_RHWC = paint(self._pipeline, audio_RTD, seed)
                for item, pixels_HWC in zip(suite.items, pixels_RHWC, strict=True):
                    settings = GenerationSettings(
                        guidance=GUIDANCE if audio_RTD.any() else 1.0, steps=STEPS, precision="bf16",
                        target_lufs=TARGET_LUFS, gains_db=(0.0,), separate=False, clip_seconds=item.seconds,
                    )  # fmt: skip
                    row = GeneratedImage(
                        image=f"images/{item.id}-{seed}.png", sound=str(suite.folder / item.sound.file), mixed_with=(),
                        sound_sha256=(item.sound.sha256,), start_sec=0.0, seed=seed,
                        model=self._title,
                        model_sha256=hashlib.sha256(str(folder).encode()).hexdigest(), settings=settings,
                    )  # fmt: skip
                    write_image(folder, row, Image.fromarray(pixels_HWC))
                    rows.append(row)
            write_manifest(folder, rows)
        return read_made(suite, folder)


def classifiers(weights: Path, eye: Eye, ear: Ear) -> Judges:
    """MobileNet for what a picture shows and YAMNet for what is heard, in one space of six classes."""
    members = class_members(weights / "yamnet" / "yamnet_class_map.csv")
    seeing = Way(preprocessing="224 px bicubic, log of six classes, centred", embed=lambda some: _seen(eye, some))
    hearing = Way(
        preprocessing="16 kHz soxr HQ, mean of windows, log of six classes, centred",
        embed=lambda some: np.stack([_heard(ear, one, members) for one in some]),
        sample_rate_hz=SAMPLE_RATE_HZ,
    )
    sees = Tower(
        name="MobileNet v2 (ImageNet), six classes",
        model="tf2_mobilenet_v2_1.0_224_ptq.tflite",
        sha256=sha256_of(weights / "mobilenet_v2" / "tf2_mobilenet_v2_1.0_224_ptq.tflite"),
        images=seeing,
        texts=Way(preprocessing="one of six classes", embed=_named),
    )
    hears = Tower(
        name="YAMNet (AudioSet), six classes",
        model="yamnet.tflite",
        sha256=sha256_of(weights / "yamnet" / "yamnet.tflite"),
        sounds=hearing,
    )
    return Judges(clip_b32=sees, clip_l14=sees, wav2clip=hears)


def class_members(class_map: Path) -> list[list[int]]:
    """The positions of each class's names among AudioSet's 521."""
    with class_map.open(newline="") as file:
        of = {row["display_name"]: int(row["index"]) for row in csv.DictReader(file)}
    return [[of[name] for name in HEARD_AS[one]] for one in CLASSES]


def _seen(eye: Eye, pictures: Sequence[Image.Image]) -> np.ndarray:
    return _centred(np.stack([eye(np.asarray(picture.convert("RGB"))) for picture in pictures]))


def _heard(ear: Ear, sound: Sound, members: Sequence[Sequence[int]]) -> np.ndarray:
    samples = np.clip(np.rint(at_rate(sound, SAMPLE_RATE_HZ) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    scores_D = np.square(ear(samples.astype(np.int16)) / SCALE).mean(axis=0)
    return _centred(np.log(np.array([scores_D[rows].max() for rows in members]) + LEAST)[None])[0]


def _named(texts: Sequence[str]) -> np.ndarray:
    """A class for each text that ends in its name, less what all have in common."""
    return _centred(np.array([[float(text.endswith(one)) for one in CLASSES] for text in texts]))


def _centred(scores_BK: np.ndarray) -> np.ndarray:
    return (scores_BK - scores_BK.mean(axis=1, keepdims=True)).astype(np.float32)


def json_line(found: Audit, steps: int, seeds: int) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    lines = [
        {
            "metric": one.metric,
            "model": one.model,
            "control": one.control,
            "true": round(one.true, 4),
            "wrong": round(one.wrong, 4),
            "difference": [
                _rounded(value) for value in (one.difference.value, one.difference.low, one.difference.high)
            ],
            "p": one.difference.p,
            "p_holm": one.p_holm,
            "share": _rounded(one.share.value),
            "verdict": one.verdict,
        }
        for one in found.findings
    ]
    recordings = max(one.recordings for one in found.findings)
    facts = {"steps": steps, "seeds": seeds, "recordings": recordings}
    return {"name": "audit", **facts, "verdicts": verdicts(found), "findings": lines}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
