"""Is a picture a copy of a training image? Nearness and its shape, held against real images that were not trained on.

N  pictures, H  held-out images, R  recordings, T  training images, K  neighbours, D  width of a vector
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom, binom

from eval.metrics.alignment import unit
from eval.statistics import Estimate, mean_estimate, recording_means, unpaired_estimate
from sonify.errors import require_faiss

EXPECTED = 0.01  # of pictures that copy nothing: as many held-out images pass the thresholds
NEIGHBOURS = 10  # a training image may be there up to nine times, and a copy of it still stands out
SIGNIFICANT = 0.05
SEED = 0  # of the resamples
CHUNK = 1 << 16  # training images in an index: 256 MB at a width of 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """What is nearest to each picture: the training image, its cosine, and its distance over that of the K-th.

    A copy has one training image far nearer than the others, and so a small ratio; what is only typical has not.
    """

    row_N: np.ndarray
    cosine_N: np.ndarray
    ratio_N: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """Pictures beyond a threshold that `expected` of the held-out images pass.

    `share` is of pictures; `copy_share` what recordings have on average beyond the expected, with its interval. `p` is
    one-sided, against the expected share, and `p_held_out` against the held-out images themselves: what a threshold
    lets pass is known no better than there are many of them. `detectable` is the share of recordings that, all copies,
    would have made both significant; None where not even all of them would.
    """

    threshold: float
    expected: float
    share: float
    held_out_share: float
    copy_share: Estimate
    p: float
    p_held_out: float
    detectable: float | None

    @property
    def is_more(self) -> bool:
        """Whether there are more of them than held-out images explain."""
        return max(self.p, self.p_held_out) < SIGNIFICANT


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPair:
    """How often the nearest image is the sound's own: of sounds that were trained with it, and of those never heard.

    The references of the latter lie among the training images for that. What is easy to guess from a sound counts for
    both, so that the difference is what was learned by heart. `chance` is that of an image drawn at random.
    """

    seen: float
    unseen: float
    seen_recordings: int
    unseen_recordings: int
    chance: float
    difference: Estimate


def find_nearest(train_TD: np.ndarray, asked_ND: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The cosines (N, K) and rows (N, K) of the nearest training images, the nearest first: exact, chunk by chunk.

    Training vectors are of length 1.
    FAISS finds them in float32, where nearly equal ones may change places; the cosines are computed again in float64.
    """
    require_faiss()
    import faiss  # noqa: PLC0415 - only who searches needs one of the extras that bring it

    neighbours = min(neighbours, len(train_TD))
    asked = np.ascontiguousarray(asked_ND, np.float32)
    rows: list[np.ndarray] = []
    for start in range(0, len(train_TD), CHUNK):
        chunk = np.ascontiguousarray(train_TD[start : start + CHUNK], np.float32)
        index = faiss.IndexFlatIP(chunk.shape[1])
        index.add(chunk)
        rows.append(index.search(asked, min(neighbours, len(chunk)))[1] + start)
    candidates = np.concatenate(rows, axis=1)
    cosines = np.stack([unit(train_TD[near]) @ one for near, one in zip(candidates, unit(asked_ND), strict=True)])
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
    return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def look_up(train_TD: np.ndarray, asked_ND: np.ndarray) -> Near:
    """Find what is nearest to each vector. Of one that lies upon all of its neighbours the ratio is 1: it is no more
    a copy of the first than of the others."""
    cosines, rows = find_nearest(train_TD, asked_ND, NEIGHBOURS)
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    first, last = distances[:, 0], distances[:, -1]
    ratio_N = np.divide(first, last, out=np.ones_like(first), where=last > 0)
    return Near(row_N=rows[:, 0], cosine_N=cosines[:, 0], ratio_N=ratio_N)


def quantile(values_H: np.ndarray, share: float, weights_H: np.ndarray) -> float:
    """The least of the values up to which so much of the weight lies: one of them, and nothing between two."""
    return float(np.quantile(values_H, share, method="inverted_cdf", weights=weights_H))


def label_weights(
    labels_H: Sequence[str], labels_N: Sequence[Sequence[str]]
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Weights (H,) by which held-out images are of each label as often as pictures are; None where they share none.

    Returned with the pictures' labels that no held-out image has. A picture of several labels counts for each in part.
    """
    wanted: defaultdict[str, float] = defaultdict(float)
    for labels in labels_N:
        for label in set(labels):
            wanted[label] += 1 / len(set(labels))
    there = Counter(label for label in labels_H if label in wanted)
    if not there:
        return None
    weights_H = np.array([wanted[label] / there[label] if label in there else 0.0 for label in labels_H])
    return weights_H, tuple(sorted(wanted.keys() - there.keys()))


def excess_of(
    beyond_N: np.ndarray,
    recordings: Sequence[str],
    beyond_H: np.ndarray,
    weights_H: np.ndarray,
    *,
    threshold: float,
    expected: float = EXPECTED,
) -> Excess:
    """Hold the share of pictures beyond a threshold against that of held-out images.

    Shares lie between 0 and 1 and are mostly 0, so that signs cannot be flipped. Each recording is one trial, which is
    exact where it has one picture and cautious where it has several: its successes are the recordings' shares added up,
    rounded down. Against the held-out images the trials are beta-binomial: the threshold is one of H, `b` lie beyond
    it, and of other images a share of the distribution Beta(b + 1, H - b) does. Weighted images count as many as their
    weights are worth (Kish), which is an approximation.
    """
    _, shares_R = recording_means(beyond_N.astype(np.float64), recordings)
    held_out_share = float(np.average(beyond_H.astype(np.float64), weights=weights_H))
    worth = float(weights_H.sum() ** 2 / np.square(weights_H).sum())
    counts = np.arange(len(shares_R) + 1)
    p = binom.sf(counts - 1, len(shares_R), expected)
    passing = held_out_share * worth
    p_held_out = betabinom.sf(counts - 1, len(shares_R), passing + 1, worth - passing)
    successes = int(np.floor(shares_R.sum() + 1e-9))  # of thirds, three make a whole
    enough = np.flatnonzero(np.maximum(p, p_held_out) < SIGNIFICANT)
    return Excess(
        threshold=threshold,
        expected=expected,
        share=float(beyond_N.mean()),
        held_out_share=held_out_share,
        copy_share=mean_estimate(shares_R - expected, SEED),
        p=float(p[successes]),
        p_held_out=float(p_held_out[successes]),
        detectable=float(enough[0] / len(shares_R)) if enough.size else None,
    )


def near_excess(
    made: Near, recordings: Sequence[str], held_out: Near, weights_H: np.ndarray, expected: float = EXPECTED
) -> Excess:
    """Pictures nearer to a training image than all but `expected` of the held-out images."""
    threshold = quantile(held_out.cosine_N, 1 - expected, weights_H)
    beyond_N, beyond_H = made.cosine_N > threshold, held_out.cosine_N > threshold
    return excess_of(beyond_N, recordings, beyond_H, weights_H, threshold=threshold, expected=expected)


def ratio_excess(made: Near, recordings: Sequence[str], held_out: Near, weights_H: np.ndarray) -> Excess:
    """Pictures that are near to one training image alone, more so than all but a hundredth of the held-out images."""
    threshold = quantile(held_out.ratio_N, EXPECTED, weights_H)
    beyond_N, beyond_H = made.ratio_N < threshold, held_out.ratio_N < threshold
    return excess_of(beyond_N, recordings, beyond_H, weights_H, threshold=threshold)


def compare_own(
    hits_N: Sequence[bool], seen_N: Sequence[bool], recordings: Sequence[str], chance: float
) -> OwnPair | None:
    """Compare pictures of sounds that were trained with an image with those of others; None where one kind has none."""
    means: dict[bool, np.ndarray] = {}
    for kind in (True, False):
        of_kind = [n for n, seen in enumerate(seen_N) if seen == kind]
        if not of_kind:
            return None
        hits = np.array([hits_N[n] for n in of_kind], np.float64)
        means[kind] = recording_means(hits, [recordings[n] for n in of_kind])[1]
    return OwnPair(
        seen=float(means[True].mean()),
        unseen=float(means[False].mean()),
        seen_recordings=means[True].size,
        unseen_recordings=means[False].size,
        chance=chance,
        difference=unpaired_estimate(means[True], means[False], SEED),
    )
