"""How evenly a pool is used: by the run's own draws, and by what other settings would have drawn.

The paper claims that the signed square root evens the use of clips out; the comparison measures it on the run's own
concepts, together with this project's margin and `querybank`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sonify import layout
from sonify.config import Config, Retrieval
from sonify.io.places import stems
from sonify.io.tables import read_rows, read_tables
from sonify.retrieval.encoders import load_encoder
from sonify.retrieval.pool import SplitPool, read_pool
from sonify.rows import Concept, Pair, Reason
from sonify.stages.pair import draw_source
from sonify.stores import Place

# Enough draws to tell shares to a percent or so, few enough for a command that answers in seconds.
SCENES_COMPARED = 2000

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "square root, no margin (the paper)": {"signed_sqrt": True, "margin": 0.0, "hubness": "none"},
    "no square root, no margin": {"signed_sqrt": False, "margin": 0.0, "hubness": "none"},
    "square root, no margin, querybank": {"signed_sqrt": True, "margin": 0.0, "hubness": "querybank"},
    "square root, margin 0.8": {"signed_sqrt": True, "margin": 0.8, "hubness": "none"},
    "no square root, margin 0.8": {"signed_sqrt": False, "margin": 0.8, "hubness": "none"},
    "square root, margin 0.8, querybank": {"signed_sqrt": True, "margin": 0.8, "hubness": "querybank"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How N draws fall on a pool. Shares are of the whole pool; Gini is 0 for even use and near 1 for one clip only."""

    draws: int
    clips_used_share: float
    recordings_used_share: float
    clips_gini: float
    recordings_gini: float
    most_used: tuple[tuple[str, int], ...]


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient of (N,) non-negative counts, those of unused clips included.

    Source: Gini, "Variabilità e mutabilità" (1912), in its form over sorted values.
    """
    ordered = np.sort(counts.astype(np.float64))
    if ordered.sum() == 0:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float(2 * (ranks * ordered).sum() / (len(ordered) * ordered.sum()) - (len(ordered) + 1) / len(ordered))


def measure_usage(clips: Counter[str], recording_of: Mapping[str, str]) -> Usage:
    """Measure draws of each clip over a pool, given each clip's recording."""
    recordings: Counter[str] = Counter()
    for clip, n in clips.items():
        recordings[recording_of.get(clip, clip)] += n
    num_recordings = len(set(recording_of.values()))
    return Usage(
        draws=clips.total(),
        clips_used_share=round(len(clips) / max(len(recording_of), 1), 4),
        recordings_used_share=round(len(recordings) / max(num_recordings, 1), 4),
        clips_gini=round(gini(_padded(clips, len(recording_of))), 4),
        recordings_gini=round(gini(_padded(recordings, num_recordings)), 4),
        most_used=tuple(sorted(clips.items(), key=lambda item: (-item[1], item[0]))[:10]),
    )


def recordings_of_clips(run_dir: Place) -> dict[str, str]:
    """Each clip's recording, over the whole pool."""
    tables = (table for _, table in read_tables(run_dir / layout.CLIPS, ["clip", "recording"]))
    return {
        clip: recording
        for table in tables
        for clip, recording in zip(table["clip"].to_pylist(), table["recording"].to_pylist(), strict=True)
    }


def read_pairs(run_dir: Place) -> Iterator[Pair]:
    """Every pair of a run, in the order of units."""
    for unit in stems(run_dir / layout.PAIRS):
        yield from read_rows(run_dir / layout.pairs(unit), Pair)


def run_usage(run_dir: Place) -> Usage | None:
    """The use of the pool by all pairs of a run; None where nothing is paired yet."""
    drawn: Counter[str] = Counter()
    for _, table in read_tables(run_dir / layout.PAIRS, ["sources"]):
        sources = table["sources"].combine_chunks().flatten()
        drawn.update({entry["values"]: entry["counts"] for entry in sources.field("clip").value_counts().to_pylist()})
    return measure_usage(drawn, recordings_of_clips(run_dir)) if drawn else None


def compare_usage(config: Config) -> dict[str, Usage]:
    """Draw for the run's own concepts, up to 2,000 scenes of them, under each of `VARIANTS`."""
    pairs = list(islice(read_pairs(config.run_dir), SCENES_COMPARED))
    recording_of = recordings_of_clips(config.run_dir)
    encoder = load_encoder(config.retrieval.encoder)
    parts = read_pool(config.run_dir, encoder)
    compared: dict[str, Usage] = {}
    for name, changes in VARIANTS.items():
        retrieval = Retrieval.model_validate({**config.retrieval.model_dump(), **changes})
        changed = config.model_copy(update={"retrieval": retrieval})
        pools = {split: SplitPool(part, encoder, retrieval, threads=1) for split, part in parts.items()}
        compared[name] = measure_usage(Counter(_draw_again(pairs, changed, pools)), recording_of)
    return compared


def count_discards(run_dir: Place) -> dict[str, int]:
    """How many scenes each discard word took out."""
    words: Counter[str] = Counter()
    for _, table in read_tables(run_dir / layout.REJECTS / "pair", ["reason", "detail"]):
        rows = zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        words.update(detail for reason, detail in rows if reason == Reason.DISCARDED)
    return dict(words.most_common())


def _draw_again(pairs: list[Pair], config: Config, pools: Mapping[str, SplitPool]) -> Iterator[str]:
    texts = {split: sorted({s.description for p in pairs if p.split == split for s in p.sources}) for split in pools}
    rankings = {split: pool.rank(texts[split]) for split, pool in pools.items()}
    for pair in pairs:
        used: set[int] = set()
        for source in pair.sources:
            concept = Concept(concept=source.concept, description=source.description)
            ranking = rankings[pair.split][source.description]
            drawn = draw_source(pools[pair.split], ranking, used, concept, config, (pair.image, pair.scene))
            if drawn is not None:
                yield drawn.clip


def _padded(counts: Counter[str], size: int) -> np.ndarray:
    values = np.zeros(size, dtype=np.int64)
    values[: len(counts)] = list(counts.values())
    return values
