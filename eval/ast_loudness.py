"""How much loudness do features keep? AST's against HuBERT's, by nearest neighbours under growing gain.

    python -m eval.ast_loudness --audio *.wav --out DIR

Every clip is brought to one loudness and then to each gain (as floats, so that nothing is limited); the mean over time
of its features is one point. Writes ast_loudness.png and ast_loudness.json, whose summary is explained at
`LoudnessKept`. HuBERT listens twice: to sound as its front end prepares it, at unit variance, which
removes a gain before the network hears it; and to sound as it is, where the group norm over time behind the base
model's first layer leaves of a gain what its epsilon lets through. Needs both models, and none that makes pictures.

    C  clips, G  gains, N = C * G points, clip by clip, B  sounds, S  samples, T D  times and width of features
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.ast_loudness", extra="eval"))

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from eval.figures import COLOURS, Interval, mean_interval, plot_intervals
from eval.study import StudyParser, at_least, check_out, read_heard, run_study, write_study
from sonify.config.models import AST_SECONDS
from sonify.errors import InputError
from sonify.features.ast import AstFeatures, load_ast
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, measure_loudness
from sonify.models.fetch import AST_FILES, Files, check_config, check_processor, check_weights, fetch_model
from sonify.models.loading import choose_device, load_network, load_part
from train.windows import MIN_CLIP_SECONDS, SAMPLE_RATE_HZ, TARGET_LUFS

log = logging.getLogger(__name__)

AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
HUBERT = "facebook/hubert-base-ls960"
HUBERT_FILES = Files(patterns=("*.json", "*.safetensors"), checks=(check_config, check_weights, check_processor))
MAX_GAIN_DB = 60
GAINS_DB = (-12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0)

FeatureFunction = Callable[[np.ndarray], torch.Tensor]  # (B, S) float32 to (B, T, D)
# Distances this close to the smallest, as a share of the mean between clips, are ties, and each of them has its part of
# the neighbour: where features keep no loudness, points of one clip differ by rounding alone, which must not decide.
TIE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """The nearest point of all the others: of which clip, at which gain."""

    clip: int
    gain_db: float
    nearest_clip: int
    nearest_gain_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoudnessKept:
    """What the neighbours of all clips at all gains tell; intervals are over clips.

    same_gain: how often the nearest point of another clip has the query's gain; 1 where features keep loudness so
        well that it tells points of one loudness from all others, `same_gain_chance` where they keep none.
    gain_error_db: how far the gains of such two lie apart; `gain_error_chance_db` where loudness is not kept.
    same_clip: how often the nearest of all other points is of the query's own clip.
    recall: by the difference of gain, how often a clip is its own nearest among all clips at the other gain.
    displacement: by the difference of gain, the distance to the clip itself over the mean distance between clips; 0
        where features keep no loudness.
    """

    same_gain: Interval
    same_gain_chance: float
    gain_error_db: Interval
    gain_error_chance_db: float
    same_clip: Interval
    recall: dict[float, Interval]
    displacement: dict[float, Interval]


def load_hubert(
    model: str, revision: str | None, device: torch.device
) -> tuple[HubertModel, Wav2Vec2FeatureExtractor, str]:
    """Load a HuBERT of transformers with its front end; returns its commit or digest as well."""
    fetched = fetch_model(model, revision, HUBERT_FILES)
    network = cast(HubertModel, load_network(HubertModel, fetched, device, torch.float32))
    extractor: Wav2Vec2FeatureExtractor = load_part(Wav2Vec2FeatureExtractor, fetched)
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise InputError(f"{model}: expected a front end of {SAMPLE_RATE_HZ} Hz, found {extractor.sampling_rate}")
    return network, extractor, fetched.identity


def hubert_features(network: HubertModel, normalise: Callable[[np.ndarray], np.ndarray] | None) -> FeatureFunction:
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


def mean_features(features: FeatureFunction, clips: Sequence[CutClip], gains_db: Sequence[float]) -> np.ndarray:
    """(C, G, D) float64: the mean over time of every clip at every gain; one sound at a time, so that none differs by
    what is heard beside it."""
    rows = []
    for number, clip in enumerate(clips, start=1):
        points = [features(audio_S[None]).double().mean(dim=1)[0].cpu().numpy() for audio_S in at_gains(clip, gains_db)]
        rows.append(np.stack(points))
        log.debug("clip %s of %s", number, len(clips))
    return np.stack(rows)


def judge_loudness(
    features_CGD: np.ndarray, gains_db: Sequence[float], seed: int
) -> tuple[LoudnessKept, list[Neighbour]]:
    """Judge one vector for each clip at each gain; distances are Euclidean, in float64."""
    C, G, _ = features_CGD.shape
    if C < 2 or G < 2 or len(gains_db) != G:
        raise ValueError(f"expected two clips and two gains at least, found {C} clips, {G} of {len(gains_db)} gains")
    points_ND = features_CGD.reshape(C * G, -1).astype(np.float64)
    distances_CGCG = cdist(points_ND, points_ND).reshape(C, G, C, G)
    between = float(distances_CGCG[~_own_clip(distances_CGCG)].mean())
    if not between > 0:
        raise ValueError("the features of all clips are the same")
    tie = TIE * between
    gains_G = np.asarray(gains_db, np.float64)

    apart_GG = np.abs(gains_G[:, None] - gains_G[None, :])
    by_gain_CGG = _weights(np.where(_own_clip(distances_CGCG), np.inf, distances_CGCG), tie).sum(axis=2)
    others_CGCG = np.where(_itself(distances_CGCG), np.inf, distances_CGCG)
    own_CGG = np.einsum("cgch->cgh", distances_CGCG)

    def interval(values_CG: np.ndarray) -> Interval:
        return mean_interval(values_CG.mean(axis=1), seed)

    kept = LoudnessKept(
        same_gain=interval(np.einsum("cgg->cg", by_gain_CGG)),
        same_gain_chance=1 / G,
        gain_error_db=interval((by_gain_CGG * apart_GG).sum(axis=2)),
        gain_error_chance_db=float(apart_GG.mean()),
        same_clip=interval(np.einsum("cgch->cg", _weights(others_CGCG, tie))),
        recall=_by_difference(_recall(distances_CGCG, tie), gains_G, interval),
        displacement=_by_difference(own_CGG / between, gains_G, interval),
    )
    return kept, _nearest(others_CGCG, gains_db)


def _own_clip(distances_CGCG: np.ndarray) -> np.ndarray:
    """Where both points are of one clip, broadcast to all gains."""
    C = len(distances_CGCG)
    return np.broadcast_to(np.eye(C, dtype=bool)[:, None, :, None], distances_CGCG.shape)


def _itself(distances_CGCG: np.ndarray) -> np.ndarray:
    C, G = distances_CGCG.shape[:2]
    return np.eye(C * G, dtype=bool).reshape(C, G, C, G)


def _weights(distances_CGCG: np.ndarray, tie: float) -> np.ndarray:
    """For each query one, shared by those that are nearest."""
    nearest = distances_CGCG <= distances_CGCG.min(axis=(2, 3), keepdims=True) + tie
    return nearest / nearest.sum(axis=(2, 3), keepdims=True)


def _recall(distances_CGCG: np.ndarray, tie: float) -> np.ndarray:
    """(C, G, G): whether clip c at gain g is its own nearest among all clips at gain h."""
    nearest = distances_CGCG <= distances_CGCG.min(axis=2, keepdims=True) + tie
    return np.einsum("cgch->cgh", nearest / nearest.sum(axis=2, keepdims=True))


def _by_difference(
    values_CGG: np.ndarray, gains_G: np.ndarray, interval: Callable[[np.ndarray], Interval]
) -> dict[float, Interval]:
    apart_GG = np.round(np.abs(gains_G[:, None] - gains_G[None, :]), 6)
    differences = sorted(set(apart_GG.ravel().tolist()) - {0.0})
    return {difference: interval(values_CGG[:, apart_GG == difference]) for difference in differences}


def _nearest(distances_CGCG: np.ndarray, gains_db: Sequence[float]) -> list[Neighbour]:
    C, G = distances_CGCG.shape[:2]
    nearest_N = distances_CGCG.reshape(C * G, C * G).argmin(axis=1)
    return [
        Neighbour(clip=n // G, gain_db=gains_db[n % G], nearest_clip=int(m) // G, nearest_gain_db=gains_db[int(m) % G])
        for n, m in enumerate(nearest_N)
    ]


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
    """The gains in ascending order."""
    if not all(abs(gain_db) <= MAX_GAIN_DB for gain_db in gains_db) or len(set(gains_db)) < 2:
        raise InputError(
            f"--gains-db: expected two different numbers at least, from -{MAX_GAIN_DB} to {MAX_GAIN_DB}, found"
            f" {' '.join(map(str, gains_db))}"
        )
    return sorted(set(gains_db))


def _load(arguments: argparse.Namespace) -> tuple[dict[str, FeatureFunction], dict[str, str]]:
    """The features that are compared, and the identities of the models."""
    device = choose_device("auto")
    fetched_ast = fetch_model(arguments.ast, arguments.ast_revision, AST_FILES)
    ast, ast_extractor = load_ast(fetched_ast, device, torch.float32)
    hubert, hubert_extractor, hubert_identity = load_hubert(arguments.hubert, arguments.hubert_revision, device)

    def normalise(audio_S: np.ndarray) -> np.ndarray:
        normalised: list[np.ndarray] = hubert_extractor.zero_mean_unit_var_norm([audio_S], attention_mask=None)  # pyright: ignore[reportArgumentType] - None is "all samples"
        return normalised[0]

    features: dict[str, FeatureFunction] = {
        "AST": AstFeatures(ast, ast_extractor, "mean"),
        "HuBERT, normalised": hubert_features(hubert, normalise),
        "HuBERT, as it is": hubert_features(hubert, None),
    }
    return features, {"ast_identity": fetched_ast.identity, "hubert_identity": hubert_identity}


def _judge(
    features: FeatureFunction, clips: Sequence[CutClip], gains_db: Sequence[float], paths: Sequence[Path], seed: int
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


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = StudyParser(prog, "How much loudness do AST's features keep, against HuBERT's?")
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
    return parser.parse_args(argv)


def _read(arguments: argparse.Namespace) -> list[CutClip]:
    """Check the arguments, make the folder of the results, and read all sounds."""
    paths = arguments.audio
    if len(paths) < 2:
        raise InputError(f"--audio: expected two sounds at least, found {len(paths)}: no neighbour to find")
    if not MIN_CLIP_SECONDS <= arguments.clip_seconds <= AST_SECONDS:  # a longer clip only HuBERT would hear whole
        raise InputError(
            f"--clip-seconds: expected {MIN_CLIP_SECONDS} to {AST_SECONDS}, found {arguments.clip_seconds:g}"
        )
    at_least("--seed", arguments.seed, 0)
    check_out(arguments.out)
    return [read_heard(path, arguments.clip_seconds) for path in paths]


def main(argv: Sequence[str] | None = None, prog: str = "eval.ast_loudness") -> int:
    """Run the study and return its exit code."""
    arguments = _parse(argv, prog)

    def work() -> None:
        gains_db = check_gains(arguments.gains_db)
        clips = _read(arguments)
        features, identities = _load(arguments)
        judged = {}
        for name, of_model in features.items():
            log.info("listening to %s clips at %s gains: %s", f"{len(clips):,}", len(gains_db), name)
            judged[name] = _judge(of_model, clips, gains_db, arguments.audio, arguments.seed)
        kept = {name: summary for name, (summary, _) in judged.items()}
        settings = {"ast": arguments.ast, "hubert": arguments.hubert, **identities, "seed": arguments.seed}
        heard = {"audio": arguments.audio, "gains_db": gains_db, "lufs": TARGET_LUFS}
        result = {
            "study": "ast_loudness",
            "settings": settings | heard | {"clip_seconds": arguments.clip_seconds},
            "items": {name: items for name, (_, items) in judged.items()},
            "summary": kept,
        }
        write_study(arguments.out, "ast_loudness", result, draw(kept))

    return run_study(prog, work)
