"""What one fold takes: pairs, training, pictures, and how well the instruments see and hear.

R  recordings, T D  times and width of the condition
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.learning.collection import CLASSES, Photo, Recording, read_photos, read_recordings
from benchmarks.learning.ear import Ear, nearest_class
from benchmarks.learning.eye import Eye
from benchmarks.learning.judging import Judged, judge, load_pipeline
from benchmarks.learning.pairing import (
    MIN_COSINE,
    Heard,
    Paired,
    balanced,
    count_pairs,
    pair_by_class,
    pair_by_sonify,
    read_heard,
    read_scenes,
    read_sources,
    shuffled,
    sonify_photos,
)
from benchmarks.learning.statistics import balanced_accuracy
from benchmarks.learning.training import encode_photos, train, training_config, write_features
from sonify.features.vae import Vae, decode, load_vae
from sonify.models.fetch import VAE_FILES, fetch_model
from sonify.models.loading import choose_device
from tests.tiny_networks import taesd_folder
from train.pipeline import AudioPixArtPipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all folds share; `heard` are the recordings, each alone."""

    data: Path
    out: Path
    photos: Sequence[Photo]
    recordings: Sequence[Recording]
    heard: Sequence[Heard]
    ear: Ear
    eye: Eye
    vae: Vae
    vae_folder: Path


def open_bench(folder: Path, out: Path) -> Bench:
    """Load networks and tables, and hear every recording. `folder` holds `learning/` and `weights/`."""
    data, weights = folder / "learning", folder / "weights"
    photos, recordings = read_photos(data), read_recordings(data)
    ear = Ear(weights / "yamnet")
    vae_folder = taesd_folder(weights / "taesd", out.resolve() / "taesd")
    return Bench(
        data=data,
        out=out.resolve(),
        photos=photos,
        recordings=recordings,
        heard=read_heard(data, recordings, ear),
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


def make_pairs(bench: Bench, fold: int) -> tuple[dict[str, list[Paired]], dict[str, dict]]:
    """The pairs a, b, c of a fold, and how `sonify` paired: as it is used here, and without its limit, as the paper."""
    training = [recording for recording in bench.recordings if recording.fold != fold]
    heard = [one for one, recording in zip(bench.heard, bench.recordings, strict=True) if recording.fold != fold]
    tables: dict[str, dict] = {}
    for min_cosine in (0.0, MIN_COSINE):
        config = sonify_photos(bench.data, training, bench.out / f"fold-{fold}" / "sonify", min_cosine)
        sources = read_sources(Path(str(config.run_dir)))
        title = f"fold {fold} held out, min_cosine {min_cosine}"
        tables[title] = count_pairs(sources, bench.photos, training)
    chosen = balanced([photo for photo in bench.photos if photo.file in sources], seed=fold)
    scenes = read_scenes(Path(str(config.run_dir)), {photo.file for photo, _ in chosen}, training, bench.ear)
    by_class = pair_by_class(chosen, heard, seed=fold)
    return {"a": by_class, "b": pair_by_sonify(chosen, scenes), "c": shuffled(by_class, seed=fold)}, tables


def train_and_judge(
    bench: Bench, fold: int, pairs: Mapping[str, Sequence[Paired]], steps: int, num_seeds: int
) -> dict[str, dict[str, Judged]]:
    """Train on each kind of pairs, and judge pictures of the held-out recordings, with the audio and with it zeroed."""
    held = held_out(bench, fold)
    audio_RTD = np.stack([one.audio_TD for one in held])
    true_R = np.array([CLASSES.index(one.names[0]) for one in held])
    judged: dict[str, dict[str, Judged]] = {}
    for name, paired in pairs.items():
        pipeline = train_on(bench, fold, name, paired, steps)
        conditions = {"audio": audio_RTD, "zeroed": np.zeros_like(audio_RTD)}
        judged[name] = {part: judge(pipeline, one, true_R, num_seeds, bench.eye) for part, one in conditions.items()}
    return judged


def train_on(bench: Bench, fold: int, name: str, paired: Sequence[Paired], steps: int) -> AudioPixArtPipeline:
    """Train on the pairs `name` of a fold, or take what was trained before, and load it."""
    folder = bench.out / f"fold-{fold}"
    features = write_features(paired, bench.data / "photos", bench.vae, bench.vae_folder, folder / f"features-{name}")
    config = training_config(features, bench.vae_folder, folder / f"train-{name}-{steps}", steps)
    log.info("fold %d: training on pairs (%s): %s", fold, name, config.run_dir)
    train(config)
    return load_pipeline(config.run_dir / "pipeline")
