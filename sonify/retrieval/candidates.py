"""Which clips may stand for a concept, and which one is drawn: the paper's rule and ours, as pure functions.

Source: "Seeing Sound" (arXiv 2501.05413), section on retrieval; `margin`, the recording limit and `querybank` are ours.
"""

from dataclasses import dataclass

import numpy as np

from sonify.config import Retrieval

# Three clips of one long recording are variety enough; a fourth would let it crowd out the others.
CLIPS_PER_RECORDING = 3
# A pool of a few clips a class needs a short list, or other classes fill it; 0.5M clips use `top_k` in full.
POOL_SHARE = 50
FEWEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Clips that may be drawn, best first. Arrays have one entry a candidate; `threshold` is in score units."""

    clips: np.ndarray  # (N,) int64 positions in the pool
    similarities: np.ndarray  # (N,) float64, hubness already taken off
    scores: np.ndarray  # (N,) float64
    threshold: float


def list_length(top_k: int, pool_size: int) -> int:
    """How many of the best clips are looked at."""
    return min(pool_size, top_k, max(FEWEST, pool_size // POOL_SHARE))


def score_similarities(similarities: np.ndarray, signed_sqrt: bool) -> np.ndarray:
    """Return scores in float64: sign(s) * sqrt(|s|), or the similarities as they are."""
    similarities = similarities.astype(np.float64)
    return np.sign(similarities) * np.sqrt(np.abs(similarities)) if signed_sqrt else similarities


def choose_candidates(
    clips: np.ndarray, similarities: np.ndarray, recordings: np.ndarray, retrieval: Retrieval
) -> Candidates:
    """Keep what is at or above the mean score, within the margin of the best, at most three of one recording.

    Args:
        clips: (K,) the top-k, best first.
        similarities: (K,) their similarities.
        recordings: (K,) the recording of each.
        retrieval: the settings.
    """
    scores = score_similarities(similarities, retrieval.signed_sqrt)
    threshold = float(scores.mean())
    keep = scores >= threshold
    if retrieval.margin > 0:
        keep &= similarities >= retrieval.margin * similarities[0]
    keep[0] = True  # rounding can put a mean above equal scores, and a negative best below its own margin
    if len(set(recordings.tolist())) < len(recordings):
        keep &= _rank_within(recordings, keep) < CLIPS_PER_RECORDING
    return Candidates(
        clips=clips[keep],
        similarities=similarities[keep].astype(np.float64),
        scores=scores[keep],
        threshold=threshold,
    )


def _rank_within(recordings: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """For each entry, how many kept entries before it are of the same recording."""
    order = np.argsort(recordings, kind="stable")
    ordered, kept = recordings[order], keep[order].astype(np.int64)
    before = np.cumsum(kept) - kept
    new_run = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    start_of_run = np.maximum.accumulate(np.where(new_run, np.arange(len(ordered)), 0))
    rank = np.empty(len(ordered), dtype=np.int64)
    rank[order] = before - before[start_of_run]
    return rank


def draw_position(scores: np.ndarray, retrieval: Retrieval, u: float) -> int:
    """Draw one candidate by inverse CDF.

    Args:
        scores: (N,) of the candidates, N > 0.
        retrieval: `draw` and, for softmax, `temperature`.
        u: in [0, 1).
    """
    if retrieval.draw == "uniform":
        weights = np.ones(len(scores))
    elif retrieval.draw == "softmax":
        weights = np.exp((scores - scores.max()) / retrieval.temperature)
    else:
        weights = np.maximum(scores, 0.0)
    cumulative = np.cumsum(weights)
    if cumulative[-1] <= 0:
        return 0
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(scores) - 1)
