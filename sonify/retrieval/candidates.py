"""Which clips may stand for a concept, and which one is drawn: exact search, and the paper's rule and ours.

Clips with equal embeddings (collections describe hundreds of recordings by one label, which the text encoder cannot
tell apart) are searched once, as a group; where a ranking ends inside a group, or among groups of one similarity, the
seats left are drawn.

Source: "Seeing Sound" (arXiv 2501.05413), section on retrieval. `margin`, `top_k_share`, `clips_per_recording`,
`repeat_recordings`, `limit` and `querybank` are ours, and each has a value that leaves the paper's rule alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property

import numpy as np
import pyarrow as pa

from sonify import layout
from sonify.config import Retrieval, Search
from sonify.keys import uniform
from sonify.pool import clip_columns, iter_vectors, read_duplicates, vectors_made_of
from sonify.retrieval.confirm import ClipTags, Ear, Judged
from sonify.retrieval.encoders import JointEncoder, bank_mean, bank_of, load_encoder, query_of
from sonify.retrieval.kinds import Query
from sonify.retrieval.limits import QueryLimit, query_limit
from sonify.retrieval.search import RowSearch, numbers_of, products
from sonify.retrieval.vectors import Grouped, group_in_memory, share_grouped
from sonify.rows import Concept, Reason
from sonify.stores import Place

# Raise it where the same settings draw otherwise: it is the version of the stage that draws, and stands in run.json.
RULES_VERSION = 3
# However small a share of the pool is looked at, there is something to choose from.
FEWEST = 8
# Clips that are compared with the bank at a time.
HUBNESS_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best groups for one query, best first: (G,) similarities and group numbers.

    `tied` has the bits of the other groups that are as similar as the last of them (`Best`), and `limit` is the
    similarity that a clip must reach (0.0: there is none).
    """

    similarities: np.ndarray
    groups: np.ndarray
    tied: np.ndarray
    limit: float = 0.0


class ClipGroups:
    """Which clips have one embedding, and so stand or fall together in a ranking."""

    def __init__(self, of_clip: np.ndarray) -> None:
        """Take (N,) int64 group numbers of clips."""
        self.of_clip = of_clip
        num_clips = len(of_clip)
        # Neighbours in the pool come from one recording; this scatters them, so that a ring's seats do not go to it.
        scattered = np.arange(num_clips, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
        self._members = np.lexsort((scattered, of_clip))
        self._sizes = np.bincount(of_clip)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def top_clips(self, ranking: Ranking, length: int, u: float) -> tuple[np.ndarray, np.ndarray]:
        """Return exactly `length` clips and their similarities, best first.

        Args:
            ranking: from `rank`.
            length: at most the number of clips.
            u: in [0, 1), turns the ring of all clips that are as similar as the last, of which only some find a seat;
                groups that are as similar, as kinds of one thing can be, sit in one ring.
        """
        groups, similarities = ranking.groups, ranking.similarities
        last = similarities[np.searchsorted(np.cumsum(self._sizes[groups]), length)]
        if len(ranking.tied) and last == similarities[-1]:
            others = numbers_of(ranking.tied)
            groups = np.concatenate([groups, others])
            similarities = np.concatenate([similarities, np.full(len(others), last)])
        sizes = self._sizes[groups]
        ends = np.cumsum(sizes)
        tied = np.flatnonzero(similarities == last)
        first = int(ends[tied[0]] - sizes[tied[0]])
        ring = int(ends[tied[-1]]) - first
        seats = np.arange(length)
        seats[first:] = first + (seats[first:] - first + int(u * ring)) % ring
        seated = np.searchsorted(ends, seats, "right")
        clips = self._members[self._starts[groups[seated]] + seats - (ends - sizes)[seated]]
        return clips, similarities[seated]


class ClipIndex:
    """Search over the embeddings of one split of the pool, on `threads` threads."""

    def __init__(self, embeddings: np.ndarray | Grouped, threads: int, search: Search | None = None) -> None:
        """Index (N, D) float32 embeddings; the search is on CPUs unless `search` names another device."""
        grouped = embeddings if isinstance(embeddings, Grouped) else group_in_memory(embeddings)
        self.groups = ClipGroups(grouped.group_of_clip)
        self._search = RowSearch(grouped.rows, threads, search or Search())

    def rank(self, queries: np.ndarray, length: int, most: float = math.inf) -> list[Ranking]:
        """Rank groups so that at least `length` clips are covered, for (Q, D) float32 queries; none is above `most`."""
        return [Ranking(best.scores, best.numbers, best.tied) for best in self._search(queries, length, most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Clips that may be drawn, best first. Arrays have one entry a candidate; `threshold` is in score units."""

    clips: np.ndarray  # (N,) int64 positions in the pool
    similarities: np.ndarray  # (N,) float64, hubness already taken off
    scores: np.ndarray  # (N,) float64
    threshold: float


def list_length(retrieval: Retrieval, pool_size: int) -> int:
    """How many of the best clips are looked at: a pool of a few clips a class needs a short list, or others fill it."""
    length = min(pool_size, retrieval.top_k)
    if retrieval.top_k_share is None:
        return length
    share = Decimal(str(retrieval.top_k_share))  # as it is written: 0.29 of 100 clips are 29, and 28 by floats
    return min(length, max(FEWEST, int(share * pool_size)))


def score_similarities(similarities: np.ndarray, signed_sqrt: bool) -> np.ndarray:
    """Return scores in float64: sign(s) * sqrt(|s|), or the similarities as they are."""
    similarities = similarities.astype(np.float64)
    return np.sign(similarities) * np.sqrt(np.abs(similarities)) if signed_sqrt else similarities


def choose_candidates(
    clips: np.ndarray, similarities: np.ndarray, recordings: np.ndarray, retrieval: Retrieval
) -> Candidates:
    """Keep what is at or above the mean score, within the margin of the best, and not too much of one recording.

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
    most = retrieval.clips_per_recording
    if most is not None and len(set(recordings.tolist())) < len(recordings):
        keep &= _rank_within(recordings, keep) < most
    return Candidates(
        clips=clips[keep],
        similarities=similarities[keep].astype(np.float64),
        scores=scores[keep],
        threshold=threshold,
    )


def _rank_within(recordings: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """For each entry, how many kept entries before it are of the same recording."""
    seen: dict[int, int] = {}
    ranks: list[int] = []
    for recording, kept in zip(recordings.tolist(), keep.tolist(), strict=True):
        rank = seen.get(recording, 0)
        ranks.append(rank)
        seen[recording] = rank + kept
    return np.array(ranks)


def draw_weights(scores: np.ndarray, retrieval: Retrieval) -> np.ndarray:
    """How likely each candidate is to be drawn, up to a common factor; all zero means the first.

    Args:
        scores: (N,) of the candidates, N > 0.
        retrieval: `draw` and, for softmax, `temperature`.
    """
    if retrieval.draw == "uniform":
        return np.ones(len(scores))
    if retrieval.draw == "softmax":
        return np.exp((scores - scores.max()) / retrieval.temperature)
    return np.maximum(scores, 0.0)


def draw_position(weights: np.ndarray, u: float) -> int:
    """Draw one of (N,) weights, N > 0, by inverse CDF, with `u` in [0, 1)."""
    cumulative = np.cumsum(weights)
    if cumulative[-1] <= 0:
        return 0
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(weights) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a draw by rankings that were had before needs of the N clips that were searched for them.

    `group_of_clip` is what the rankings number, `hubness` is what was taken off each clip's cosine.
    """

    group_of_clip: np.ndarray  # (N,) int64
    hubness: np.ndarray  # (N,) float32


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolClips:
    """N clips: what the draw needs to know of them; those of which only that is `Kept` cannot be searched."""

    clips: Sequence[str]
    recordings: np.ndarray  # (N,) int64 codes
    loudness_lufs: np.ndarray  # (N,) float64
    embeddings: np.ndarray | Grouped | Kept  # (N, D) float32
    tags: ClipTags | None = None  # None: nobody listened


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a listener heard in a drawn clip, as `SourceClip` has it."""

    heard_by: str
    heard: str
    support: float
    purity: float
    speech: float


UNHEARD = Evidence(heard_by="", heard="", support=0.0, purity=0.0, speech=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A drawn clip by its position in the split, and what it was drawn by; score and threshold are in score units.

    `limit` is the cosine that it had to reach (0.0: there was none).
    """

    clip: int
    cosine: float
    score: float
    threshold: float
    num_candidates: int
    limit: float = 0.0
    evidence: Evidence = UNHEARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """Why nothing is drawn, and the best clip that was refused for it, by its position in the split."""

    reason: Reason
    clip: int
    cosine: float
    heard: str = ""


class PoolSearch:
    """Ranks the clips of one split for texts; `kept` is what a draw needs of it afterwards."""

    def __init__(
        self,
        embeddings: np.ndarray | Grouped,
        encoder: JointEncoder,
        retrieval: Retrieval,
        threads: int,
        limit: QueryLimit | None,
    ) -> None:
        self._encoder = encoder
        self._limit = limit
        self._index = ClipIndex(embeddings, threads, retrieval.search)
        of_clip = self._index.groups.of_clip
        self._length = list_length(retrieval, len(of_clip))
        # querybank takes a clip's mean similarity to the bank off its similarity: one vector off the query does it
        centred = retrieval.hubness == "querybank"
        self._bank = bank_mean(encoder) if centred else np.zeros(encoder.dimension, dtype=np.float32)
        hubness = _hubness(embeddings, self._bank) if centred else np.zeros(len(of_clip), np.float32)
        self.groups = self._index.groups
        self.kept = Kept(group_of_clip=of_clip, hubness=hubness)

    def rank(self, queries: Iterable[Query]) -> dict[Query, Ranking]:
        """Encode and search distinct queries, in one batch; an encoder that knows no names gets each text once."""
        asked = {query: self._asked(query) for query in queries}
        if not asked:
            return {}
        distinct = sorted(set(asked.values()))
        rows = self._encoder.ask(distinct)
        centred = np.ascontiguousarray(rows - self._bank, dtype=np.float32)
        most = 1.0 if self._encoder.by_name else math.inf  # a clip that is of several kinds may fit in several ways
        ranked = self._index.rank(centred, self._length, most)
        if self._limit:
            limits = [self._limit(*spread) for spread in self._spread(rows)]
            ranked = [replace(one, limit=limit) for one, limit in zip(ranked, limits, strict=True)]
        rankings = dict(zip(distinct, ranked, strict=True))
        return {query: rankings[one] for query, one in asked.items()}

    def standing(self, queries: Iterable[Query]) -> dict[Query, tuple[float, float]]:
        """Each query's mean likeness to a fixed bank of clips, and its deviation."""
        distinct = list(dict.fromkeys(queries))
        return dict(zip(distinct, self._spread(self._encoder.ask(distinct)), strict=True)) if distinct else {}

    def _asked(self, query: Query) -> Query:
        return query if self._encoder.by_name else Query(name="", text=query.text, described=True)

    def _spread(self, rows: np.ndarray) -> list[tuple[float, float]]:
        found = rows @ self._fixed_bank.T
        return [(float(mean), float(deviation)) for mean, deviation in zip(found.mean(1), found.std(1), strict=True)]

    @cached_property
    def _fixed_bank(self) -> np.ndarray:
        return bank_of(self._encoder)


class SplitPool:
    """Ranks texts against the clips of one split and says which clips may stand for a text."""

    def __init__(
        self,
        clips: PoolClips,
        encoder: JointEncoder | None,
        retrieval: Retrieval,
        threads: int = 1,
        limit: QueryLimit | None = None,
    ) -> None:
        """Index a split; `limit` is the rule of `retrieval.limit`.

        Without an encoder, for clips whose search is `Kept`, it draws by rankings that were had before.
        """
        self.clips = clips.clips
        self.recordings = clips.recordings
        self.loudness_lufs = clips.loudness_lufs
        self._retrieval = retrieval
        confirm = retrieval.confirm
        self._ear = Ear(clips.tags, confirm, retrieval.purity) if clips.tags is not None and confirm else None
        self._length = list_length(retrieval, len(clips.clips))
        if isinstance(clips.embeddings, Kept):
            self._search = None
            self.kept = clips.embeddings
            self._groups = ClipGroups(self.kept.group_of_clip)
        else:
            assert encoder is not None
            self._search = PoolSearch(clips.embeddings, encoder, retrieval, threads, limit)
            self.kept, self._groups = self._search.kept, self._search.groups
        self._hubness = self.kept.hubness

    @property
    def search(self) -> PoolSearch:
        """What ranks clips; not where the search is kept."""
        assert self._search is not None
        return self._search

    def rank(self, queries: Iterable[Query]) -> dict[Query, Ranking]:
        """Encode and search distinct queries, in one batch; an encoder that knows no names gets each text once."""
        return self.search.rank(queries)

    def standing(self, queries: Iterable[Query]) -> dict[Query, tuple[float, float]]:
        """Each query's mean likeness to a fixed bank of clips, and its deviation."""
        return self.search.standing(queries)

    def consider(self, concept: Concept, ranking: Ranking, key: tuple[str | int, ...]) -> Candidates | Missed:
        """Say which clips may stand for a concept, or why none may.

        Args:
            concept: what is to be heard.
            ranking: of its query.
            key: what it is for; the same key gives the same.
        """
        clips, similarities = self._groups.top_clips(ranking, self._length, uniform("seat", *key))
        candidates = self._reaching(clips, similarities, ranking.limit)
        if candidates is None:
            best = int(clips[0])
            return Missed(reason=Reason.NO_MATCH, clip=best, cosine=float(similarities[0] + self._hubness[best]))
        return (
            candidates if self._ear is None else self._confirm(self._ear, concept, ranking.limit, clips, similarities)
        )

    def _reaching(self, clips: np.ndarray, similarities: np.ndarray, limit: float) -> Candidates | None:
        """The candidates among clips, best first, or None where even the best stays below a bound.

        A limit (0.0: none) is for each of them, `min_cosine` for the best alone.
        """
        candidates = choose_candidates(clips, similarities, self.recordings[clips], self._retrieval)
        lowest = max(self._retrieval.min_cosine, limit or -1.0)
        if lowest > -1 and self._cosine(candidates, 0) < lowest:  # rounding can leave a cosine below -1
            return None
        if not limit:
            return candidates
        reach = candidates.similarities + self._hubness[candidates.clips] >= limit
        return replace(
            candidates,
            clips=candidates.clips[reach],
            similarities=candidates.similarities[reach],
            scores=candidates.scores[reach],
        )

    def _confirm(
        self, ear: Ear, concept: Concept, limit: float, clips: np.ndarray, similarities: np.ndarray
    ) -> Candidates | Missed:
        """Choose among those of the best clips in which the concept was heard: what was not heard is not in the pool.

        Args:
            ear: who listened.
            concept: what is to be heard.
            limit: of the query, 0.0 for none.
            clips: (K,) the top-k, best first.
            similarities: (K,) their similarities.
        """
        confirmed = ear.judge(query_of(concept, self._retrieval.query), clips).confirmed
        best = int(clips[0])
        near = Missed(
            reason=Reason.NOT_CONFIRMED,
            clip=best,
            cosine=float(similarities[0] + self._hubness[best]),
            heard=ear.heard(best),
        )
        if not confirmed.any():
            return near
        return self._reaching(clips[confirmed], similarities[confirmed], limit) or near

    def draw(self, concept: Concept, ranking: Ranking, used: set[int], key: tuple[str | int, ...]) -> Drawn | Missed:
        """Draw a clip for a concept, or say why there is none.

        Args:
            concept: what is to be heard.
            ranking: of its query.
            used: recordings that the scene has already, which are heard again by `repeat_recordings` alone; the drawn
                one is added.
            key: what the draw is for; the same key draws the same.
        """
        candidates = self.consider(concept, ranking, key)
        if isinstance(candidates, Missed):
            return candidates
        recordings = self.recordings[candidates.clips]
        barred = [] if self._retrieval.repeat_recordings else list(used)
        free = np.flatnonzero(~np.isin(recordings, barred)) if barred else np.arange(len(recordings))
        if not len(free):
            return Missed(reason=Reason.SAME_SOURCE, clip=int(candidates.clips[0]), cosine=self._cosine(candidates, 0))
        weights = draw_weights(candidates.scores[free], self._retrieval)
        judged = self._ear.judge(query_of(concept, self._retrieval.query), candidates.clips) if self._ear else None
        if self._ear and judged:
            weights = weights * self._ear.weigh(judged)[free]
        chosen = int(free[draw_position(weights, uniform("draw", *key))])
        used.add(int(recordings[chosen]))
        return Drawn(
            clip=int(candidates.clips[chosen]),
            cosine=self._cosine(candidates, chosen),
            score=float(candidates.scores[chosen]),
            threshold=candidates.threshold,
            num_candidates=len(candidates.clips),
            limit=ranking.limit,
            evidence=self._evidence(judged, chosen, int(candidates.clips[chosen])),
        )

    def _evidence(self, judged: Judged | None, position: int, clip: int) -> Evidence:
        """What speaks for a drawn clip."""
        if self._ear is None or judged is None:
            return UNHEARD
        return Evidence(
            heard_by=self._ear.listener,
            heard=self._ear.heard(clip),
            support=round(float(judged.support[position]), 4),
            purity=round(float(judged.purity[position]), 4),
            speech=round(self._ear.speech(clip), 4),
        )

    def best_of(self, found: Candidates | Missed) -> tuple[int, float]:
        """The best clip, drawn or refused, by its position in the split, and its cosine."""
        return (
            (found.clip, found.cosine) if isinstance(found, Missed) else (int(found.clips[0]), self._cosine(found, 0))
        )

    def chances(self, concept: Concept, candidates: Candidates) -> np.ndarray:
        """(N,) the chance of each candidate to be drawn for a concept where the scene holds nothing yet."""
        weights = draw_weights(candidates.scores, self._retrieval)
        if self._ear:
            query = query_of(concept, self._retrieval.query)
            weights = weights * self._ear.weigh(self._ear.judge(query, candidates.clips))
        total = weights.sum()
        return weights / total if total > 0 else np.eye(1, len(weights))[0]  # as `draw_position`: the first

    def _cosine(self, candidates: Candidates, position: int) -> float:
        """The cosine of a candidate, whatever hubness took off it."""
        return float(candidates.similarities[position] + self._hubness[candidates.clips[position]])


def _hubness(embeddings: np.ndarray | Grouped, bank: np.ndarray) -> np.ndarray:
    """(N,) how near each clip is to the mean of the bank."""
    if isinstance(embeddings, Grouped):
        return _hubness(embeddings.rows.vectors, bank)[embeddings.group_of_clip]
    tiles = (embeddings[start : start + HUBNESS_ROWS] for start in range(0, len(embeddings), HUBNESS_ROWS))
    return np.concatenate([products(tile, bank) for tile in tiles])


def load_pool(
    run_dir: Place, retrieval: Retrieval, threads: int, tags: ClipTags | None = None, joined: bool = False
) -> dict[str, SplitPool]:
    """Load the whole pool, split by split; a split without clips is absent.

    Args:
        run_dir: the run.
        retrieval: the settings.
        threads: of the search.
        tags: what was heard in the pool's clips.
        joined: whether recordings that are copies of each other are one.
    """
    encoder = load_encoder(retrieval.encoder, retrieval.hears)
    limit = query_limit(retrieval.limit, encoder.identity)
    parts = read_pool(run_dir, encoder, tags, joined=joined, shared=True)
    return {split: SplitPool(part, encoder, retrieval, threads, limit) for split, part in parts.items()}


def read_pool(
    run_dir: Place, encoder: JointEncoder, tags: ClipTags | None = None, *, joined: bool = False, shared: bool = False
) -> dict[str, PoolClips]:
    """Read clips and embeddings of what may be drawn of the pool, split by split.

    Args:
        run_dir: the run.
        encoder: whose embeddings are read.
        tags: what was heard in the pool's clips.
        joined: whether recordings that are copies of each other are one.
        shared: whether all processes of this machine are to map the embeddings together, which writes a copy.
    """
    table = clip_columns(run_dir, ("clip", "recording", "loudness_lufs", "split"))
    recordings, parts = drawable(run_dir, table, tags, joined=joined)
    clips = np.array(table["clip"].to_pylist(), dtype=object)
    loudness_lufs = table["loudness_lufs"].to_numpy()
    spaces = [part.id for part in encoder.parts]

    def vectors() -> Iterable[np.ndarray]:
        return map(encoder.join, iter_vectors(run_dir, spaces))

    found: dict[str, np.ndarray | Grouped] = {}
    if shared and (made_of := vectors_made_of(run_dir, spaces)):
        of_encoder = f"{made_of} {encoder.identity}"
        found |= {split: share_grouped(run_dir, split, of_encoder, part, vectors) for split, part in parts.items()}
    elif parts:
        embeddings = np.concatenate(list(vectors()))
        found |= {split: embeddings[part] for split, part in parts.items()}
    return {
        split: PoolClips(
            clips=clips[part].tolist(),
            recordings=recordings[part],
            loudness_lufs=loudness_lufs[part],
            embeddings=found[split],
            tags=tags.take(part) if tags is not None else None,
        )
        for split, part in parts.items()
    }


def drawable(
    run_dir: Place, table: pa.Table, tags: ClipTags | None, *, joined: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What may be drawn of the pool.

    Args:
        run_dir: the run.
        table: `recording` and `split` of every clip.
        tags: what was heard in the clips.
        joined: whether recordings that are copies of each other are one.

    Returns:
        A number for the recording of each clip, and, for each split of which there is something, the positions of its
        clips.
    """
    recordings, is_drawn = _recordings_of(run_dir, table, joined)
    if tags is not None:
        is_drawn &= tags.present
    split_of_clip = np.array(table["split"].to_pylist(), dtype=object)
    parts = {split: np.flatnonzero((split_of_clip == split) & is_drawn) for split in layout.SPLITS}
    return recordings, {split: part for split, part in parts.items() if len(part)}


def _recordings_of(run_dir: Place, table: pa.Table, joined: bool) -> tuple[np.ndarray, np.ndarray]:
    """A number for the recording of each clip, one for all copies of it, and whether it may be drawn."""
    coded = table["recording"].combine_chunks().dictionary_encode()
    of_clip = coded.indices.to_numpy().astype(np.int64)
    if not joined:
        return of_clip, np.ones(len(of_clip), bool)
    names = coded.dictionary.to_pylist()
    numbers = {name: number for number, name in enumerate(names)}
    copies = read_duplicates(run_dir)
    first = np.array([numbers[copies[name].group] if name in copies else numbers[name] for name in names])
    is_drawn = np.array([name not in copies or not copies[name].left_out for name in names])
    return first[of_clip], is_drawn[of_clip]
