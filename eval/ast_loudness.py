"""How much loudness do features keep? AST's against HuBERT's, by nearest neighbours under growing gain.

    python -m eval.ast_loudness --audio *.wav --out DIR

Every clip is brought to one loudness and then to each gain (as floats, so that nothing is limited); the mean over time
of its features is one point. Writes ast_loudness.png and ast_loudness.json, whose summary is explained at
`eval.neighbours.LoudnessKept`. HuBERT listens twice: to sound as its front end prepares it, at unit variance, which
removes a gain before the network hears it; and to sound as it is, where the group norm over time behind the base
model's first layer leaves of a gain what its epsilon lets through. Needs both models, and none that makes pictures.

    C  clips, G  gains, B  sounds, S  samples, T D  times and width of features
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from eval.figures import COLOURS, plot_intervals
from eval.neighbours import LoudnessKept, judge_loudness
from eval.study import StudyParser, at_least, check_out, read_heard, run_study, write_study
from sonify.config.config import AST_SECONDS
from sonify.errors import InputError
from sonify.features.ast import AstFeatures, load_ast
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, measure_loudness
from sonify.models.fetch import AST_FILES, Files, check_config, check_processor, check_weights, fetch_model
from sonify.models.loading import choose_device, load_network, load_part
from train.sounds import MIN_CLIP_SECONDS, SAMPLE_RATE_HZ, TARGET_LUFS

log = logging.getLogger(__name__)

AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
HUBERT = "facebook/hubert-base-ls960"
HUBERT_FILES = Files(patterns=("*.json", "*.safetensors"), checks=(check_config, check_weights, check_processor))
MAX_GAIN_DB = 60
GAINS_DB = (-12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0)

Features = Callable[[np.ndarray], torch.Tensor]  # (B, S) float32 to (B, T, D)


def load_hubert(model: str, revision: str | None, device: torch.device) -> tuple[HubertModel, Wav2Vec2FeatureExtractor]:
    """Load a HuBERT of transformers with its front end.

    Raises:
        InputError: it cannot be had, or is another model.
    """
    fetched = fetch_model(model, revision, HUBERT_FILES)
    network = cast(HubertModel, load_network(HubertModel, fetched, device, torch.float32))
    extractor: Wav2Vec2FeatureExtractor = load_part(Wav2Vec2FeatureExtractor, fetched)
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise InputError(f"{model}: expected a front end of {SAMPLE_RATE_HZ} Hz, found {extractor.sampling_rate}")
    return network, extractor


def hubert_features(network: HubertModel, normalise: Callable[[np.ndarray], np.ndarray] | None) -> Features:
    """HuBERT's last hidden state, of sounds as they are or normalised one by one."""

    @torch.inference_mode()
    def features(audio_BS: np.ndarray) -> torch.Tensor:
        given_BS = audio_BS if normalise is None else np.stack([normalise(audio_S) for audio_S in audio_BS])
        return network(torch.from_numpy(given_BS).to(network.device)).last_hidden_state

    return features


def at_gains(clip: CutClip, gains_db: Sequence[float]) -> np.ndarray:
    """(G, S) float32: a clip at the target loudness, and each gain from there."""
    loudness_lufs = measure_loudness(clip.samples, SAMPLE_RATE_HZ)
    gains_G1 = 10 ** ((TARGET_LUFS - loudness_lufs + np.asarray(gains_db)[:, None]) / 20)
    return (clip.samples / FULL_SCALE * gains_G1).astype(np.float32)


def mean_features(features: Features, clips: Sequence[CutClip], gains_db: Sequence[float]) -> np.ndarray:
    """(C, G, D) float64: the mean over time of every clip at every gain; one sound at a time, so that none differs by
    what is heard beside it."""
    rows = []
    for number, clip in enumerate(clips, start=1):
        points = [features(audio_S[None]).double().mean(dim=1)[0].cpu().numpy() for audio_S in at_gains(clip, gains_db)]
        rows.append(np.stack(points))
        log.debug("clip %s of %s", number, len(clips))
    return np.stack(rows)


def draw(kept: Mapping[str, LoudnessKept]) -> Figure:
    """Recall and displacement by the difference of gain; how often the neighbour among other clips has the gain."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    recall, displacement, same = figure.subplots(1, 3)
    plot_intervals(
        recall, {name: k.recall for name, k in kept.items()}, "difference of gain (dB)", "finds its own clip"
    )
    recall.set_ylim(-0.03, 1.03)
    recall.set_title("Is the clip at another gain still nearest to itself?", fontsize=9)
    curves = {name: k.displacement for name, k in kept.items()}
    plot_intervals(displacement, curves, "difference of gain (dB)", "distance / mean between clips")
    displacement.set_title("How far does gain move a clip?", fontsize=9)
    intervals = [k.same_gain for k in kept.values()]
    means = [interval.mean for interval in intervals]
    below = [max(i.mean - i.low, 0.0) for i in intervals]
    above = [max(i.high - i.mean, 0.0) for i in intervals]
    same.bar(range(len(kept)), means, yerr=(below, above), color=COLOURS[: len(kept)], capsize=4, width=0.6)
    chance = next(iter(kept.values())).same_gain_chance
    same.axhline(chance, color="black", linestyle="--", linewidth=1, label=f"no loudness kept: {chance:.2f}")
    same.set_xticks(range(len(kept)), [name.replace(", ", ",\n") for name in kept], fontsize=8)
    same.set_ylim(0, 1)
    same.set_ylabel("share of clips and gains")
    same.set_title("Has the nearest other clip the same gain?", fontsize=9)
    same.legend(frameon=False, fontsize=8)
    same.spines[["top", "right"]].set_visible(False)
    return figure


def check_gains(gains_db: Sequence[float]) -> list[float]:
    """The gains in ascending order.

    Raises:
        InputError: fewer than two different ones, or one that is no number.
    """
    if not all(abs(gain_db) <= MAX_GAIN_DB for gain_db in gains_db) or len(set(gains_db)) < 2:
        raise InputError(
            f"--gains-db: expected two different numbers at least, from -{MAX_GAIN_DB} to {MAX_GAIN_DB}, found"
            f" {' '.join(map(str, gains_db))}"
        )
    return sorted(set(gains_db))


def _load(arguments: argparse.Namespace) -> tuple[dict[str, Features], dict[str, str]]:
    """The features that are compared, and the identities of the models."""
    device = choose_device("auto")
    fetched_ast = fetch_model(arguments.ast, arguments.ast_revision, AST_FILES)
    ast, ast_extractor = load_ast(fetched_ast, device, torch.float32)
    hubert, hubert_extractor = load_hubert(arguments.hubert, arguments.hubert_revision, device)

    def normalise(audio_S: np.ndarray) -> np.ndarray:
        normalised: list[np.ndarray] = hubert_extractor.zero_mean_unit_var_norm([audio_S], attention_mask=None)  # pyright: ignore[reportArgumentType] - None is "all samples"
        return normalised[0]

    features: dict[str, Features] = {
        "AST": AstFeatures(ast, ast_extractor, "mean"),
        "HuBERT, normalised": hubert_features(hubert, normalise),
        "HuBERT, as it is": hubert_features(hubert, None),
    }
    identities = {
        "ast_identity": fetched_ast.identity,
        "hubert_identity": fetch_model(arguments.hubert, arguments.hubert_revision, HUBERT_FILES).identity,
    }
    return features, identities


def _judge(
    features: Features, clips: Sequence[CutClip], gains_db: Sequence[float], paths: Sequence[Path], seed: int
) -> tuple[LoudnessKept, list[dict[str, Any]]]:
    kept, neighbours = judge_loudness(mean_features(features, clips, gains_db), gains_db, seed)
    items = [
        {
            "clip": paths[one.clip].name,
            "gain_db": one.gain_db,
            "nearest_clip": paths[one.nearest_clip].name,
            "nearest_gain_db": one.nearest_gain_db,
        }
        for one in neighbours
    ]
    return kept, items


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = StudyParser("eval.ast_loudness", "How much loudness do AST's features keep, against HuBERT's?")
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="recordings, two at least")
    parser.add_argument(
        "--gains-db",
        type=float,
        nargs="+",
        default=GAINS_DB,
        help=f"dB relative to {TARGET_LUFS:g} LUFS (default: -12 to 12 in steps of 3)",
    )
    parser.add_argument(
        "--clip-seconds",
        type=float,
        default=5.0,
        help=f"heard of each, {MIN_CLIP_SECONDS} to {AST_SECONDS} (default: %(default)s)",
    )
    parser.add_argument("--ast", default=AST, help="hub id or folder (default: %(default)s)")
    parser.add_argument("--ast-revision", help="of a hub id")
    parser.add_argument("--hubert", default=HUBERT, help="hub id or folder (default: %(default)s)")
    parser.add_argument("--hubert-revision", help="of a hub id; one that has safetensors")
    arguments = parser.parse_args(argv)

    def work() -> None:
        gains_db = check_gains(arguments.gains_db)
        paths = arguments.audio
        if len(paths) < 2:
            raise InputError(f"--audio: expected two sounds at least, found {len(paths)}: no neighbour to find")
        if not MIN_CLIP_SECONDS <= arguments.clip_seconds <= AST_SECONDS:  # a longer clip only HuBERT would hear whole
            raise InputError(
                f"--clip-seconds: expected {MIN_CLIP_SECONDS} to {AST_SECONDS}, found {arguments.clip_seconds:g}"
            )
        at_least("--seed", arguments.seed, 0)
        check_out(arguments.out)
        clips = [read_heard(path, arguments.clip_seconds) for path in paths]
        features, identities = _load(arguments)
        judged = {}
        for name, of_model in features.items():
            log.info("listening to %s clips at %s gains: %s", f"{len(clips):,}", len(gains_db), name)
            judged[name] = _judge(of_model, clips, gains_db, paths, arguments.seed)
        kept = {name: summary for name, (summary, _) in judged.items()}
        settings = {"ast": arguments.ast, "hubert": arguments.hubert, **identities, "seed": arguments.seed}
        facts = {"audio": paths, "gains_db": gains_db, "lufs": TARGET_LUFS, "clip_seconds": arguments.clip_seconds}
        result = {
            "study": "ast_loudness",
            "settings": settings | facts,
            "items": {name: items for name, (_, items) in judged.items()},
            "summary": kept,
        }
        write_study(arguments.out, "ast_loudness", result, draw(kept))

    return run_study("eval.ast_loudness", work)


if __name__ == "__main__":
    sys.exit(main())
