"""`configs/sonify/sam.yaml` does what the paper says: each rule of ours is at the value that leaves it out.

What the file says is read from it, and what that does is tried, and beside it what our own defaults do.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sonify import layout
from sonify.config import Audio, Config, Features, FolderSounds, Mix, Retrieval, make_config
from sonify.engine.job import StoredReject
from sonify.media.mixing import FULL_SCALE, gain_to_target_db, mix_clips
from sonify.report.status import pairs_of_run
from sonify.retrieval.candidates import Drawn, Missed, PoolClips, SplitPool
from sonify.retrieval.encoders import JointEncoder, Part
from sonify.retrieval.kinds import Query
from sonify.rows import Clip, Concept, Reason, Rejected
from sonify.running import run
from sonify.sources.sounds import list_sounds
from sonify.stages.make_pool import PoolStage, Recording
from sonify.stages.pair import Heard, ImageScenes, PairStage
from tests.builders import (
    concepts_row,
    noise,
    small_config,
    small_input,
    sound_row,
    stored,
    tone,
    write_csv,
    write_sound,
)

SAM = Path(__file__).parents[1] / "configs" / "sonify" / "sam.yaml"
RATE_HZ = 16_000
DOG = Concept(concept="dog", description="a dog barks")


@pytest.fixture(scope="module")
def sam() -> Config:
    raw = yaml.safe_load(SAM.read_text())
    raw["features"] |= {"vae": "a/vae", "ast": "an/ast"}
    return make_config(raw, check_paths=False)


# The pool


def cut(audio: Audio, folder: Path, samples: np.ndarray) -> Recording:
    """The clips that the pool makes of one recording under some settings."""
    result = heard_by_pool(audio, folder, samples)
    assert isinstance(result, Recording), result
    return result


def heard_by_pool(audio: Audio, folder: Path, samples: np.ndarray) -> Recording | Rejected:
    write_sound(folder / "a.wav", samples, RATE_HZ)
    source = FolderSounds(kind="folder", path=folder, name="folder")
    (result,) = PoolStage(audio.model_copy(update={"sources": (source,)}), seed=0)([sound_row("a.wav")])
    return result


def ours(sam: Config) -> Audio:
    return Audio(sources=sam.audio.sources)


@pytest.mark.parametrize("tail_sec", [0.3, 0.9])
def test_a_tail_is_a_clip_however_short(sam, tmp_path, tail_sec):
    samples = tone(1, 5 + tail_sec)
    _, (clip, stored_samples) = cut(sam.audio, tmp_path, samples).clips
    assert clip.duration_sec == pytest.approx(tail_sec, abs=1e-4)
    assert len(stored_samples) == 5 * RATE_HZ
    assert not stored_samples[round(tail_sec * RATE_HZ) :].any()
    assert len(cut(ours(sam), tmp_path, samples).clips) == 1


@pytest.mark.parametrize("extra", [1, 2, 160, 6399])
def test_a_tail_below_a_block_of_the_measure_is_counted_and_never_breaks_the_run(sam, tmp_path, extra):
    quiet = cut(sam.audio, tmp_path, np.append(tone(1, 5.0), np.full(extra, 1e-4, np.float32)))
    assert [(row.key, row.reason) for row in quiet.rejected] == [("folder/a.wav#1", Reason.SILENT)]
    loud = cut(sam.audio, tmp_path, np.append(tone(1, 5.0), noise(2, extra, level=0.5)))
    assert len(loud.clips) + len(loud.rejected) == 2
    assert len(loud.clips) == 2 or extra < 160


def test_dc_stays(sam, tmp_path):
    samples = tone(1, 5.0) * 0.1 + np.float32(0.25)
    ((_, kept),) = cut(sam.audio, tmp_path, samples).clips
    ((_, removed),) = cut(ours(sam), tmp_path, samples).clips
    assert kept.mean() / FULL_SCALE == pytest.approx(0.25, abs=0.01)
    assert removed.mean() / FULL_SCALE == pytest.approx(0, abs=0.001)


def test_channels_in_opposite_phase_are_summed_to_silence(sam, tmp_path):
    one = tone(1, 5.0)
    both = np.stack([one, -one], axis=1)
    left = heard_by_pool(sam.audio, tmp_path, both)
    assert isinstance(left, Rejected)
    assert left.reason == Reason.SILENT
    assert len(cut(ours(sam), tmp_path, both).clips) == 1
    ((_, mean),) = cut(sam.audio, tmp_path, np.stack([one, np.zeros_like(one)], axis=1)).clips
    assert np.abs(mean).max() / FULL_SCALE == pytest.approx(np.abs(one).max() / 2, abs=0.01)


def test_both_parts_of_fsd50k_are_in_the_pool_and_all_of_it_is_for_training(sam, tmp_path):
    (fsd50k,) = (source for source in sam.audio.sources if source.kind == "fsd50k")
    for folder in ("ground_truth", "metadata"):
        (tmp_path / f"FSD50K.{folder}").mkdir()
    for part in ("dev", "eval"):
        write_sound(tmp_path / f"FSD50K.{part}_audio" / f"{len(part)}.wav", tone(1, 1.0))
        write_csv(tmp_path / "FSD50K.ground_truth" / f"{part}.csv", ("fname", "labels"), [(f"{len(part)}", "Bark,Dog")])
        said = {f"{len(part)}": {"license": "CC0", "uploader": "somebody"}}
        (tmp_path / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json").write_text(json.dumps(said))
    here = sam.audio.model_copy(update={"sources": (fsd50k.model_copy(update={"path": tmp_path}),)})
    assert sorted(Path(ref.file).name for ref in list_sounds(here)) == ["3.wav", "4.wav"]
    assert (sam.audio.validation, sam.images.validation) == (0, 0)


# The draw


class OneText:
    """An encoder to which every text is the first axis."""

    dimension = 64

    def __call__(self, texts):
        rows = np.zeros((len(texts), self.dimension), np.float32)
        rows[:, 0] = 1
        return rows


def pool_of(retrieval: Retrieval, cosines, recordings=None) -> SplitPool:
    """A split whose clips have these cosines with every text, no two of them equal."""
    aside = np.random.default_rng(0).standard_normal((len(cosines), OneText.dimension)).astype(np.float32)
    aside[:, 0] = 0
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    cosines = np.array(cosines, np.float32)[:, None]
    embeddings = aside * np.sqrt(np.maximum(1 - cosines**2, 0))
    embeddings[:, :1] = cosines
    clips = PoolClips(
        clips=[f"clip{n}" for n in range(len(cosines))],
        recordings=np.arange(len(cosines)) if recordings is None else np.array(recordings),
        loudness_lufs=np.full(len(cosines), -30.0),
        embeddings=embeddings,
    )
    return SplitPool(clips, JointEncoder([Part(id="a", model="a", share=1.0, encoder=OneText())]), retrieval, 1)


def draw(pool: SplitPool, used: set[int], *key: str) -> Drawn | Missed:
    query = Query(name="dog", text="a dog barks", described=True)
    return pool.draw(DOG, pool.rank([query])[query], used, (0, *key))


def test_a_small_pool_is_looked_at_as_far_as_k_goes(sam):
    cosines = np.linspace(0.5, 0.1, 150)
    for size, expected in ((20, 20), (100, 100), (150, 100)):
        drawn = draw(pool_of(sam.retrieval, cosines[:size]), set(), "a")
        assert isinstance(drawn, Drawn)
        assert drawn.threshold == pytest.approx(np.sqrt(cosines[:expected]).mean(), abs=1e-4)
    eight = draw(pool_of(Retrieval(), cosines[:100]), set(), "a")
    assert isinstance(eight, Drawn)
    assert eight.threshold == pytest.approx(np.sqrt(cosines[:8]).mean(), abs=1e-4)


def test_all_clips_of_one_long_recording_are_candidates(sam):
    cosines = [0.5] * 54 + [0.01] * 46
    recordings = [0] * 54 + list(range(1, 47))
    drawn, capped = (
        draw(pool_of(r, cosines, recordings), set(), "a") for r in (sam.retrieval, Retrieval(top_k_share=None))
    )
    assert isinstance(drawn, Drawn)
    assert isinstance(capped, Drawn)
    assert (drawn.num_candidates, capped.num_candidates) == (54, 3)


def test_candidates_need_not_be_near_the_best(sam):
    cosines = [0.9, 0.6, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1]
    found = [draw(pool_of(r, cosines), set(), "a") for r in (sam.retrieval, Retrieval())]
    assert [one.num_candidates for one in found if isinstance(one, Drawn)] == [4, 1]


def test_a_recording_is_heard_again_in_a_scene(sam):
    used: set[int] = set()
    pool = pool_of(sam.retrieval, [0.5])
    assert all(isinstance(draw(pool, used, str(n)), Drawn) for n in range(2))
    used, alone = set(), pool_of(Retrieval(), [0.5])
    assert isinstance(draw(alone, used, "0"), Drawn)
    missed = draw(alone, used, "1")
    assert isinstance(missed, Missed)
    assert missed.reason == Reason.SAME_SOURCE


@pytest.mark.parametrize("cosine", [0.001, -0.3, -1.0, -1.0000002])
def test_the_best_clip_is_drawn_however_unlike_it_is(sam, cosine):
    drawn = draw(pool_of(sam.retrieval, [cosine]), set(), "a")
    assert isinstance(drawn, Drawn)
    assert drawn.cosine == pytest.approx(cosine, abs=1e-5)
    assert isinstance(draw(pool_of(Retrieval(), [cosine]), set(), "a"), Drawn) == (cosine > 0)


def test_two_names_of_one_sound_are_two_sources_and_one_clip_may_be_both(sam, tmp_path):
    small_input(tmp_path, photos=1, recordings=1)
    write_csv(
        tmp_path / "photos" / "captions.csv",
        ("file", "caption"),
        [("000.jpg", "a dog, a growling hound, a howling wolf and a puppy")],
    )
    rules = sam.retrieval.model_dump(mode="json", exclude={"encoder", "search"})
    words = {"encoder": {"kind": "text", "matching": "words"}}
    config = small_config(tmp_path, retrieval=rules | words, mix=sam.mix.model_dump(mode="json"))
    run(config)
    (pair,) = pairs_of_run(config.run_dir)
    assert len(pair.sources) > 1
    assert len({source.clip for source in pair.sources}) == 1
    assert pair.refused == ()


def test_clap_hears_the_clip_of_the_pool(sam):
    assert (sam.retrieval.hears, Retrieval().hears) == ("clip", "recording")  # tests/stages/test_embeddings.py


# Of these sections what is no rule: inputs, and what only says where and how hard is worked.
NO_RULES = {
    "audio": {"sources", "exclude"},
    "concepts": {"extractors", "checker", "media"},  # the last two only with `check`
    "retrieval": {"encoder", "search", "temperature"},  # the last only with `draw: softmax`
    "mix": set(),
    "render": {"audio"},
}


@pytest.mark.parametrize("section", NO_RULES)
def test_every_rule_that_there_is_stands_in_the_file_and_in_the_docs(sam, section):
    """A key that comes new must be set to the paper here, and find its statement in docs/paper.md."""
    rules = type(getattr(sam, section)).model_fields.keys() - NO_RULES[section]
    assert yaml.safe_load(SAM.read_text())[section].keys() >= rules
    told = (SAM.parents[2] / "docs" / "paper.md").read_text()
    assert [name for name in sorted(rules) if f"{name}`" not in told] == []


def test_nothing_else_of_ours_acts_on_the_draw(sam):
    rules = sam.retrieval
    assert (rules.limit, rules.confirm, rules.purity, rules.hubness, rules.draws) == (None, None, None, "none", 1)
    assert (sam.audio.speech, sam.audio.duplicates, sam.concepts.check) == ("keep", "keep", False)
    assert (sam.mix.prominence, sam.mix.snr_db, sam.mix.events) == (None, None, None)


# The image


def refusals(config: Config, **captions: str) -> Rejected | None:
    """Why an image leaves that the extractors captioned so."""
    heard = {name: Heard(concepts=concepts_row(caption=caption), check=None) for name, caption in captions.items()}
    (result,) = PairStage(config, {})([ImageScenes(key="000_2ejpg", by_extractor=heard)])
    return result if isinstance(result, Rejected) and result.reason == Reason.DISCARDED else None


def test_a_word_that_holds_a_discard_word_discards_in_the_caption_of_one_model_alone(sam):
    concepts = sam.concepts.model_copy(update={"extractors": sam.concepts.extractors})
    config = sam.model_copy(update={"concepts": concepts})
    hit = refusals(config, llava="a chair of fine design", cogvlm="a chair")
    assert hit is not None
    assert hit.detail == "sign"
    both = {"llava": "a chair", "cogvlm": "a chair of fine design, and a logo"}
    everyone = sam.concepts.model_copy(update={"discard_caption": None})
    with pytest.raises(KeyError):  # it stays, and there is no pool here to draw from
        refusals(config, **both)
    assert refusals(config.model_copy(update={"concepts": everyone}), **both) is not None


# The mix


def test_the_quietest_clip_gets_its_whole_gain(sam):
    low, high = sam.mix.lufs
    assert gain_to_target_db(-70.0, low, sam.mix.max_gain_db) == 70.0 + low
    assert gain_to_target_db(-70.0, high, Mix().max_gain_db) == 30.0


def test_a_mix_beyond_full_scale_is_cut_off_and_not_lowered(sam):
    clip = np.array([20_000, -20_000, 100], np.int16)
    mix = mix_clips([clip, clip], [0.0, 0.0], sam.mix.peak_dbfs)
    assert mix.samples.tolist() == [32_767, -32_768, 200]
    assert (mix.mix_gain_db, mix.peak_dbfs) == (0.0, 0.0)
    limited = mix_clips([clip, clip], [0.0, 0.0], Mix().peak_dbfs)
    assert limited.mix_gain_db < 0
    assert limited.samples[2] < 200


# What training reads


def test_the_deviation_of_the_posterior_is_in_the_features(sam):
    assert sam.features is not None
    assert (sam.features.std, Features().std) == (True, False)  # its file: tests/stages/test_features.py


def test_a_run_of_such_rules_is_whole(sam, tmp_path):
    """A mix that is cut off, a tail and a repeated recording go through every stage that a run has."""
    small_input(tmp_path, photos=4, recordings=8)
    write_sound(tmp_path / "sounds" / "tail.wav", tone(30, 5.2))
    rules = sam.retrieval.model_dump(mode="json", exclude={"encoder", "search", "hears"})
    cutting = {name: getattr(sam.audio, name) for name in ("min_tail_sec", "remove_dc", "downmix")}
    loud = sam.mix.model_dump(mode="json") | {"lufs": [-3.0, 0.0]}
    config = small_config(tmp_path, retrieval=rules, mix=loud, audio=cutting)
    done = run(config)
    assert done["render"].rows_out == 4
    clips = {clip.clip: clip.duration_sec for clip in stored(config.run_dir / layout.CLIPS, Clip)}
    rejects = [row.key for row in stored(config.run_dir / layout.REJECTS / "pool", StoredReject)]
    assert "folder/tail.wav#1" in {*clips, *rejects}
    assert all(pair.sources[0].gain_db > -10 for pair in pairs_of_run(config.run_dir))
