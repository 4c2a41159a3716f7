"""How much loudness a space of features keeps, told from nearest neighbours under growing gain.

C  clips, G  gains, D  width of a feature vector, N = C * G points, clip by clip
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from eval.intervals import Interval, mean_interval

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


def judge_loudness(
    features_CGD: np.ndarray, gains_db: Sequence[float], seed: int
) -> tuple[LoudnessKept, list[Neighbour]]:
    """Judge one vector for each clip at each gain; distances are Euclidean, in float64.

    Raises:
        ValueError: fewer than two clips or two gains, not as many gains as there are, or all vectors are the same.
    """
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
