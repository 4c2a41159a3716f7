"""The table of metrics: what each is, what it needs, and how it comes from vectors. A new metric is a line here.

A `Mean` gives a picture a value by what it is given to; a `Distance` compares the set of made pictures with the set of
real ones. The arithmetic is in `eval.metrics`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from eval.evidence import Evidence, Need, by_item
from eval.metrics import alignment, distributions
from eval.metrics.alignment import Join, PoolKind, Values, unit
from eval.pictures import Picture
from eval.statistics import Estimate
from eval.suites.config import Metric
from eval.suites.suite import Item, Suite

Better = Literal["higher", "lower"]
PHOTO = "a photo of {}"
DEPICTS = "A photo depicts {}"  # CLIPScore's (Hessel et al. 2021)
SOUND_OF = "This is a sound of {}"  # CLAP's
RECALL_TEMPLATES = {"": "{}", "_photo": PHOTO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Pictures, and what each is given to: `join` counts the items of the suite."""

    evidence: Evidence
    pictures: Sequence[Picture]
    join: Join

    def images(self, role: str) -> np.ndarray:
        """The pictures' vectors, (N, D)."""
        return self.evidence.take(role, "images", (picture.sha256 for picture in self.pictures))

    def sounds(self, role: str) -> np.ndarray:
        """The items' sounds, (I, D)."""
        return self.evidence.take(role, "sounds", (item.sound.sha256 for item in self.items))

    def references(self, role: str) -> tuple[np.ndarray, list[int]]:
        """The items' reference pictures (Q, D), and the item of each."""
        owned = [(item.sha256, place) for place, each in enumerate(self.items) for item in each.references]
        return self.evidence.take(role, "images", (sha256 for sha256, _ in owned)), [place for _, place in owned]

    @property
    def items(self) -> tuple[Item, ...]:
        """Those of the suite."""
        return self.evidence.suite.items


def pool_kind(suite: Suite) -> PoolKind:
    """Among which others a rank is sought."""
    return suite.settings.get("pool", {}).get("kind", "other_recordings")


def case_of(evidence: Evidence, pictures: Sequence[Picture]) -> Case:
    """Join pictures with the items that they are given to."""
    suite = evidence.suite
    place = by_item(suite)
    pool = set(suite.pool)
    join = Join(
        item_of_N=np.array([place[picture.item.id] for picture in pictures], dtype=int),
        donors_N=np.array([-1 if picture.donor is None else place[picture.donor] for picture in pictures], dtype=int),
        recordings_I=[item.recording for item in suite.items],
        labels_I=[item.labels for item in suite.items],
        pool_I=np.array([item.id in pool for item in suite.items], dtype=bool),
    )
    return Case(evidence=evidence, pictures=pictures, join=join)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric over a suite: one number of a report, with everything that it takes to say what it is.

    `estimate` is None where there is none, and `reason` says why. `on` is `all` items, or `out` where those are left
    out that the model may have met. `towers` are the hashes of the weights by name. `beside` are figures to read it
    with; docs/evaluation.md lists them.
    """

    metric: str
    definition: str
    better: str  # `higher` | `lower`
    estimate: Estimate | None
    reason: str = ""
    on: str = "all"
    images: int
    items: int
    recordings: int
    seeds: int
    towers: Mapping[str, str]
    preprocessing: tuple[str, ...] = ()
    sample_rate_hz: int | None = None
    pool_sha256: str | None = None
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A metric that is a mean over recordings; `texts` are what the text ways of its towers read of a suite."""

    name: str
    asked: Metric
    definition: str
    needs: tuple[Need, ...]
    measure: Callable[[Case], Values]
    texts: Callable[[Suite], Mapping[str, Collection[str]]] = lambda _: {}
    of: Literal["sounds", "references", "labels", "captions"]
    in_pool: bool = False
    better: Better = "higher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """A metric of two sets of pictures; `names` are those of the estimates that `measure` gives, with which is better.

    `measure` takes vectors of the real and of the made pictures, as the tower gives them, and their groups; where it
    gives a text, that is why there is no estimate.
    """

    names: Mapping[str, Better]
    asked: Metric
    definition: str
    need: Need
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Mapping[str, Estimate | str]]


def labels_of(suite: Suite) -> tuple[str, ...]:
    """All labels of a suite, sorted."""
    return tuple(sorted({label for item in suite.items for label in item.labels}))


def _query(case: Case, of: str, hears: str, sees: str) -> tuple[np.ndarray, list[int] | None]:
    return (case.sounds(hears), None) if of == "sounds" else case.references(sees)


def _input_of(item: Item, of: str) -> tuple[str, ...]:
    """What is compared of an item: equal where the very same files are."""
    return (item.sound.sha256,) if of == "sounds" else tuple(sorted(each.sha256 for each in item.references))


def _cosine(of: str, sees: str, hears: str = "") -> Callable[[Case], Values]:
    def measure(case: Case) -> Values:
        queries_QD, owner_Q = _query(case, of, hears, sees)
        return alignment.cosine_scores(queries_QD, case.images(sees), case.join, owner_Q)

    return measure


def _z(of: str, sees: str, hears: str = "") -> Callable[[Case], Values]:
    def measure(case: Case) -> Values:
        queries_QD, owner_Q = _query(case, of, hears, sees)
        return alignment.z_scores(queries_QD, case.images(sees), case.join, owner_Q)

    return measure


def _rank(of: str, sees: str, hears: str = "") -> Callable[[Case], Values]:
    def measure(case: Case) -> Values:
        queries_QD, owner_Q = _query(case, of, hears, sees)
        inputs_I = [_input_of(item, of) for item in case.items]
        kind = pool_kind(case.evidence.suite)
        return alignment.rank_scores(queries_QD, case.images(sees), case.join, kind, owner_Q, inputs_I)

    return measure


def _ranks(case: Case, role: str, template: str) -> tuple[np.ndarray, np.ndarray]:
    names, truth_IL = alignment.label_table([item.labels for item in case.items])
    texts_LD = case.evidence.take(role, "texts", (template.format(name) for name in names))
    return alignment.label_ranks(case.images(role), texts_LD), truth_IL[case.join.item_of_N]


def _recall(role: str, k: int, template: str = "{}", *, all_of_them: bool = False) -> Callable[[Case], Values]:
    def measure(case: Case) -> Values:
        ranks_NL, truth_NL = _ranks(case, role, template)
        return (alignment.recall_all_at if all_of_them else alignment.recall_at)(ranks_NL, truth_NL, k)

    return measure


def _clip_score(kind: Literal["cosine", "hessel", "torchmetrics"], template: str) -> Callable[[Case], Values]:
    def measure(case: Case) -> Values:
        owned = [(template.format(text), place) for place, item in enumerate(case.items) for text in item.captions]
        captions_CD = case.evidence.take("clip_b32", "texts", (text for text, _ in owned))
        owners = [place for _, place in owned]
        return getattr(alignment.clip_scores(case.images("clip_b32"), captions_CD, owners, case.join.item_of_N), kind)

    return measure


def _bridge(case: Case) -> Values:
    names = labels_of(case.evidence.suite)
    heard_LD = unit(case.evidence.take("clap", "texts", (SOUND_OF.format(name) for name in names)))
    seen_LD = unit(case.evidence.take("clip_b32", "texts", (PHOTO.format(name) for name in names)))
    sounds_IL = unit(case.sounds("clap")) @ heard_LD.T
    return alignment.label_bridge(sounds_IL, unit(case.images("clip_b32")) @ seen_LD.T, case.join.item_of_N)


def _texts(role: str, *templates: str) -> Callable[[Suite], Mapping[str, Collection[str]]]:
    return lambda suite: {role: [template.format(label) for template in templates for label in labels_of(suite)]}


def _caption_texts(template: str) -> Callable[[Suite], Mapping[str, Collection[str]]]:
    return lambda suite: {"clip_b32": [template.format(text) for item in suite.items for text in item.captions]}


def _bridge_texts(suite: Suite) -> Mapping[str, Collection[str]]:
    return {**_texts("clap", SOUND_OF)(suite), **_texts("clip_b32", PHOTO)(suite)}


WAV2CLIP, B32, L14 = Need("wav2clip", "sounds"), Need("clip_b32", "images"), Need("clip_l14", "images")
B32_TEXT, L14_TEXT = Need("clip_b32", "texts"), Need("clip_l14", "texts")
PEAV_SOUND, PEAV = Need("peav", "sounds"), Need("peav", "images")
CLAP, CLAP_TEXT = Need("clap", "sounds"), Need("clap", "texts")

MEANS: tuple[Mean, ...] = (
    Mean(
        name="ais_cosine",
        asked="ais_cosine",
        definition="mean cosine of the whole sound by Wav2CLIP and the picture by CLIP ViT-B/32 (Seeing Sound, MACS)",
        needs=(WAV2CLIP, B32),
        measure=_cosine("sounds", "clip_b32", "wav2clip"),
        of="sounds",
    ),
    Mean(
        name="ais_z",
        asked="ais_z",
        definition="that cosine in standard deviations of the cosines of the other recordings' pictures (MACS)",
        needs=(WAV2CLIP, B32),
        measure=_z("sounds", "clip_b32", "wav2clip"),
        of="sounds",
    ),
    Mean(
        name="ais_rank",
        asked="ais_rank",
        definition="percent of the pool's sounds that are less like the picture than its own, equal sounds left out;"
        " chance 50 (SonicDiffusion)",
        needs=(WAV2CLIP, B32),
        measure=_rank("sounds", "clip_b32", "wav2clip"),
        of="sounds",
        in_pool=True,
    ),
    Mean(
        name="iis_cosine",
        asked="iis_cosine",
        definition="mean cosine of the picture and the reference (of several the mean) by CLIP ViT-B/32 (Seeing Sound,"
        " MACS)",
        needs=(B32,),
        measure=_cosine("references", "clip_b32"),
        of="references",
    ),
    Mean(
        name="iis_z",
        asked="iis_z",
        definition="that cosine in standard deviations of the cosines of the other recordings' pictures (MACS)",
        needs=(B32,),
        measure=_z("references", "clip_b32"),
        of="references",
    ),
    Mean(
        name="iis_rank",
        asked="iis_rank",
        definition="percent of the pool's references that are less like the picture than its own (of several the mean),"
        " equal ones left out, by CLIP ViT-L/14; chance 50 (SonicDiffusion)",
        needs=(L14,),
        measure=_rank("references", "clip_l14"),
        of="references",
        in_pool=True,
    ),
    Mean(
        name="aic",
        asked="aic",
        definition="share of pictures whose nearest label by CLIP ViT-L/14, raw and among all of the suite, is the"
        " sound's (SonicDiffusion)",
        needs=(L14, L14_TEXT),
        measure=_recall("clip_l14", 1),
        texts=_texts("clip_l14", "{}"),
        of="labels",
    ),
    *(
        Mean(
            name=f"r_at_{k}{suffix}",
            asked="r_at_k",
            definition=f"share of pictures with a label of the sound among the {k} nearest by CLIP ViT-B/32, as"
            f" {template!r}",
            needs=(B32, B32_TEXT),
            measure=_recall("clip_b32", k, template),
            texts=_texts("clip_b32", template),
            of="labels",
        )
        for suffix, template in RECALL_TEMPLATES.items()
        for k in (1, 5)
    ),
    *(
        Mean(
            name=f"recall_all_at_{k}",
            asked="recall_all",
            definition=f"share of pictures with all of the sound's labels among the {k} nearest by CLIP ViT-B/32, as"
            f" {PHOTO!r}; of sounds of two labels and more",
            needs=(B32, B32_TEXT),
            measure=_recall("clip_b32", k, PHOTO, all_of_them=True),
            texts=_texts("clip_b32", PHOTO),
            of="labels",
        )
        for k in (2, 5)
    ),
    Mean(
        name="clip_score_cosine",
        asked="clip_score",
        definition="mean cosine of the picture and the captions by CLIP ViT-B/32, over all captions",
        needs=(B32, B32_TEXT),
        measure=_clip_score("cosine", "{}"),
        texts=_caption_texts("{}"),
        of="captions",
    ),
    Mean(
        name="clip_score_hessel",
        asked="clip_score",
        definition=f"2.5 max(cosine, 0) with the caption as {DEPICTS!r}, over all captions (Hessel et al. 2021)",
        needs=(B32, B32_TEXT),
        measure=_clip_score("hessel", DEPICTS),
        texts=_caption_texts(DEPICTS),
        of="captions",
    ),
    Mean(
        name="clip_score_torchmetrics",
        asked="clip_score",
        definition="100 max(cosine, 0), over all captions (torchmetrics)",
        needs=(B32, B32_TEXT),
        measure=_clip_score("torchmetrics", "{}"),
        texts=_caption_texts("{}"),
        of="captions",
    ),
    Mean(
        name="ais_peav",
        asked="ais_peav",
        definition="mean cosine of the whole sound and the picture, as a video of one frame, by PE-AV",
        needs=(PEAV_SOUND, PEAV),
        measure=_cosine("sounds", "peav", "peav"),
        of="sounds",
    ),
    Mean(
        name="ais_peav_rank",
        asked="ais_peav",
        definition="percent of the pool's sounds that are less like the picture than its own, equal sounds left out, by"
        " PE-AV; chance 50",
        needs=(PEAV_SOUND, PEAV),
        measure=_rank("sounds", "peav", "peav"),
        of="sounds",
        in_pool=True,
    ),
    Mean(
        name="ais_clap",
        asked="ais_clap",
        definition="mean correlation over the suite's labels of what CLAP hears in the sound and CLIP ViT-B/32 sees in"
        " the picture",
        needs=(CLAP, CLAP_TEXT, B32, B32_TEXT),
        measure=_bridge,
        texts=_bridge_texts,
        of="labels",
    ),
)


def _features(estimate: Callable[..., Estimate], name: str) -> Callable[..., dict[str, Estimate]]:
    def measure(real_ND: np.ndarray, made_ND: np.ndarray, *groups: np.ndarray) -> dict[str, Estimate]:
        return {name: estimate(real_ND, made_ND, *groups)}

    return measure


def _infinity(real_ND: np.ndarray, made_ND: np.ndarray, *_: np.ndarray) -> dict[str, Estimate | str]:
    value, why = distributions.fid_infinity(real_ND, made_ND)
    note = "no interval: the line through its sizes has none"
    return {"fid_infinity": why if value is None else Estimate(value=value, note=note)}


def _cmmd(real_ND: np.ndarray, made_ND: np.ndarray, *groups: np.ndarray) -> dict[str, Estimate]:
    return {"cmmd": distributions.cmmd_estimate(unit(real_ND), unit(made_ND), *groups)}


DISTANCES: tuple[Distance, ...] = (
    Distance(
        names={"fid_torch_fidelity": "lower"},
        asked="fid",
        definition="Frechet distance of the 2048 features of FID's own Inception, resized to 299 as TensorFlow 1 did,"
        " with unbiased covariances",
        need=Need("inception", "images"),
        measure=_features(distributions.frechet_estimate, "fid_torch_fidelity"),
    ),
    Distance(
        names={"fid_infinity": "lower"},
        asked="fid",
        definition="that distance at endlessly many made pictures, by a line through those of 15 sizes over 1/n (Chong"
        " and Forsyth 2020)",
        need=Need("inception", "images"),
        measure=_infinity,
    ),
    Distance(
        names={"kid": "lower"},
        asked="kid",
        definition="squared maximum mean discrepancy of FID's features under (x.y/d + 1)^3, unbiased, over all"
        " pairs (Binkowski et al. 2018)",
        need=Need("inception", "images"),
        measure=_features(distributions.kid_estimate, "kid"),
    ),
    Distance(
        names={"clip_fid": "lower"},
        asked="clip_fid",
        definition="Frechet distance of CLIP ViT-B/32's embeddings, not normalised (clean-fid's CLIP-FID)",
        need=Need("clip_b32", "images"),
        measure=_features(distributions.frechet_estimate, "clip_fid"),
    ),
    Distance(
        names={"cmmd": "lower"},
        asked="cmmd",
        definition="1000 times the squared maximum mean discrepancy of unit CLIP ViT-L/14@336 embeddings under a"
        " Gaussian of width 10, biased (Jayasumana et al. 2024)",
        need=Need("clip_l14_336", "images"),
        measure=_cmmd,
    ),
    Distance(
        names={"fd_dinov2": "lower"},
        asked="fd_dinov2",
        definition="Frechet distance of DINOv2's embeddings (Stein et al. 2023)",
        need=Need("dinov2", "images"),
        measure=_features(distributions.frechet_estimate, "fd_dinov2"),
    ),
    Distance(
        names={"precision": "higher", "recall": "higher", "density": "higher", "coverage": "higher"},
        asked="prdc",
        definition="precision, recall, density and coverage of DINOv2's embeddings, k = 5 (Naeem et al. 2020)",
        need=Need("dinov2", "images"),
        measure=distributions.prdc_estimate,
    ),
)
INCEPTION_SCORE = "inception_score"
