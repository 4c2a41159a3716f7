"""How well a picture fits its sound: cosines, z scores, ranks, and what a picture shows, on vectors alone.

I  items   N  images   Q  sounds or reference pictures   D  width of a vector   L  labels   C  captions   R  recordings

Every function normalises what it is given and works in float64. An image without a value has NaN, and is counted with
the reason; nothing is filled in. `aggregate` makes the score of values: images, then items, then recordings.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

PoolKind = Literal["other_recordings", "other_labels"]
# Cosines that are nearer to each other than float32 vectors can tell apart.
TIE = 1e-7
# Below it a spread is rounding: all that is compared is the same.
NO_SPREAD = 1e-9
# Labels below which a correlation over them says nothing.
LEAST_LABELS = 8
_BLOCK = 512  # images that are compared with all items at once

BAD_IMAGE = "the image's vector is zero or not finite"
NO_QUERY = "the item has no sound or reference that can be compared"
NO_POOL = "no item of another recording is in the pool, or only such as are equal to it"
NO_POOL_LABEL = "no item of another label is in the pool, or only such as are equal to it"
NO_LABEL = "the item has no label"
ONE_LABEL = "the item has too few labels"
TOO_MANY_LABELS = "the item has more labels than k"
NO_OTHERS = "fewer than two images of other recordings"
ALL_EQUAL = "the images of other recordings are all alike to it"
NO_CAPTION = "the item has no caption"
FLAT = "all labels are alike to its sound or its image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Which image is of which item, and which items are independent.

    `donors_N` is the item that an image truly belongs to where that is another (a shuffled control), else -1; `pool_I`
    says which items a rank is sought among.
    """

    item_of_N: np.ndarray
    donors_N: np.ndarray
    recordings_I: Sequence[str]
    labels_I: Sequence[Sequence[str]]
    pool_I: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """A value an image, NaN where it has none; `without` counts those by reason.

    `ties` are those of the comparisons of a rank, `compared`, that were equal, and counted as not won.
    """

    values_N: np.ndarray
    without: Mapping[str, int] = field(default_factory=dict)
    ties: int = 0
    compared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What becomes of values: NaN for an item without any, recordings without any are left out.

    The score is the mean of `values_R`; `mean_over_images` is what others print, the same where every recording has as
    many images. `images` is how many have a value.
    """

    values_I: np.ndarray
    values_R: np.ndarray
    recordings_R: tuple[str, ...]
    mean_over_images: float
    images: int
    without: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """One similarity on three scales, each the mean over an item's captions."""

    cosine: Values
    hessel: Values  # 2.5 * max(cos, 0)
    torchmetrics: Values  # 100 * max(cos, 0)


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors of length 1, in float64; NaN throughout where one is zero or not finite."""
    vectors_ND = np.asarray(vectors_ND, dtype=np.float64)
    if vectors_ND.ndim != 2 or not vectors_ND.shape[1]:
        raise ValueError(f"vectors: expected one a row, found the shape {vectors_ND.shape}")
    largest_N = np.abs(vectors_ND).max(axis=1)  # first: the square of a huge or a tiny one leaves float64
    good_N = np.isfinite(largest_N) & (largest_N > 0)
    unit_ND = np.full(vectors_ND.shape, np.nan)
    scaled_ND = vectors_ND[good_N] / largest_N[good_N, None]
    unit_ND[good_N] = scaled_ND / np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    return unit_ND


def cosine_scores(
    queries_QD: np.ndarray, images_ND: np.ndarray, join: Join, owner_Q: Sequence[int] | np.ndarray | None = None
) -> Values:
    """The cosine of each image with its item's sound or reference (`ais_cosine`, `iis_cosine`).

    Row q is of the item `owner_Q[q]` (None: of item q); of several the mean counts. A row of NaN is one that is not
    there.
    """
    means_ID, images_ND = _compared(queries_QD, images_ND, join, owner_Q)
    values_N = np.einsum("nd,nd->n", means_ID[join.item_of_N], images_ND)
    return Values(values_N=values_N, without=_count(_unusable(means_ID, images_ND, join)))


def z_scores(
    queries_QD: np.ndarray, images_ND: np.ndarray, join: Join, owner_Q: Sequence[int] | np.ndarray | None = None
) -> Values:
    """How far an image stands out among those of other recordings, in their population standard deviations
    (`ais_z`, `iis_z`).

    What truly belongs to the item is not among the others, and a control is compared with its like (`_Kinship`).
    """
    means_ID, images_ND = _compared(queries_QD, images_ND, join, owner_Q)
    reasons = _unusable(means_ID, images_ND, join)
    kinship = _Kinship(join)
    usable_N = ~np.isnan(images_ND[:, 0])
    values_N = np.full(len(images_ND), np.nan)
    for n, cosines_N in _rows(means_ID[join.item_of_N], images_ND):
        if reasons[n]:
            continue
        others_N = usable_N & kinship.others(n)
        if others_N.sum() < 2:
            reasons[n] = NO_OTHERS
            continue
        others = cosines_N[others_N]
        spread = others.std()
        if spread <= NO_SPREAD:
            reasons[n] = ALL_EQUAL
            continue
        values_N[n] = (cosines_N[n] - others.mean()) / spread
    return Values(values_N=values_N, without=_count(reasons))


def rank_scores(
    queries_QD: np.ndarray,
    images_ND: np.ndarray,
    join: Join,
    kind: PoolKind = "other_recordings",
    owner_Q: Sequence[int] | np.ndarray | None = None,
    inputs_I: Sequence[Hashable] | None = None,
) -> Values:
    """The share of the pool, in percent, that is less like an image than its item's own (`ais_rank`, `iis_rank`).

    Strictly less: a tie is not won. The pool of an image is what `kind` says, and for a control of that what its item
    could have been instead (`_Kinship`). Chance is 50. `inputs_I` says what each item's sound or references are: where
    those of another item are the very same, that item is no other, and nobody could tell it apart.
    """
    means_ID, images_ND = _compared(queries_QD, images_ND, join, owner_Q)
    reasons = _unusable(means_ID, images_ND, join)
    kinship = _Kinship(join, inputs_I)
    usable_I = np.asarray(join.pool_I, dtype=bool) & ~np.isnan(means_ID[:, 0])
    values_N = np.full(len(images_ND), np.nan)
    ties = compared = 0
    for n, cosines_I in _rows(images_ND, means_ID):
        if reasons[n]:
            continue
        if kind == "other_labels" and not join.labels_I[join.item_of_N[n]]:
            reasons[n] = NO_LABEL
            continue
        pool = cosines_I[usable_I & kinship.pool(n, kind)]
        if not len(pool):
            reasons[n] = NO_POOL if kind == "other_recordings" else NO_POOL_LABEL
            continue
        ahead = cosines_I[join.item_of_N[n]] - pool
        values_N[n] = 100 * float((ahead > TIE).mean())
        ties += int((np.abs(ahead) <= TIE).sum())
        compared += len(pool)
    return Values(values_N=values_N, without=_count(reasons), ties=ties, compared=compared)


def label_table(labels_I: Sequence[Collection[str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """All labels, sorted, and which item has which, (I, L)."""
    names = tuple(sorted({label for labels in labels_I for label in labels}))
    truth_IL = np.array([[name in labels for name in names] for labels in labels_I], dtype=bool)
    return names, truth_IL.reshape(len(labels_I), len(names))


def label_ranks(images_ND: np.ndarray, texts_LD: np.ndarray) -> np.ndarray:
    """How many labels are nearer to an image, (N, L): 0 is the nearest, and of equals the first; -1 throughout where
    the image's vector is unusable.

    Raises:
        ValueError: a text's vector is unusable: every image would be judged by it.
    """
    images_ND, texts_LD = unit(images_ND), unit(texts_LD)
    if images_ND.shape[1] != texts_LD.shape[1]:
        raise ValueError(f"texts: expected vectors of {images_ND.shape[1]}, found {texts_LD.shape[1]}")
    if bad := np.flatnonzero(np.isnan(texts_LD[:, 0])).tolist():
        raise ValueError(f"texts: the vector of label {bad[0]} is zero or not finite")
    usable_N = ~np.isnan(images_ND[:, 0])
    order_NL = np.argsort(-(np.nan_to_num(images_ND) @ texts_LD.T), axis=1, kind="stable")
    ranks_NL = np.empty_like(order_NL)
    np.put_along_axis(ranks_NL, order_NL, np.arange(len(texts_LD))[None, :].repeat(len(images_ND), 0), axis=1)
    return np.where(usable_N[:, None], ranks_NL, -1)


def recall_at(ranks_NL: np.ndarray, truth_NL: np.ndarray, k: int) -> Values:
    """1 where a label of the sound is among the k nearest to the image, else 0; k = 1 is `aic`."""
    reasons = _unlabelled(ranks_NL, truth_NL)
    return _where(((ranks_NL < k) & truth_NL).any(axis=1), reasons)


def recall_all_at(ranks_NL: np.ndarray, truth_NL: np.ndarray, k: int, least: int = 2) -> Values:
    """1 where all labels of the sound are among the k nearest to the image, else 0; only of sounds of at least so many
    labels, and not more than k."""
    reasons = _unlabelled(ranks_NL, truth_NL)
    for n, count in enumerate(truth_NL.sum(axis=1).tolist()):
        reasons[n] = reasons[n] or (ONE_LABEL if count < least else TOO_MANY_LABELS if count > k else "")
    return _where(((ranks_NL < k) | ~truth_NL).all(axis=1), reasons)


def clip_scores(
    images_ND: np.ndarray, captions_CD: np.ndarray, owner_C: Sequence[int] | np.ndarray, item_of_N: np.ndarray
) -> ClipScores:
    """How like an image is to its item's captions: the mean over all of them, never the best.

    Hessel's scale is defined on captions with a prefix, torchmetrics' without: which were embedded is the caller's.
    """
    images_ND, captions_CD = unit(images_ND), unit(captions_CD)
    owner_C = np.asarray(owner_C, dtype=int)
    _check_shapes(captions_CD, images_ND, owner_C, np.asarray(item_of_N))
    usable_C = ~np.isnan(captions_CD[:, 0])
    values_N3 = np.full((len(images_ND), 3), np.nan)
    reasons = [BAD_IMAGE if bad else "" for bad in np.isnan(images_ND[:, 0]).tolist()]
    for n, item in enumerate(np.asarray(item_of_N).tolist()):
        own_C = usable_C & (owner_C == item)
        if not own_C.any():
            reasons[n] = reasons[n] or NO_CAPTION
            continue
        cosines_C = captions_CD[own_C] @ images_ND[n]
        positive_C = np.maximum(cosines_C, 0)
        values_N3[n] = cosines_C.mean(), 2.5 * positive_C.mean(), 100 * positive_C.mean()
    without = _count(reasons)
    cosine, hessel, torchmetrics = (Values(values_N=column_N, without=without) for column_N in values_N3.T)
    return ClipScores(cosine=cosine, hessel=hessel, torchmetrics=torchmetrics)


def label_bridge(sounds_IL: np.ndarray, images_NL: np.ndarray, item_of_N: np.ndarray) -> Values:
    """Pearson's r over the labels, of what a sound and an image are each like (`ais_clap`): two towers without a common
    space meet in words.

    Raises:
        ValueError: there are fewer labels than a correlation over them needs.
    """
    sounds_IL, images_NL = (np.asarray(cosines, dtype=np.float64) for cosines in (sounds_IL, images_NL))
    if sounds_IL.shape[1] != images_NL.shape[1]:
        raise ValueError(f"labels: expected {sounds_IL.shape[1]} for the images too, found {images_NL.shape[1]}")
    if sounds_IL.shape[1] < LEAST_LABELS:
        raise ValueError(f"labels: expected at least {LEAST_LABELS} to correlate over, found {sounds_IL.shape[1]}")
    values_N = np.mean(_standardised(sounds_IL)[item_of_N] * _standardised(images_NL), axis=1)
    return Values(values_N=values_N, without=_count(FLAT if bad else "" for bad in np.isnan(values_N).tolist()))


def aggregate(values_N: np.ndarray, item_of_N: np.ndarray, recordings_I: Sequence[str]) -> Means:
    """The mean of an item's images, and of a recording's items; recordings are in the order of their first item."""
    values_N, item_of_N = np.asarray(values_N, dtype=np.float64), np.asarray(item_of_N)
    counted_N = ~np.isnan(values_N)
    values_I = _grouped_means(values_N[counted_N], item_of_N[counted_N], len(recordings_I))
    names, recording_of_I = tuple(dict.fromkeys(recordings_I)), _numbered(recordings_I)
    counted_I = ~np.isnan(values_I)
    values_R = _grouped_means(values_I[counted_I], recording_of_I[counted_I], len(names))
    counted_R = ~np.isnan(values_R)
    return Means(
        values_I=values_I,
        values_R=values_R[counted_R],
        recordings_R=tuple(name for name, counted in zip(names, counted_R.tolist(), strict=True) if counted),
        mean_over_images=float(values_N[counted_N].mean()) if counted_N.any() else float("nan"),
        images=int(counted_N.sum()),
        without=int((~counted_N).sum()),
    )


class _Kinship:
    """Which items are of one recording or share a label, and so which an image is to be compared with.

    A control's image truly belongs to a donor, and its item is drawn from other recordings, mostly of other labels.
    Chance is 50 only among what the item could have been instead: those that share a label with the donor, where the
    item does, and those that share none, where it does not. The rest of the donor's class, left in, would win. An item
    whose input is that of the image's item would tie, and one with that of its donor would win: neither is another.
    """

    def __init__(self, join: Join, inputs_I: Sequence[Hashable] | None = None) -> None:
        self._item_of_N, self._donors_N = np.asarray(join.item_of_N), np.asarray(join.donors_N)
        self._truly_of_N = np.where(self._donors_N >= 0, self._donors_N, self._item_of_N)
        self._recording_of_I = _numbered(join.recordings_I)
        self._input_of_I = np.arange(len(join.recordings_I)) if inputs_I is None else _numbered(inputs_I)
        sets = [frozenset(labels) for labels in join.labels_I]
        distinct = list(dict.fromkeys(sets))  # few, where items are many
        truth_SL = label_table(distinct)[1].astype(np.float32)
        self._meet_SS = truth_SL @ truth_SL.T > 0
        self._set_of_I = _numbered(sets)
        self._labelled_I = np.array([bool(labels) for labels in sets], dtype=bool)

    def pool(self, n: int, kind: PoolKind) -> np.ndarray:
        """The items that image n may be ranked among, (I,)."""
        item, donor = self._item_of_N[n], self._donors_N[n]
        out_I = self._same(item)
        if kind == "other_labels":
            out_I |= ~self._labelled_I | self._share_label(item)
        if donor >= 0:
            shares_I = self._share_label(donor)
            out_I |= self._same(donor) | (shares_I != shares_I[item])
        return ~out_I

    def others(self, n: int) -> np.ndarray:
        """The images that belong to the item of image n neither by their item nor truly, (N,)."""
        item, shares_I = self._item_of_N[n], self._share_label(self._item_of_N[n])
        own_I = self._of_recording(item)
        out_N = own_I[self._item_of_N] | own_I[self._truly_of_N]
        if self._donors_N[n] >= 0:
            out_N |= shares_I[self._truly_of_N] != shares_I[self._truly_of_N[n]]
        return ~out_N

    def _same(self, item: int) -> np.ndarray:
        return self._of_recording(item) | (self._input_of_I == self._input_of_I[item])

    def _of_recording(self, item: int) -> np.ndarray:
        return self._recording_of_I == self._recording_of_I[item]

    def _share_label(self, item: int) -> np.ndarray:
        return self._meet_SS[self._set_of_I[item]][self._set_of_I]


def _compared(
    queries_QD: np.ndarray, images_ND: np.ndarray, join: Join, owner_Q: Sequence[int] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each item's unit queries, whose product with an image is the mean of the cosines, and unit images."""
    queries_QD, images_ND = unit(queries_QD), unit(images_ND)
    owner_Q = np.arange(len(queries_QD)) if owner_Q is None else np.asarray(owner_Q, dtype=int)
    item_of_N, items = np.asarray(join.item_of_N), len(join.recordings_I)
    _check_shapes(queries_QD, images_ND, owner_Q, item_of_N)
    lengths = {len(join.recordings_I), len(join.labels_I), len(join.pool_I)}
    highest = max([-1, *owner_Q.tolist(), *item_of_N.tolist(), *np.asarray(join.donors_N).tolist()])
    if len(lengths) > 1 or highest >= items or len(join.donors_N) != len(item_of_N):
        raise ValueError(f"join: expected {items} items and a donor for each of {len(item_of_N)} images")
    usable_Q = ~np.isnan(queries_QD[:, 0])
    counts_I = np.bincount(owner_Q[usable_Q], minlength=items)
    sums_ID = np.zeros((items, queries_QD.shape[1]))
    np.add.at(sums_ID, owner_Q[usable_Q], queries_QD[usable_Q])
    means_ID = np.where(counts_I[:, None] > 0, sums_ID / np.maximum(counts_I, 1)[:, None], np.nan)
    return means_ID, images_ND


def _check_shapes(queries_QD: np.ndarray, images_ND: np.ndarray, owner_Q: np.ndarray, item_of_N: np.ndarray) -> None:
    if queries_QD.shape[1] != images_ND.shape[1]:
        raise ValueError(f"vectors: expected one width, found {queries_QD.shape[1]} and {images_ND.shape[1]}")
    if len(owner_Q) != len(queries_QD) or len(item_of_N) != len(images_ND):
        raise ValueError(
            f"vectors: expected {len(owner_Q)} and {len(item_of_N)}, found {len(queries_QD)} and {len(images_ND)}"
        )


def _unusable(means_ID: np.ndarray, images_ND: np.ndarray, join: Join) -> list[str]:
    """Why an image has no value, before it is compared; empty where it has."""
    bad_N, without_N = np.isnan(images_ND[:, 0]), np.isnan(means_ID[join.item_of_N, 0])
    return [
        BAD_IMAGE if bad else NO_QUERY if without else ""
        for bad, without in zip(bad_N.tolist(), without_N.tolist(), strict=True)
    ]


def _rows(ones_ND: np.ndarray, others_MD: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The cosines of each of the one with all of the other, a block in memory at a time."""
    others_DM = np.nan_to_num(others_MD).T
    for start in range(0, len(ones_ND), _BLOCK):
        yield from enumerate(np.nan_to_num(ones_ND[start : start + _BLOCK]) @ others_DM, start=start)


def _unlabelled(ranks_NL: np.ndarray, truth_NL: np.ndarray) -> list[str]:
    if ranks_NL.shape != truth_NL.shape:
        raise ValueError(f"labels: expected the shape {ranks_NL.shape}, found {truth_NL.shape}")
    return [
        BAD_IMAGE if (ranks_L < 0).any() else "" if truth_L.any() else NO_LABEL
        for ranks_L, truth_L in zip(ranks_NL, truth_NL, strict=True)
    ]


def _where(hit_N: Any, reasons: Sequence[str]) -> Values:
    has_N = np.array([not reason for reason in reasons], dtype=bool)
    return Values(values_N=np.where(has_N, hit_N.astype(np.float64), np.nan), without=_count(reasons))


def _count(reasons: "Iterator[str] | Sequence[str]") -> dict[str, int]:
    return dict(sorted(Counter(reason for reason in reasons if reason).items()))


def _standardised(cosines_NL: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and population deviation 1; NaN where it has none."""
    spread_N = cosines_NL.std(axis=1, keepdims=True)
    safe_N = np.where(spread_N > NO_SPREAD, spread_N, np.nan)
    return (cosines_NL - cosines_NL.mean(axis=1, keepdims=True)) / safe_N


def _numbered(things: Sequence[Any]) -> np.ndarray:
    """The number of each, in the order in which they first come."""
    number = {thing: i for i, thing in enumerate(dict.fromkeys(things))}
    return np.array([number[thing] for thing in things], dtype=int)


def _grouped_means(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    counts, sums = np.bincount(groups, minlength=count), np.bincount(groups, weights=values, minlength=count)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
