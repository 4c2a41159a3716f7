"""What listening tells: of recordings whose class people have named, of planted mixtures, of speech, of draws.

    SONIFY_TEST_DATA=... python -m benchmarks.listening [--model M --labels CSV] [--only FILE]

Prints one JSON line. The listener is YAMNet, or the tagger that is named; the judge is the class that people gave each
recording, and for draws the table of concepts and the classes that people would accept (`concepts_pool.csv`). `--only`
names a file of recordings, one a line: those that a tagger was not trained on.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.pairing import Judge, Pool, figures_of, meet, read_labelled
from eval.pairing import classes_of as classes_of_text
from sonify.config import Purity, Retrieval, Tagger
from sonify.features.taggers import Label, load_tagger
from sonify.io.machine import processor
from sonify.media.clips import cut_recording
from sonify.media.mixing import measure_loudness
from sonify.retrieval.candidates import PoolClips
from sonify.retrieval.confirm import SPEECH_LIKELY, TAG_FLOOR, ClipTags, Ear, classes_of, places
from sonify.retrieval.encoders import load_encoder, query_of
from sonify.retrieval.kinds import Query
from sonify.rows import Concept, Reason

RATE_HZ = 16_000
MIXED_DB = (0, -6, -12)
FALSE_ALARMS = 0.05
SWAPPED = 0.1
# ESC-50 has no class of speech; in these somebody uses the voice or the mouth.
VOICES = ("breathing", "coughing", "crying_baby", "laughing", "sneezing", "snoring", "clapping")


def main() -> None:
    """Measure all, on one thread."""
    data = Path(os.environ["SONIFY_TEST_DATA"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(data / "weights/yamnet/yamnet.tflite"))
    parser.add_argument("--labels", default="")
    parser.add_argument("--only", type=Path)
    asked = parser.parse_args()
    labels = asked.labels or (str(data / "weights/yamnet/yamnet_class_map.csv") if "tflite" in asked.model else None)
    settings = Tagger.model_validate({"kind": "tagger", "model": asked.model, "labels": labels, "device": "cpu"})
    rows = read_recordings(data, asked.only)
    sounds = [next(cut_recording(data / "sounds" / row["file"], RATE_HZ, 5.0)).samples for row in rows]
    kinds = np.array([row["class"] for row in rows])
    tagger = load_tagger(settings)
    started = time.perf_counter()
    tags = heard_in(tagger(sounds), tagger.labels)
    line: dict[str, Any] = {
        "name": "listening",
        "listener": Path(asked.model).name,
        "recordings": len(rows),
        "seconds_a_clip": round((time.perf_counter() - started) / len(rows), 5),
        "cpu": processor(),
        "confirmation": measure_confirmation(tags, kinds, settings),
        "purity": measure_purity(tags, kinds, settings, sounds, tagger),
        "speech": measure_speech(tags, kinds, settings),
        "planted": measure_planted(tags, kinds, settings),
        "draws": measure_draws(data, rows, tags, settings),
    }
    print(json.dumps(line))


def read_recordings(data: Path, only: Path | None) -> list[dict[str, str]]:
    """The recordings, with text and class."""
    kept = set(only.read_text().split()) if only else None
    with (data / "sounds" / "metadata.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if kept is None or row["file"] in kept]


def heard_in(scores: Any, labels: Sequence[Label]) -> ClipTags:
    """What a tagger heard in clips, as the pool keeps it."""
    best: list[np.ndarray] = []
    mean: list[np.ndarray] = []
    words: list[np.ndarray] = []
    for one in scores:
        order = np.argsort(-one.max(0), kind="stable")
        kept = order[: max(10, int((one.max(0) >= TAG_FLOOR).sum()))]
        words.append(kept)
        best.append(one.max(0)[kept])
        mean.append(one.mean(0)[kept])
    class_of = np.array([places().get(label.class_id, -1) for label in labels], np.int16)
    flat = np.concatenate(words)
    return ClipTags(
        listener="benchmark",
        present=np.ones(len(words), bool),
        starts=np.cumsum([0, *(len(one) for one in words)]),
        classes=class_of[flat],
        words=flat.astype(np.int32),
        scores=np.concatenate(best),
        means=np.concatenate(mean),
        names=[label.name for label in labels],
    )


def query_named(kind: str) -> Query:
    """A class of ESC-50 as what is asked."""
    return query_of(Concept(concept=kind.replace("_", " "), description=""), "description")


def named_kinds(kinds: np.ndarray) -> list[str]:
    """The classes whose names are a class of the ontology: of the others nothing can be said."""
    return [kind for kind in sorted(set(kinds.tolist())) if classes_of(query_named(kind))]


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """How often one of `above` is greater than one of `below`, half of the ties counted."""
    ordered = np.sort(below)
    less, same = np.searchsorted(ordered, above, "left"), np.searchsorted(ordered, above, "right")
    return round(float(((less + same) / 2).mean() / len(below)), 4)


def measure_confirmation(tags: ClipTags, kinds: np.ndarray, settings: Tagger) -> dict[str, Any]:
    """A clip's own class against every other class that has a name."""
    ear, everything, named = Ear(tags, settings, None), np.arange(len(kinds)), named_kinds(kinds)
    judged = [ear.judge(query_named(kind), everything) for kind in named]
    own = np.stack([kinds == kind for kind in named])
    support = np.stack([one.support for one in judged])
    confirmed = np.stack([one.confirmed for one in judged])
    foreign = ~own & np.isin(kinds, named)
    return {
        "classes_without_a_name": sorted(set(kinds.tolist()) - set(named)),
        "auc_own_against_other": auc(support[own], support[foreign]),
        "false_refusals": round(float(1 - confirmed[own].mean()), 4),
        "false_acceptances": round(float(confirmed[foreign].mean()), 4),
    }


def measure_purity(
    tags: ClipTags, kinds: np.ndarray, settings: Tagger, sounds: Sequence[np.ndarray], tagger: Any
) -> dict[str, Any]:
    """Clean clips that are confirmed against the same with a clip of another class in them."""
    rng = np.random.default_rng(0)
    others = [int(rng.choice(np.flatnonzero(kinds != kind))) for kind in kinds]
    lufs = [measure_loudness(sound, RATE_HZ) for sound in sounds]
    clean, plain = purities(tags, kinds, settings), entropies(tags)
    is_known = np.isfinite(clean)
    is_known &= confirmed_as(tags, kinds, settings)  # only what is confirmed is weighed
    limit = np.quantile(clean[is_known], FALSE_ALARMS)
    measured: dict[str, Any] = {}
    for db in MIXED_DB:
        mixed = [mix(sounds[n], sounds[o], lufs[n] - lufs[o] + db) for n, o in enumerate(others)]
        heard = heard_in(tagger(mixed), tagger.labels)
        found = purities(heard, kinds, settings)[is_known]
        within = [
            auc(clean[is_known][kinds[is_known] == kind], found[kinds[is_known] == kind])
            for kind in sorted(set(kinds[is_known].tolist()))
        ]
        measured[f"{db} dB"] = {
            "auc": auc(clean[is_known], found),
            "auc_within_a_class": round(float(np.mean(within)), 4),
            "auc_of_entropy": auc(-plain[is_known], -entropies(heard)[is_known]),
            "recall_at_5_percent": round(float((found < limit).mean()), 4),
        }
    return measured


def mix(sound: np.ndarray, other: np.ndarray, gain_db: float) -> np.ndarray:
    """Add a sound at a gain; what passes full scale brings all of it down."""
    summed = sound + other * 10 ** (gain_db / 20)
    return np.rint(summed * min(1.0, 32767 / max(np.abs(summed).max(), 1))).astype(np.int16)


def purities(tags: ClipTags, kinds: np.ndarray, settings: Tagger) -> np.ndarray:
    """Each clip's purity as its own class; NaN where the class has no name."""
    ear, found = Ear(tags, settings, None), np.full(len(kinds), np.nan)
    for kind in named_kinds(kinds):
        clips = np.flatnonzero(kinds == kind)
        found[clips] = ear.judge(query_named(kind), clips).purity
    return found


def confirmed_as(tags: ClipTags, kinds: np.ndarray, settings: Tagger) -> np.ndarray:
    """Whether each clip is confirmed as its own class."""
    ear = Ear(tags, settings, None)
    return np.array([ear.judge(query_named(kind), np.array([n])).confirmed[0] for n, kind in enumerate(kinds)])


def entropies(tags: ClipTags) -> np.ndarray:
    """The entropy of each clip's scores."""
    spans = [tags.means[start:end] for start, end in zip(tags.starts, tags.starts[1:], strict=False)]
    shares = [span / max(span.sum(), 1e-9) for span in spans]
    return np.array([-(share * np.log(share + 1e-12)).sum() for share in shares])


def measure_speech(tags: ClipTags, kinds: np.ndarray, settings: Tagger) -> dict[str, Any]:
    """How many clips of each class are taken for speech. ESC-50 has none of speech: all are false, as far as told."""
    ear = Ear(tags, settings, None)
    spoken = np.array([ear.speech(clip) for clip in range(len(kinds))]) >= SPEECH_LIKELY
    by_kind = {kind: int(spoken[kinds == kind].sum()) for kind in sorted(set(kinds.tolist()))}
    voiced = np.isin(kinds, VOICES)
    return {
        "found": int(spoken.sum()),
        "share_of_voices": round(float(spoken[voiced].mean()), 4),
        "share_of_others": round(float(spoken[~voiced].mean()), 4),
        "by_class": {kind: count for kind, count in by_kind.items() if count},
    }


def measure_planted(tags: ClipTags, kinds: np.ndarray, settings: Tagger) -> dict[str, Any]:
    """A tenth of the clips come under the name of another class: which of them are refused, which of the rest stay."""
    rng, ear, named = np.random.default_rng(0), Ear(tags, settings, None), named_kinds(kinds)
    clips = np.flatnonzero(np.isin(kinds, named))
    wrong = rng.random(len(clips)) < SWAPPED
    told = [
        str(rng.choice([n for n in named if n != kinds[c]])) if w else str(kinds[c])
        for c, w in zip(clips, wrong, strict=True)
    ]
    kept = np.array([ear.judge(query_named(t), np.array([c])).confirmed[0] for t, c in zip(told, clips, strict=True)])
    return {
        "planted": int(wrong.sum()),
        "wrong_refused": round(float(1 - kept[wrong].mean()), 4),
        "right_kept": round(float(kept[~wrong].mean()), 4),
    }


def measure_draws(data: Path, rows: Sequence[dict[str, str]], tags: ClipTags, settings: Tagger) -> dict[str, Any]:
    """The figures of the table of concepts by the shipped setting, with and without confirmation.

    The classes are what people gave the recordings, also where a tenth of them comes under the text of another.
    """
    texts = [row["text"] for row in rows]
    classes = [classes_of_text(row["class"]) for row in rows]
    rng = np.random.default_rng(1)
    swapped = [str(rng.choice(texts)) if rng.random() < SWAPPED else text for text in texts]
    table = data / "concepts_pool.csv"
    labelled = read_labelled(table)
    encoder = load_encoder(Retrieval().encoder)
    measured: dict[str, Any] = {}
    for what, told in (("as_told", texts), ("a_tenth_swapped", swapped)):
        clips = PoolClips(
            clips=[str(n) for n in range(len(told))],
            recordings=np.arange(len(told)),
            loudness_lufs=np.zeros(len(told)),
            embeddings=encoder(told),
            tags=tags,
        )
        pool = Pool(clips=clips, classes=classes, texts=told)
        judge = Judge(labelled, meet(labelled, pool, table), pool, encoder)
        for how, retrieval in (
            ("off", Retrieval()),
            ("on", Retrieval(confirm=settings)),
            ("on_and_purity", Retrieval(confirm=settings, purity=Purity())),
        ):
            outcomes = judge(retrieval)
            refused = sum(outcome.reason == Reason.NOT_CONFIRMED for outcome in outcomes)
            measured[f"{what}, confirmation {how}"] = figures_of(outcomes) | {"not_confirmed": refused}
    return measured


if __name__ == "__main__":
    main()
