"""Scores of a suite from vectors: controls, what has no value and why, parts of the items."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from eval.evidence import Evidence, Need
from eval.measures import DISTANCES, MEANS, Score
from eval.metrics.alignment import unit
from eval.metrics.distributions import fid_infinity, frechet
from eval.pictures import Made, Picture
from eval.score import distance_estimates, gather_for, give, picture_values, score
from eval.statistics import Estimate
from eval.suites.config import METRICS
from eval.suites.derange import derange
from eval.suites.suite import Suite
from eval.towers import config
from eval.towers.cache import Vectors
from eval.towers.opened import open_judges
from eval.towers.tower import Judges
from sonify.errors import InputError
from tests.builders import picture
from tests.eval.suites_built import make_suite

ROLES = ("inception", "clip_b32", "clip_l14", "clip_l14_336", "dinov2", "wav2clip", "clap", "peav")
LABELS = tuple(f"label {n}" for n in range(8))


def random_judges(*roles: str) -> Judges:
    """Random towers; Wav2CLIP's in the space of CLIP's."""
    seeds = {role: {"wav2clip": 1}.get(role, n) for n, role in enumerate(ROLES)}
    sections = {role: config.Random(kind="random", width=16, seed=seeds[role]) for role in roles or ROLES}
    return open_judges(config.Towers(**sections))


def references_of(suite: Suite, seeds: Sequence[int] = (0,)) -> Made:
    """The references as if a model had made them."""
    pictures = tuple(
        Picture(
            item=item,
            seed=seed,
            start_sec=0.0,
            path=suite.folder / item.references[0].file,
            sha256=item.references[0].sha256,
            donor=None,
        )
        for item in suite.items
        if item.references
        for seed in seeds
    )
    return Made(
        folder=suite.folder,
        model="m",
        model_sha256="0" * 64,
        pictures=pictures,
        missing=(),
        unusable={},
        failed=(),
        identical=0,
        trained_on=(),
        settings={},
        heard="window",
        size=(32, 32),
    )


def shuffled_of(suite: Suite) -> Made:
    """The references, each given to an item of another label."""
    made = references_of(suite)
    return replace(made, pictures=tuple(give(made.pictures, derange(suite.items, 0))))


def draw(folder: Path, suite: Suite, seeds: Sequence[int]) -> Made:
    """Pictures that are no references, each another."""
    folder.mkdir(exist_ok=True)
    pictures: list[Picture] = []
    for n, (item, seed) in enumerate(product(suite.items, seeds)):
        path, data = folder / f"{item.id}-{seed}.jpg", picture(1000 + n)
        path.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        pictures.append(Picture(item=item, seed=seed, start_sec=0.0, path=path, sha256=sha256, donor=None))
    return replace(references_of(suite), folder=folder, pictures=tuple(pictures))


def first_of(made: Made, picture: Picture) -> Picture:
    """The picture of the same item with the first seed."""
    return next(each for each in made.pictures if each.item.id == picture.item.id)


def first_seed_of(made: Made) -> Made:
    """The pictures of the first seed."""
    return replace(made, pictures=tuple(each for each in made.pictures if each.seed == made.pictures[0].seed))


def evidence_of(suite: Suite, judges: Judges | None = None, *made: Made) -> Evidence:
    """All vectors of a suite, and of what was made for it."""
    every = [*([references_of(suite)] if suite.items[0].references else []), *made]
    return gather_for(suite, every, judges or random_judges(), Vectors(None), METRICS)


def estimate_of(scores: Mapping[str, Score], name: str) -> Estimate:
    """A score's estimate, which there is."""
    found = scores[name].estimate
    assert found is not None, scores[name].reason
    return found


def by_name(scores: Sequence[Score], on: str = "all") -> dict[str, Score]:
    """The scores of one part."""
    return {one.metric: one for one in scores if one.on == on}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """24 items of 8 labels, two of a recording."""
    return make_suite(tmp_path_factory.mktemp("suite"), 24, LABELS, others=8, per_recording=2)


@pytest.fixture(scope="module")
def drawn(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Four pictures of each item."""
    return draw(tmp_path_factory.mktemp("drawn"), suite, range(4))


@pytest.fixture(scope="module")
def evidence(suite: Suite, drawn: Made) -> Evidence:
    """Their vectors."""
    return evidence_of(suite, None, drawn)


@pytest.fixture(scope="module")
def several(suite: Suite) -> Suite:
    """Eight items of eight labels, each with three references of its own."""
    references = [item.references[0] for item in suite.items]
    items = tuple(replace(item, references=tuple(references[n::8])) for n, item in enumerate(suite.items[::3]))
    return replace(suite, items=items, pool=tuple(item.id for item in items))


def test_the_references_are_at_no_distance_from_themselves(suite: Suite, evidence: Evidence) -> None:
    found = by_name(score(evidence, references_of(suite), METRICS).scores)
    for name in ("fid_torch_fidelity", "clip_fid", "fd_dinov2"):
        estimate = found[name].estimate
        assert estimate is not None
        assert abs(estimate.value) < 1e-6
    assert (found["iis_cosine"].estimate, found["iis_rank"].estimate) != (None, None)
    assert found["iis_cosine"].estimate.value == pytest.approx(1, abs=1e-9)  # pyright: ignore[reportOptionalMemberAccess]
    assert found["iis_rank"].estimate.value == 100  # pyright: ignore[reportOptionalMemberAccess]
    assert found["ais_cosine"].beside["ceiling"] == pytest.approx(found["ais_cosine"].estimate.value)  # pyright: ignore[reportOptionalMemberAccess]
    assert "ceiling" not in found["iis_cosine"].beside


def test_a_shuffled_control_ranks_at_chance(suite: Suite, evidence: Evidence) -> None:
    found = by_name(score(evidence, shuffled_of(suite), METRICS).scores)
    for name in ("ais_rank", "iis_rank", "ais_peav_rank"):
        estimate = found[name].estimate
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < 50 < estimate.high


def test_recordings_are_the_units(suite: Suite, evidence: Evidence) -> None:
    found = by_name(score(evidence, references_of(suite), METRICS).scores)["ais_cosine"]
    assert (found.images, found.items, found.recordings, found.seeds) == (24, 24, 12, 1)


def test_every_score_says_what_it_is(suite: Suite, evidence: Evidence) -> None:
    for one in score(evidence, references_of(suite), METRICS).scores:
        if one.estimate is None:
            assert one.reason
            continue
        assert one.definition
        assert one.towers
        assert all(len(sha256) == 64 for sha256 in one.towers.values())
        assert one.preprocessing
        assert one.better in ("higher", "lower")
        assert (one.pool_sha256 is not None) == ("rank" in one.metric)
        assert one.estimate.low is not None or one.estimate.note


def test_another_pool_has_another_digest_and_another_rank(suite: Suite, evidence: Evidence) -> None:
    among_labels = replace(suite, settings={**suite.settings, "pool": {"kind": "other_labels"}})
    fewer = replace(suite, pool=suite.pool[:12], pool_sha256="1" * 64)
    first = by_name(score(evidence, references_of(suite), METRICS).scores)
    for other in (among_labels, fewer):
        found = by_name(score(replace(evidence, suite=other), references_of(suite), METRICS).scores)
        changed = {name for name in found if found[name].pool_sha256 != first[name].pool_sha256}
        assert changed == {"ais_rank", "iis_rank", "ais_peav_rank"}
        assert found["ais_rank"].estimate != first["ais_rank"].estimate
        assert found["ais_cosine"] == first["ais_cosine"]


def test_a_metric_without_its_tower_says_so(suite: Suite) -> None:
    judges = random_judges("clip_b32")
    found = by_name(score(evidence_of(suite, judges), references_of(suite), METRICS).scores)
    assert found["iis_cosine"].estimate is not None
    assert found["ais_cosine"].estimate is None
    assert "towers.wav2clip is not given" in found["ais_cosine"].reason
    assert "towers.inception is not given" in found["fid_torch_fidelity"].reason
    assert "towers.inception is not given" in found["inception_score"].reason


def test_a_suite_without_pictures_has_no_distances_and_keeps_the_rest(suite: Suite, tmp_path: Path) -> None:
    blind = make_suite(tmp_path, 6, LABELS, pictures=False)
    made = references_of(suite)
    pictures = tuple(replace(picture, item=item) for picture, item in zip(made.pictures, blind.items, strict=False))
    evidence = gather_for(blind, [replace(made, pictures=pictures)], random_judges(), Vectors(None), METRICS)
    found = by_name(score(evidence, replace(made, pictures=pictures), METRICS).scores)
    for name in ("fid_torch_fidelity", "kid", "cmmd", "coverage", "iis_cosine", "iis_rank"):
        assert found[name].estimate is None
        assert found[name].reason == "the suite has no reference pictures"
    for name in ("ais_cosine", "ais_rank", "aic", "clip_score_cosine", "r_at_1"):
        assert found[name].estimate is not None


def test_one_recording_has_a_value_and_no_interval(tmp_path: Path) -> None:
    alone = make_suite(tmp_path, 2, LABELS, per_recording=2, others=0)
    found = by_name(score(evidence_of(alone), references_of(alone), METRICS).scores)
    assert found["ais_cosine"].estimate is not None
    assert found["ais_cosine"].estimate.low is None
    assert found["ais_rank"].estimate is None
    assert "no item of another recording is in the pool" in found["ais_rank"].reason
    assert found["fid_torch_fidelity"].reason == "it takes two recordings at least, found 1"


def test_few_recordings_are_flagged(tmp_path: Path) -> None:
    small = make_suite(tmp_path, 6, LABELS, others=0)
    found = by_name(score(evidence_of(small), references_of(small), METRICS).scores)
    assert found["ais_cosine"].estimate is not None
    assert "fewer than 10" in found["ais_cosine"].estimate.note


def test_what_the_model_cannot_have_met_is_scored_apart(suite: Suite, evidence: Evidence) -> None:
    out = {item.id for item in suite.items[:12]}
    scored = score(evidence, references_of(suite), METRICS, out)
    apart, whole = by_name(scored.scores, "out"), by_name(scored.scores)
    assert set(apart) == set(whole)
    assert apart["ais_cosine"].items == 12
    part = [picture for picture in references_of(suite).pictures if picture.item.id in out]
    values = picture_values(evidence, part, ["ais_cosine"])["ais_cosine"].values_N
    assert apart["ais_cosine"].estimate.value == pytest.approx(values.mean())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("out", [None, (), "all"])
def test_where_all_or_none_are_out_there_is_one_part(suite: Suite, evidence: Evidence, out: object) -> None:
    ids = {item.id for item in suite.items} if out == "all" else out
    scored = score(evidence, references_of(suite), ["ais_cosine"], ids)  # pyright: ignore[reportArgumentType]
    assert {one.on for one in scored.scores} == {"all"}


def test_pictures_of_several_seeds_count_once_an_item(drawn: Made, evidence: Evidence) -> None:
    alike = replace(
        drawn, pictures=tuple(replace(each, sha256=first_of(drawn, each).sha256) for each in drawn.pictures)
    )
    one, four = (
        by_name(score(evidence, made, ["ais_cosine"]).scores)["ais_cosine"] for made in (first_seed_of(drawn), alike)
    )
    assert one.estimate is not None
    assert four.estimate is not None
    assert (four.estimate.value, four.estimate.low) == pytest.approx((one.estimate.value, one.estimate.low))
    assert (four.images, four.seeds, four.beside["seed_sd"]) == (96, 4, pytest.approx(0, abs=1e-12))


def test_the_distances_of_a_part_leave_its_references_out_too(suite: Suite, evidence: Evidence) -> None:
    part = references_of(suite).pictures[:10]
    found = distance_estimates(evidence, part, ["fid"])["fid_torch_fidelity"]
    assert not isinstance(found, str)
    assert abs(found.value) < 1e-6


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_distance_stands_beside_a_floor_of_as_many_pictures(
    suite: Suite, drawn: Made, evidence: Evidence, seeds: int
):
    """Of 8, 24 and 30 other real pictures beside 24 and 96 made ones."""
    made = first_seed_of(drawn) if seeds == 1 else drawn
    count, real = len(made.pictures), [item.references[0].sha256 for item in suite.items]
    spare = tuple(replace(suite.others[0], sha256=each.sha256) for each in drawn.pictures[1::3])
    for others in (suite.others, spare[:24], spare[:30]):
        case = replace(evidence, suite=replace(suite, others=others))
        beside = by_name(score(case, made, ["clip_fid"]).scores)["clip_fid"].beside
        fewer = min(count, len(others))
        assert beside["floor_images"] == fewer
        floor = frechet(
            *(evidence.take("clip_b32", "images", side) for side in (real, [o.sha256 for o in others[:fewer]]))
        )
        assert beside["floor" if fewer == count else "floor_at_fewer"] == pytest.approx(floor)
        assert len(beside.keys() & {"floor", "floor_at_fewer"}) == 1
        assert ("value_at_fewer" in beside) == (fewer < count)
        if fewer == 24 < count:  # one of each item
            some = [each.sha256 for each in first_seed_of(drawn).pictures]
            own = frechet(*(evidence.take("clip_b32", "images", side) for side in (real, some)))
            assert beside["value_at_fewer"] == pytest.approx(own)


@pytest.mark.parametrize("others", [0, 1])
def test_without_other_pictures_a_distance_has_no_floor(suite: Suite, evidence: Evidence, others: int):
    case = replace(evidence, suite=replace(suite, others=suite.others[:others]))
    found = by_name(score(case, references_of(suite), ["kid", "prdc"]).scores)
    assert found["kid"].beside == found["coverage"].beside == {"references": 24.0}


def test_a_floor_of_too_few_neighbours_is_none(suite: Suite, evidence: Evidence):
    case = replace(evidence, suite=replace(suite, others=suite.others[:5]))
    found = by_name(score(case, references_of(suite), ["kid", "prdc"]).scores)
    assert found["coverage"].beside == {"references": 24.0}
    assert found["kid"].beside.keys() == {"references", "floor_at_fewer", "value_at_fewer", "floor_images"}


def test_fid_at_infinity_has_a_value_or_the_reason(suite: Suite, drawn: Made, evidence: Evidence):
    found = by_name(score(evidence, drawn, ["fid"]).scores)["fid_infinity"]
    assert (found.estimate, found.better) == (None, "lower")
    assert "it takes 32 pictures of each set (twice the width of the features), found 24" in found.reason
    judges = open_judges(config.Towers(inception=config.Random(kind="random", width=4, seed=0)))
    narrow = gather_for(suite, [drawn], judges, Vectors(None), ["fid"])
    scores = by_name(score(narrow, drawn, ["fid"]).scores)
    value = estimate_of(scores, "fid_infinity")
    sides = [[item.references[0].sha256 for item in suite.items], [each.sha256 for each in drawn.pictures]]
    real_ND, made_ND = (narrow.take("inception", "images", side)[:, :4] for side in sides)
    assert value.value == fid_infinity(real_ND, made_ND)[0]
    assert (value.low, value.note) == (None, "no interval: the line through its sizes has none")


def test_of_several_references_each_counts(several: Suite):
    pictures = tuple(
        replace(each, seed=number, sha256=reference.sha256)
        for each in references_of(several).pictures
        for number, reference in enumerate(each.item.references)
    )
    case = gather_for(several, [], random_judges(), Vectors(None), METRICS)
    found = by_name(score(case, replace(references_of(several), pictures=pictures), METRICS).scores)
    assert found["ais_cosine"].beside["ceiling"] == pytest.approx(estimate_of(found, "ais_cosine").value, abs=1e-12)
    vectors_ND = unit(case.take("clip_b32", "images", (each.sha256 for each in pictures))).reshape(8, 3, -1)
    own = np.einsum("iad,ibd->iab", vectors_ND, vectors_ND).mean()
    assert estimate_of(found, "iis_cosine").value == pytest.approx(own)
    assert (found["iis_cosine"].images, found["iis_cosine"].seeds) == (24, 1)
    assert not any("seed_sd" in one.beside for one in found.values())


def test_items_with_the_same_reference_are_not_in_each_others_pool(suite: Suite, evidence: Evidence):
    """Each picture is the reference of three items of different labels; sounds are all different."""
    items = tuple(replace(item, references=suite.items[n % 8 + 8].references) for n, item in enumerate(suite.items))
    twins = replace(suite, items=tuple(replace(item, labels=(LABELS[n // 3],)) for n, item in enumerate(items)))
    case = replace(evidence, suite=twins)
    found = by_name(score(case, references_of(twins), ["iis_rank", "ais_rank", "iis_cosine"]).scores)
    assert estimate_of(found, "iis_rank").value == 100
    assert not found["iis_rank"].beside.keys() & {"ties", "tie_share"}
    shuffled = by_name(score(case, shuffled_of(twins), ["iis_rank", "iis_cosine"]).scores)
    assert 30 < estimate_of(shuffled, "iis_rank").value < 70
    assert estimate_of(shuffled, "iis_cosine").value < 0.2
    assert 30 < shuffled["iis_rank"].beside["floor"] < 70


def test_ties_are_counted_and_a_share(suite: Suite, evidence: Evidence):
    first = evidence.tables[Need("wav2clip", "sounds")]
    alike = replace(first, vectors_MD=np.repeat(first.vectors_MD[::6], 6, axis=0))
    case = replace(evidence, tables={**evidence.tables, Need("wav2clip", "sounds"): alike})
    beside = by_name(score(case, references_of(suite), ["ais_rank"]).scores)["ais_rank"].beside
    assert (beside["ties"], beside["tie_share"]) == (24 * 4, pytest.approx(4 / 22))


def test_the_floor_of_a_shuffled_control_is_that_of_what_was_shuffled(suite: Suite, evidence: Evidence):
    """Dealt out once more from where they lie, some would come home."""
    right, shuffled = (
        by_name(score(evidence, made, ["iis_cosine", "ais_z"]).scores)
        for made in (references_of(suite), shuffled_of(suite))
    )
    for name in right:
        assert shuffled[name].beside["floor"] == pytest.approx(right[name].beside["floor"], abs=1e-12)


@pytest.mark.parametrize("labels", [("rain",), ()])
def test_where_others_have_no_other_labels_the_floor_is_called_so(
    suite: Suite, evidence: Evidence, labels: tuple[str, ...]
):
    items = tuple(replace(item, labels=labels) for item in suite.items)
    case = replace(evidence, suite=replace(suite, items=items))
    beside = by_name(score(case, references_of(case.suite), ["iis_cosine"]).scores)["iis_cosine"].beside
    assert "floor" not in beside
    assert -1 < beside["floor_recordings"] < 0.9


def test_no_metric_goes_by_the_name_of_anothers_score() -> None:
    names = {mean.name: mean.asked for mean in MEANS} | {name: one.asked for one in DISTANCES for name in one.names}
    assert all(asked == name for name, asked in names.items() if name in METRICS)


def test_a_floor_is_what_the_pictures_get_for_the_sounds_of_others(suite: Suite, evidence: Evidence) -> None:
    found = by_name(score(evidence, references_of(suite), ["iis_cosine", "ais_rank"]).scores)
    assert found["iis_cosine"].beside["floor"] < 0.9
    assert 30 < found["ais_rank"].beside["floor"] < 70


def test_a_model_of_which_nothing_can_be_used_is_refused(suite: Suite, evidence: Evidence) -> None:
    with pytest.raises(InputError, match="no picture of it can be used"):
        score(evidence, replace(references_of(suite), pictures=(), unusable={"a.png": "torn"}), METRICS)


def test_items_have_values_in_the_suites_order(suite: Suite, evidence: Evidence) -> None:
    made = references_of(suite)
    partly = replace(made, pictures=made.pictures[:3])
    items = score(evidence, partly, ["ais_cosine"]).items["ais_cosine"]
    assert np.isnan(items).tolist() == [item.id not in {p.item.id for p in partly.pictures} for item in suite.items]
