"""What one fold takes: pairs of each arm, training, pictures, and how well the instruments see and hear.

R  recordings, T D  times and width of the condition
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from benchmarks.learning.collection import (
    CLASSES,
    TARGET_LUFS,
    Photo,
    Recording,
    mix_levelled,
    read_distractors,
    read_photos,
    read_recordings,
)
from benchmarks.learning.judging import (
    LEVELS_DB,
    Gallery,
    Held,
    distances,
    gather,
    load_pipeline,
    make_gallery,
)
from benchmarks.learning.pairing import (
    Heard,
    Paired,
    Sonified,
    balanced,
    count_sounds,
    hear_alone,
    make_pool,
    mismatched,
    pair_by_class,
    pair_by_sonify,
    pair_freshly,
    shuffled,
    sonify_photos,
)
from benchmarks.learning.senses import Ear, Eye, nearest_class
from benchmarks.learning.training import SMALL, encode_photos, training_config, write_features
from benchmarks.learning.verdicts import balanced_accuracy
from sonify.features.vae import Vae, decode, load_vae
from sonify.models.fetch import VAE_FILES, fetch_model
from sonify.models.loading import choose_device
from tests.tiny_networks import taesd_folder
from train import pixart
from train.pipeline import AudioPixArtPipeline

log = logging.getLogger(__name__)

# What is heard with the photographs, by the arm's name.
ARMS = {
    "a": "true pairs: recordings of the photograph's class",
    "b": "by `sonify` as shipped, 8 draws",
    "c": "the recordings of (a), shuffled",
    "d": "by the paper's own rules",
    "d-all": "by the paper's own rules, on all photographs that they find a sound for",
    "f": "(a) with 44 % mismatched: another of the six classes",
    "f-pool": "(a) with 44 % mismatched: any other class of the pool",
    "e-one": "(b) with one draw",
    "e-fresh": "(b) with 96 draws, each heard about three times",
    "g-wide": "(b) with loudness between -39 and -21 LUFS",
}
DONE = "complete"  # in a folder of features
MIXING_ARMS = ("b", "g-wide")  # that are shown mixtures of two recordings
PICTURES = 4  # of a held-out recording
MIXED_PAIRS = 3  # of each two classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all folds share; `heard` are the recordings, each alone."""

    data: Path
    out: Path
    photos: Sequence[Photo]
    recordings: Sequence[Recording]
    distractors: Sequence[Recording]
    heard: Sequence[Heard]
    ear: Ear
    eye: Eye
    vae: Vae
    vae_folder: Path

    @property
    def sounds(self) -> Path:
        """The folder of the six classes' recordings."""
        return self.data / "sounds"


def open_bench(folder: Path, out: Path) -> Bench:
    """Load networks and tables, and hear every recording. `folder` holds `learning/`, `sounds/` and `weights/`."""
    data, weights = folder / "learning", folder / "weights"
    photos, recordings = read_photos(data), read_recordings(data)
    ear = Ear(weights / "yamnet")
    vae_folder = taesd_folder(weights / "taesd", out.resolve() / "taesd")
    return Bench(
        data=data,
        out=out.resolve(),
        photos=photos,
        recordings=recordings,
        distractors=read_distractors(folder / "sounds", recordings),
        heard=[hear_alone(data / "sounds", recording, ear) for recording in recordings],
        ear=ear,
        eye=Eye(weights / "mobilenet_v2", photos),
        vae=load_vae(fetch_model(str(vae_folder), None, VAE_FILES), choose_device("auto"), torch.float32),
        vae_folder=vae_folder,
    )


def eye_accuracy(bench: Bench) -> float:
    """Balanced accuracy on the photographs as the autoencoder gives them back: no picture made here can be plainer."""
    latents = torch.from_numpy(encode_photos(bench.vae, [bench.data / "photos" / photo.file for photo in bench.photos]))
    pixels = [decode(bench.vae, part)[0] for part in latents.split(1)]
    true = np.array([CLASSES.index(photo.name) for photo in bench.photos])
    return balanced_accuracy(true, np.array([bench.eye(one).argmax() for one in pixels]) == true)


def ear_accuracy(bench: Bench, folds: Sequence[int]) -> float:
    """Balanced accuracy of the nearest class on held-out conditions: how much there is to be learned from them."""
    true, right = [], []
    for fold in folds:
        known = [one for one, recording in zip(bench.heard, bench.recordings, strict=True) if recording.fold != fold]
        means, names = np.stack([one.audio_TD.mean(axis=0) for one in known]), [one.names[0] for one in known]
        for one in held_out(bench, fold):
            true.append(CLASSES.index(one.names[0]))
            right.append(nearest_class(one.audio_TD, means, names) == one.names[0])
    return balanced_accuracy(np.array(true), np.array(right))


def held_out(bench: Bench, fold: int) -> list[Heard]:
    """The recordings of a fold."""
    return [one for one, recording in zip(bench.heard, bench.recordings, strict=True) if recording.fold == fold]


class Fold:
    """A fold that is held out: what its arms train on, and what they are judged by."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.number = number
        self.folder = bench.out / f"fold-{number}"
        self._bench = bench
        self._training = [recording for recording in bench.recordings if recording.fold != number]
        self.pool = make_pool(bench.data.parent, self._training, bench.distractors)
        self.sonified = cache(self._sonified)
        self.true_pairs = cache(self._true_pairs)
        self._alone = cache(lambda: self.sonified("shipped").alone())
        self.chosen = self._with_sound("shipped")

    def _with_sound(self, rules: str) -> list[tuple[Photo, int]]:
        found = self.sonified(rules).scenes
        return balanced([photo for photo in self._bench.photos if photo.file in found], seed=self.number)

    def _sonified(self, rules: str) -> Sonified:
        """The photographs as `sonify` paired them by these rules."""
        bench = self._bench
        return sonify_photos(bench.data, self.pool, self.folder / "sonify", rules, bench.ear)

    def _true_pairs(self) -> list[Paired]:
        bench = self._bench
        return pair_by_class(self.chosen, bench.sounds, self._training, bench.ear, seed=self.number)

    def counted(self, rules: str) -> dict[str, dict[str, float]]:
        """What all photographs hear by these rules, and what there is to draw from."""
        table = count_sounds(self.sonified(rules), self._bench.photos)
        trained = {photo.file: photo.name for photo, _ in self.chosen}
        for name in CLASSES:
            table[name]["trained_on"] = sum(one == name for one in trained.values())
        table["all"]["trained_on"] = len(trained)
        return table | {"pool": {"recordings": len(self.pool.files), "distractors": self.pool.distractors}}

    def yardstick(self) -> dict[str, list]:
        """How far photographs that no arm is trained on are from the nearest that arms are trained on: by features and
        by latents, of each."""
        trained, others = self.galleries
        by_features, by_latents, _ = distances(trained, others.latents_NCHW, others.features_NF)
        return {
            "features": by_features.round(4).tolist(),
            "latents": by_latents.round(4).tolist(),
            "classes": list(others.names),
            "trained": list(trained.files),
            "trained_classes": list(trained.names),
        }

    def pairs(self, arm: str) -> list[Paired]:
        """What an arm trains on."""
        made: Mapping[str, Callable[[], list[Paired]]] = {
            "a": self.true_pairs,
            "b": lambda: pair_by_sonify(self.chosen, self.sonified("shipped")),
            "c": lambda: shuffled(self.true_pairs(), self.number),
            "d": lambda: pair_by_sonify(self.chosen, self.sonified("paper")),
            "d-all": lambda: pair_by_sonify(self._with_sound("paper"), self.sonified("paper")),
            "f": lambda: mismatched(self.true_pairs(), self.alone(CLASSES), self.number),
            "f-pool": lambda: mismatched(self.true_pairs(), self.alone(None), self.number),
            "e-one": lambda: pair_by_sonify(self.chosen, self.sonified("shipped"), scenes=1),
            "e-fresh": lambda: pair_freshly(self.chosen, self.sonified("shipped")),
            "g-wide": lambda: pair_by_sonify(self.chosen, self.sonified("wide")),
        }
        return made[arm]()

    def alone(self, names: Sequence[str] | None) -> list[Heard]:
        """Each recording of the pool by itself, of these classes or of all."""
        heard = self._alone()
        return [one for one in heard if names is None or one.names[0] in names]

    @cached_property
    def galleries(self) -> tuple[Gallery, Gallery]:
        """The photographs that arms train on, and all others of the six classes."""
        bench, trained = self._bench, {photo.file for photo, _ in self.chosen}
        galleries: list[Gallery] = []
        for wanted in (True, False):
            photos = [photo for photo in bench.photos if (photo.file in trained) is wanted]
            latents_NCHW = encode_photos(bench.vae, [bench.data / "photos" / photo.file for photo in photos])
            galleries.append(make_gallery(bench.vae, bench.eye, latents_NCHW, [(p.file, p.name) for p in photos]))
        return galleries[0], galleries[1]

    def held(self, *, mixtures: bool) -> Held:
        """What models of this fold are judged by."""
        bench = self._bench
        held = held_out(bench, self.number)
        recordings = [recording for recording in bench.recordings if recording.fold == self.number]
        pairs = mixed_pairs(recordings) if mixtures else []
        mixed = [
            [
                bench.ear(mix_levelled([bench.sounds / one.file, bench.sounds / other.file], targets(level)))
                for level in LEVELS_DB
            ]
            for one, other in pairs
        ]
        return Held(
            true_R=np.array([CLASSES.index(one.names[0]) for one in held]),
            uploads_R=np.array([recording.upload for recording in recordings]),
            audio_RTD=np.stack([one.audio_TD for one in held]),
            classes_P2=np.array([[CLASSES.index(one.name) for one in pair] for pair in pairs]).reshape(-1, 2),
            mixtures_PLTD=np.array(mixed, np.float32),
        )


def mixed_pairs(recordings: Sequence[Recording]) -> list[tuple[Recording, Recording]]:
    """`MIXED_PAIRS` pairs of recordings of each two classes."""
    of_class = {name: [one for one in recordings if one.name == name] for name in CLASSES}
    return [
        (of_class[first][n], of_class[second][(n + 1) % len(of_class[second])])
        for first, second in combinations(CLASSES, 2)
        for n in range(MIXED_PAIRS)
    ]


def targets(level_db: float) -> tuple[float, float]:
    """The loudness of two recordings of which the first is `level_db` above the second."""
    return TARGET_LUFS + level_db / 2, TARGET_LUFS - level_db / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One to be trained and judged; `key` is its name in files."""

    fold: int
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"fold-{self.fold}/{self.arm}-{self.seed}"


def evidence_file(out: Path, model: Model, steps: int) -> Path:
    """Where what is known of a model lies: once it is there the model is neither trained nor judged again."""
    return out / f"judged-{steps}" / f"{model.key}.npz"


def examine(bench: Bench, fold: Fold, model: Model, steps: int) -> float:
    """Train a model and judge it, where that is still to do; the seconds that it took."""
    started = time.monotonic()
    pipeline = train_on(bench, fold, model.arm, steps, model.seed)
    held = fold.held(mixtures=model.arm in MIXING_ARMS)
    evidence = gather(pipeline, held, PICTURES, bench.eye, fold.galleries[0])
    evidence.save(evidence_file(bench.out, model, steps))
    return time.monotonic() - started


def train_on(bench: Bench, fold: Fold, arm: str, steps: int, seed: int = 0) -> AudioPixArtPipeline:
    """Train on an arm's pairs, or take what was trained before, and load it."""
    features = fold.folder / f"features-{arm}"
    if not (features / DONE).is_file():
        write_features(fold.pairs(arm), bench.data / "photos", bench.vae, bench.vae_folder, features)
        (features / DONE).touch()
    run_dir = fold.folder / f"train-{arm}-{seed}-{steps}"
    log.info("fold %d: training on pairs (%s), seed %d: %s", fold.number, arm, seed, run_dir)
    pixart.train(training_config(features, bench.vae_folder, run_dir, steps, SMALL, seed))
    return load_pipeline(run_dir / "pipeline")
