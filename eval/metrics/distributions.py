"""Distances between two sets of pictures, real and made, by their features: plain float64 arithmetic.

N  pictures (of either set), D  width of a feature, G  groups of recordings, K  neighbours

Each distance is also given as an `Estimate`: with the error of the delete-group jackknife, which leaves out a group's
real and made pictures together. What the replicates share (products of features, sums of kernels, distances) is
computed once. Sizes: a Frechet estimate holds an N x N matrix where either set has at most D pictures and three D x D
ones otherwise, PRDC the N x N distances of real to made, the kernels 1,024 rows of theirs: by count under 1 GB at
5,000 x 2048 (0.24 GiB were measured for KID).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import svdvals
from scipy.special import log_softmax
from scipy.stats import rankdata

from eval.statistics import Estimate, jackknife

NEIGHBOURS = 5  # of PRDC, as the library prdc and dgm-eval have it; torch-fidelity has 3
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
SEED = 2020  # torch-fidelity's
LINE_SIZES, LINE_START = 15, 5000  # dgm-eval's
BLOCK = 1024  # rows of a kernel or of distances at a time
NEAREST_KEPT = 32  # neighbours of a picture that are kept, so that K are left when a group goes
UNIT = 1e-2  # by how much the length of a unit vector of half precision may be off
SAME = 1e-13  # of the squared lengths: two pictures so near are one, and their difference is rounding
ROUNDING = 4 * np.finfo(np.float64).eps  # of the largest eigenvalue: small ones were seen wrong by a tenth of it
TOLERATED = 1e-9  # of the variances: more rounding than this, and the singular values are computed instead


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both sets and the groups of their pictures, numbered 0 .. G - 1."""

    real_ND: np.ndarray
    made_ND: np.ndarray
    real_group_N: np.ndarray
    made_group_N: np.ndarray
    groups: int


def frechet(real_ND: np.ndarray, made_ND: np.ndarray) -> float:
    """The Frechet distance of two normal distributions with the sets' means and unbiased covariances, exactly.

    The trace of (S1 S2)^(1/2) is the sum of the singular values of the centred sets' product: no D x D root, and no
    eigenvalues of a singular matrix, where libraries lose the fourth digit.
    """
    return _frechet(*_features(real_ND, made_ND, at_least=2))


def frechet_estimate(
    real_ND: np.ndarray, made_ND: np.ndarray, real_group_N: np.ndarray, made_group_N: np.ndarray
) -> Estimate:
    """`frechet`, with the jackknife's interval: it holds the expectation at this N, which is biased."""
    sides = _sides(real_ND, made_ND, real_group_N, made_group_N, at_least=2)
    value = _frechet(sides.real_ND, sides.made_ND)
    if note := _no_replicates(sides, at_least=2):
        return Estimate(value=value, note=note)
    return jackknife(value, list(_frechet_replicates(sides)))


def kid(real_ND: np.ndarray, made_ND: np.ndarray) -> float:
    """The squared MMD of the kernel (x.y / D + 1)^3 as a U-statistic over all pairs, sets of unequal sizes allowed.

    It has no bias, so it may be negative.
    """
    real_ND, made_ND = _features(real_ND, made_ND, at_least=2)
    return float(_u_statistic(_kernel_sums(_one_group(real_ND, made_ND), _cubic)[0]))


def kid_estimate(
    real_ND: np.ndarray, made_ND: np.ndarray, real_group_N: np.ndarray, made_group_N: np.ndarray
) -> Estimate:
    """`kid`, with the jackknife's interval."""
    sides = _sides(real_ND, made_ND, real_group_N, made_group_N, at_least=2)
    return _kernel_estimate(sides, _cubic, _u_statistic, at_least=2)


def cmmd(real_ND: np.ndarray, made_ND: np.ndarray, sigma: float = CMMD_SIGMA) -> float:
    """1000 times the squared MMD of a Gaussian kernel over unit vectors, with the diagonals in (biased).

    Raises:
        ValueError: the vectors are not of unit length.
    """
    real_ND, made_ND = _features(real_ND, made_ND, at_least=1)
    _refuse_long(real_ND, made_ND)
    return float(_v_statistic(_kernel_sums(_one_group(real_ND, made_ND), _gaussian(sigma))[0]))


def cmmd_estimate(
    real_ND: np.ndarray, made_ND: np.ndarray, real_group_N: np.ndarray, made_group_N: np.ndarray
) -> Estimate:
    """`cmmd`, with the jackknife's interval."""
    sides = _sides(real_ND, made_ND, real_group_N, made_group_N, at_least=1)
    _refuse_long(sides.real_ND, sides.made_ND)
    return _kernel_estimate(sides, _gaussian(CMMD_SIGMA), _v_statistic, at_least=1)


def prdc(real_ND: np.ndarray, made_ND: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """`precision`, `recall`, `density`, `coverage`: who lies nearer to a picture than its k-th neighbour of its set."""
    real_ND, made_ND = _features(real_ND, made_ND, at_least=k + 1)
    return _Reaches(_one_group(real_ND, made_ND), k)()


def prdc_estimate(
    real_ND: np.ndarray,
    made_ND: np.ndarray,
    real_group_N: np.ndarray,
    made_group_N: np.ndarray,
    k: int = NEIGHBOURS,
) -> dict[str, Estimate]:
    """`prdc`, each of the four with the jackknife's interval."""
    sides = _sides(real_ND, made_ND, real_group_N, made_group_N, at_least=k + 1)
    reaches = _Reaches(sides, k)
    values = reaches()
    if note := _no_replicates(sides, at_least=k + 1):
        return {name: Estimate(value=value, note=note) for name, value in values.items()}
    replicates = [reaches(group) for group in range(sides.groups)]
    return {name: jackknife(value, [one[name] for one in replicates]) for name, value in values.items()}


def inception_score(logits_NC: np.ndarray, splits: int = 10, seed: int = SEED) -> tuple[float, float]:
    """exp of the mean divergence of a picture's classes from all pictures': mean and population deviation of splits.

    Pictures are shuffled as torch-fidelity does. It grows with the pictures of a split: never compare different N.
    """
    logits_NC = _one_set(logits_NC, "logits", at_least=1)
    count = len(logits_NC)
    if not 1 <= splits <= count:
        raise ValueError(f"expected 1 to {count} splits of {count} pictures, found {splits}")
    log_p_NC = log_softmax(logits_NC[np.random.RandomState(seed).permutation(count)], axis=1)
    scores = []
    for split in range(splits):
        log_p = log_p_NC[split * count // splits : (split + 1) * count // splits]
        p = np.exp(log_p)
        scores.append(np.exp(np.mean(np.sum(p * (log_p - np.log(p.mean(axis=0))), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))


def fid_infinity(real_ND: np.ndarray, made_ND: np.ndarray, seed: int = 0) -> tuple[float | None, str]:
    """The Frechet distance at endlessly many made pictures, by a line through 15 sizes; or None and why not.

    With fewer than 2 D pictures the line misses: 1.7 and 2.4 were seen for a true .20.

    Source: Chong and Forsyth, 2020; sizes and draws as in dgm-eval, whose generator had no seed.
    """
    real_ND, made_ND = _features(real_ND, made_ND, at_least=2)
    count, width = len(made_ND), made_ND.shape[1]
    if (fewer := min(len(real_ND), count)) < 2 * width:
        return None, f"it takes {2 * width} pictures of each set (twice the width of the features), found {fewer}"
    rng = np.random.default_rng(seed)
    sizes = np.linspace(max(2, min(LINE_START, count // 10)), count, LINE_SIZES).astype(int)
    values = [_frechet(real_ND, made_ND[rng.choice(count, size, replace=False)]) for size in sizes]
    return float(np.polyfit(1 / sizes, values, 1)[1]), ""


def authentic_percent(train_ND: np.ndarray, made_ND: np.ndarray) -> float:
    """AuthPct: made pictures that are farther from the nearest training picture than that one from its own nearest.

    To be reported, not decided on: it moves from 89 to 75 where 15 % are copies.

    Source: Alaa et al., 2022; dgm-eval.
    """
    train_ND, made_ND = _features(train_ND, made_ND, at_least=2)
    nearest_N, squared_N = _nearest(made_ND, train_ND)
    own_N = _nearest_others(train_ND)[0][:, 0]
    return float(100 * np.mean(own_N[nearest_N] < squared_N))


def c_t(train_ND: np.ndarray, held_out_ND: np.ndarray, made_ND: np.ndarray) -> float:
    """The Z of the test whether made pictures are farther from training ones than held-out ones: below 0 is copying.

    To be reported, not decided on: where 15 % are copies it still says 9.4.

    Source: Meehan et al., 2020 (Z_u, one cell); dgm-eval.
    """
    train_ND, made_ND = _features(train_ND, made_ND, at_least=1)
    _, held_out_ND = _features(train_ND, held_out_ND, at_least=1)
    made_N, held_out_M = _nearest(made_ND, train_ND)[1], _nearest(held_out_ND, train_ND)[1]
    n, m = made_N.size, held_out_M.size
    larger = rankdata(np.concatenate([made_N, held_out_M]))[:n].sum() - n * (n + 1) / 2
    return float((larger - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def _frechet(real_ND: np.ndarray, made_ND: np.ndarray) -> float:
    real_mean_D, made_mean_D = real_ND.mean(axis=0), made_ND.mean(axis=0)
    real_ND, made_ND = real_ND - real_mean_D, made_ND - made_mean_D
    one, other = np.sqrt(len(real_ND) - 1), np.sqrt(len(made_ND) - 1)
    variances = np.sum((real_ND / one) ** 2) + np.sum((made_ND / other) ** 2)
    return float(np.sum((real_mean_D - made_mean_D) ** 2) + variances - 2 * _nuclear(real_ND, made_ND) / (one * other))


def _nuclear(real_ND: np.ndarray, made_ND: np.ndarray) -> float:
    """The sum of the singular values of the product of two centred sets, of which long ones are first made square."""
    real, made = (
        np.asarray(np.linalg.qr(side, mode="r")) if side.shape[0] > side.shape[1] else side
        for side in (real_ND, made_ND)
    )
    return float(np.sum(svdvals(real @ made.T, overwrite_a=True, check_finite=False)))


def _frechet_replicates(sides: _Sides) -> Iterator[float]:
    """The distance without each group, by eigenvalues of symmetric matrices where rounding allows it."""
    real_mean_D, made_mean_D = sides.real_ND.mean(axis=0), sides.made_ND.mean(axis=0)
    real_ND, made_ND = sides.real_ND - real_mean_D, sides.made_ND - made_mean_D
    squares = [np.sum(side**2, axis=1) for side in (real_ND, made_ND)]
    wide = min(len(real_ND), len(made_ND)) <= real_ND.shape[1]
    roots = (_wide_squares if wide else _tall_squares)(real_ND, made_ND)
    for group in range(sides.groups):
        real_N, made_N = sides.real_group_N != group, sides.made_group_N != group
        n, m = int(real_N.sum()), int(made_N.sum())
        real_shift_D, made_shift_D = -real_ND[~real_N].sum(axis=0) / n, -made_ND[~made_N].sum(axis=0) / m
        real_variance = (squares[0][real_N].sum() - n * np.sum(real_shift_D**2)) / (n - 1)
        made_variance = (squares[1][made_N].sum() - m * np.sum(made_shift_D**2)) / (m - 1)
        variances, scale = real_variance + made_variance, np.sqrt((n - 1) * (m - 1))
        rank = min(n - 1, m - 1, real_ND.shape[1])
        trace = _root_sum(roots(real_N, made_N), rank, TOLERATED * variances * scale)
        if trace is None:
            yield _frechet(sides.real_ND[real_N], sides.made_ND[made_N])
            continue
        means = np.sum((real_mean_D + real_shift_D - made_mean_D - made_shift_D) ** 2)
        yield float(means + variances - 2 * trace / scale)


_Squares = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


def _wide_squares(real_ND: np.ndarray, made_ND: np.ndarray) -> _Squares:
    """A matrix whose eigenvalues are the squared singular values of the product of the kept pictures, centred anew."""
    swap = len(real_ND) > len(made_ND)
    product = made_ND @ real_ND.T if swap else real_ND @ made_ND.T  # the smaller set's pictures are its rows
    square = product @ product.T

    def squares(real_N: np.ndarray, made_N: np.ndarray) -> np.ndarray:
        rows, columns = (made_N, real_N) if swap else (real_N, made_N)
        dropped = product[np.ix_(rows, ~columns)]
        kept_sum = product[rows].sum(axis=1) - dropped.sum(axis=1)
        kept = square[np.ix_(rows, rows)] - dropped @ dropped.T
        kept -= np.outer(kept_sum, kept_sum / columns.sum())
        kept -= kept.mean(axis=0)
        kept -= kept.mean(axis=1, keepdims=True)
        return kept

    return squares


def _tall_squares(real_ND: np.ndarray, made_ND: np.ndarray) -> _Squares:
    """The same from D x D scatters; None where one of them is singular."""
    scatters = [side.T @ side for side in (real_ND, made_ND)]

    def without(side_ND: np.ndarray, scatter: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
        dropped = side_ND[~kept_N]
        total_D = dropped.sum(axis=0)
        return scatter - dropped.T @ dropped - np.outer(total_D, total_D / kept_N.sum())

    def squares(real_N: np.ndarray, made_N: np.ndarray) -> np.ndarray | None:
        try:
            root = np.linalg.cholesky(without(real_ND, scatters[0], real_N))
        except np.linalg.LinAlgError:
            return None
        return root.T @ without(made_ND, scatters[1], made_N) @ root

    return squares


def _root_sum(square: np.ndarray | None, rank: int, tolerated: float) -> float | None:
    """The sum of the roots of the largest `rank` eigenvalues; None where rounding may make it wrong by too much.

    An eigenvalue is wrong by the rounding of the largest, its root by that over twice the root.
    """
    if square is None:
        return None
    eigenvalues = np.linalg.eigvalsh(square)[-rank:]
    rounding = ROUNDING * max(float(eigenvalues[-1]), 0.0)
    roots = np.sqrt(np.maximum(eigenvalues, rounding))
    if rounding and np.sum(rounding / (2 * roots)) > tolerated:
        return None
    return float(np.sum(np.sqrt(np.maximum(eigenvalues, 0.0))))


_Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of a kernel over the pairs of real, of made and of both, and over the pairs of a picture with itself.

    Each is a number, or one without each group; n and m count the pictures.
    """

    real: np.ndarray
    made: np.ndarray
    both: np.ndarray
    real_self: np.ndarray
    made_self: np.ndarray
    n: np.ndarray
    m: np.ndarray


def _u_statistic(sums: _Sums) -> np.ndarray:
    within_real = (sums.real - sums.real_self) / (sums.n * (sums.n - 1))
    within_made = (sums.made - sums.made_self) / (sums.m * (sums.m - 1))
    return within_real + within_made - 2 * sums.both / (sums.n * sums.m)


def _v_statistic(sums: _Sums) -> np.ndarray:
    """With the pairs of a picture with itself, times CMMD's scale."""
    return CMMD_SCALE * (sums.real / sums.n**2 + sums.made / sums.m**2 - 2 * sums.both / (sums.n * sums.m))


def _cubic(some_ND: np.ndarray, others_ND: np.ndarray) -> np.ndarray:
    kernel = some_ND @ others_ND.T / some_ND.shape[1] + 1
    return kernel * kernel * kernel  # `** 3` is a power, and many times as slow


def _gaussian(sigma: float) -> _Kernel:
    return lambda some_ND, others_ND: np.exp(_squared_distances(some_ND, others_ND) / (-2 * sigma**2))


def _kernel_sums(sides: _Sides, kernel: _Kernel) -> tuple[_Sums, _Sums]:
    """The sums of all pairs, and those without each group."""
    real, made = (sides.real_ND, sides.real_group_N), (sides.made_ND, sides.made_group_N)
    parts = [_pair_sums(*real, *real, kernel, sides.groups), _pair_sums(*made, *made, kernel, sides.groups)]
    parts.append(_pair_sums(*real, *made, kernel, sides.groups))
    singles = [_self_sums(*side, kernel, sides.groups) for side in (real, made)]
    singles += [np.bincount(group_N, minlength=sides.groups).astype(np.float64) for _, group_N in (real, made)]
    total = _Sums(*(part.sum() for part in (*parts, *singles)))
    dropped = [part.sum(axis=0) + part.sum(axis=1) - np.diagonal(part) for part in parts] + singles
    return total, _Sums(*(part.sum() - drop for part, drop in zip((*parts, *singles), dropped, strict=True)))


def _pair_sums(
    some_ND: np.ndarray,
    some_group_N: np.ndarray,
    others_ND: np.ndarray,
    others_group_N: np.ndarray,
    kernel: _Kernel,
    groups: int,
) -> np.ndarray:
    """Sums of a kernel by the groups of a pair, (G, G)."""
    member_NG = np.eye(groups)
    sums_GG = np.zeros((groups, groups))
    for rows in _blocks(len(some_ND)):
        by_group = kernel(some_ND[rows], others_ND) @ member_NG[others_group_N]
        sums_GG += member_NG[some_group_N[rows]].T @ by_group
    return sums_GG


def _self_sums(side_ND: np.ndarray, group_N: np.ndarray, kernel: _Kernel, groups: int) -> np.ndarray:
    selves_N = np.concatenate([kernel(row[None], row[None])[0] for row in side_ND])
    return np.bincount(group_N, weights=selves_N, minlength=groups)


def _kernel_estimate(
    sides: _Sides, kernel: _Kernel, statistic: Callable[[_Sums], np.ndarray], at_least: int
) -> Estimate:
    total, without = _kernel_sums(sides, kernel)
    value = float(statistic(total))
    note = _no_replicates(sides, at_least)
    return Estimate(value=value, note=note) if note else jackknife(value, statistic(without))


class _Reaches:
    """Who lies within whose reach, of all pictures or without a group.

    A picture's reach is the squared distance to its k-th neighbour in its own set. The distances of real to made are
    held, and of each set the nearest ones.
    """

    def __init__(self, sides: _Sides, k: int) -> None:
        self._sides, self._k = sides, k
        self._squared_NN = _squared_distances(sides.real_ND, sides.made_ND)
        self._real_nearest = _nearest_others(sides.real_ND)
        self._made_nearest = _nearest_others(sides.made_ND)

    def __call__(self, group: int | None = None) -> dict[str, float]:
        sides, squared_NN = self._sides, self._squared_NN
        if group is not None:
            squared_NN = squared_NN[np.ix_(sides.real_group_N != group, sides.made_group_N != group)]
        real_reach_N = self._reach(sides.real_ND, sides.real_group_N, self._real_nearest, group)
        made_reach_N = self._reach(sides.made_ND, sides.made_group_N, self._made_nearest, group)
        near_real = squared_NN < real_reach_N[:, None]
        near_made = squared_NN < made_reach_N
        return {
            "precision": float(near_real.any(axis=0).mean()),
            "recall": float(near_made.any(axis=1).mean()),
            "density": float(near_real.sum() / (self._k * near_real.shape[1])),
            "coverage": float(near_real.any(axis=1).mean()),
        }

    def _reach(
        self, side_ND: np.ndarray, group_N: np.ndarray, nearest: tuple[np.ndarray, np.ndarray], group: int | None
    ) -> np.ndarray:
        kept_N = np.ones(len(side_ND), bool) if group is None else group_N != group
        squared_NK, other_NK = nearest[0][kept_N], nearest[1][kept_N]
        seen_NK = np.cumsum(kept_N[other_NK], axis=1)
        reach_N = squared_NK[np.arange(len(squared_NK)), np.argmax(seen_NK == self._k, axis=1)]
        for row in np.flatnonzero(seen_NK[:, -1] < self._k):  # nearly all that is near to it is of the group
            others = np.setdiff1d(np.flatnonzero(kept_N), np.flatnonzero(kept_N)[row])
            squared = _squared_distances(side_ND[kept_N][row : row + 1], side_ND[others])[0]
            reach_N[row] = np.partition(squared, self._k - 1)[self._k - 1]
        return reach_N


def _nearest_others(side_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared distances (N, K) of each picture to those nearest to it in its set, in order, and which they are."""
    kept = min(NEAREST_KEPT, len(side_ND) - 1)
    squared, others = [], []
    for rows in _blocks(len(side_ND)):
        block = _squared_distances(side_ND[rows], side_ND)
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = np.inf
        nearest = np.argpartition(block, kept - 1, axis=1)[:, :kept]
        found = np.take_along_axis(block, nearest, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        squared.append(np.take_along_axis(found, order, axis=1))
        others.append(np.take_along_axis(nearest, order, axis=1))
    return np.concatenate(squared), np.concatenate(others)


def _nearest(some_ND: np.ndarray, others_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the others is nearest to each, and its squared distance."""
    which, squared = [], []
    for rows in _blocks(len(some_ND)):
        block = _squared_distances(some_ND[rows], others_ND)
        which.append(block.argmin(axis=1))
        squared.append(block.min(axis=1))
    return np.concatenate(which), np.concatenate(squared)


def _squared_distances(some_ND: np.ndarray, others_ND: np.ndarray) -> np.ndarray:
    some_N, others_N = np.sum(some_ND**2, axis=1), np.sum(others_ND**2, axis=1)
    squared_NN = some_ND @ others_ND.T
    squared_NN *= -2
    squared_NN += some_N[:, None]
    squared_NN += others_N
    squared_NN[squared_NN < (SAME * (some_N + others_N.max()))[:, None]] = 0
    return squared_NN


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def _one_set(rows_ND: np.ndarray, name: str, at_least: int) -> np.ndarray:
    rows_ND = np.asarray(rows_ND, np.float64)
    if rows_ND.ndim != 2 or rows_ND.shape[1] < 1:
        raise ValueError(f"{name}: expected one row a picture, found the shape {rows_ND.shape}")
    if len(rows_ND) < at_least:
        raise ValueError(f"{name}: expected {at_least} pictures at least, found {len(rows_ND)}")
    if not np.isfinite(rows_ND).all():
        bad = int(np.sum(~np.isfinite(rows_ND).all(axis=1)))
        raise ValueError(f"{name}: expected finite numbers, found {bad} of {len(rows_ND)} pictures with others")
    return rows_ND


def _features(real_ND: np.ndarray, made_ND: np.ndarray, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    real_ND = _one_set(real_ND, "features of real pictures", at_least)
    made_ND = _one_set(made_ND, "features of made pictures", at_least)
    if real_ND.shape[1] != made_ND.shape[1]:
        raise ValueError(f"expected features of one width, found {real_ND.shape[1]} and {made_ND.shape[1]}")
    return real_ND, made_ND


def _refuse_long(*sets: np.ndarray) -> None:
    longest = max(float(np.max(np.abs(np.linalg.norm(side_ND, axis=1) - 1))) for side_ND in sets)
    if longest > UNIT:
        raise ValueError(
            f"expected unit vectors, found a length that is {longest:.3g} off; divide by the lengths first"
        )


def _one_group(real_ND: np.ndarray, made_ND: np.ndarray) -> _Sides:
    return _Sides(real_ND, made_ND, np.zeros(len(real_ND), np.int64), np.zeros(len(made_ND), np.int64), 1)


def _sides(
    real_ND: np.ndarray, made_ND: np.ndarray, real_group_N: np.ndarray, made_group_N: np.ndarray, at_least: int
) -> _Sides:
    real_ND, made_ND = _features(real_ND, made_ND, at_least)
    found = np.concatenate([np.asarray(real_group_N), np.asarray(made_group_N)])
    if len(real_group_N) != len(real_ND) or len(made_group_N) != len(made_ND):
        raise ValueError(
            f"expected a group for each of {len(real_ND)} real and {len(made_ND)} made pictures, found"
            f" {len(real_group_N)} and {len(made_group_N)}"
        )
    names, group_N = np.unique(found, return_inverse=True)
    return _Sides(real_ND, made_ND, group_N[: len(real_ND)], group_N[len(real_ND) :], len(names))


def _no_replicates(sides: _Sides, at_least: int) -> str:
    """Why nothing can be left out, or nothing."""
    left = min(len(group_N) - int(np.bincount(group_N).max()) for group_N in (sides.real_group_N, sides.made_group_N))
    if sides.groups < 2:
        return "no interval: all pictures are of one group of recordings"
    if left < at_least:
        return f"no interval: without one group of recordings {left} pictures of a set are left, {at_least} are needed"
    return ""
