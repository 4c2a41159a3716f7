"""Pairs that are drawn from a pool: what may be drawn, the same for each seed, and the study made of them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.figures import Interval
from eval.pairing import classes_of
from eval.semantic_mixing import PairScores, draw_pairs, main, summarise_pairs
from eval.studio import OTHERS
from sonify import layout, running
from sonify.pool import Duplicate
from sonify.rows import Clip
from tests.builders import clip_row, refused, small_config, write_photos, write_sounds, write_table
from tests.tiny_networks import tiny_clip, write_tiny_pixart

LABELS = ("dog", "sea_waves", "Dog, Bark", "rain", "car horn", "waves; Ocean")


def write_pool(run_dir: Path, clips: Sequence[Clip], duplicates: Sequence[Duplicate] = ()) -> Path:
    """The tables of a pool, which is all that is drawn from."""
    write_table(run_dir / layout.clips("000"), Clip, clips)
    if duplicates:
        write_table(run_dir / layout.DUPLICATES, Duplicate, duplicates)
    return run_dir


def recordings(count: int, labels: Sequence[str] = LABELS, clips_each: int = 2, **fields: Any) -> list[Clip]:
    fields = {"split": "validation"} | fields
    return [
        clip_row(f"folder/{n:03d}.flac#{part}", text=labels[n % len(labels)], **fields)
        for n in range(count)
        for part in range(clips_each)
    ]


def drawn_of(run_dir: Path, pairs: int, seed: int = 0, split: str = "validation") -> list[tuple[str, str]]:
    return [(one.clip, other.clip) for one, other in draw_pairs(run_dir, split, pairs, seed, OTHERS)]


def test_pairs_have_no_label_in_common_and_each_recording_is_heard_once(tmp_path: Path) -> None:
    run_dir = write_pool(tmp_path, recordings(60))

    drawn = draw_pairs(run_dir, "validation", 20, 0, OTHERS)

    assert all(classes_of(one.label).isdisjoint(classes_of(other.label)) for one, other in drawn)
    assert max(Counter(excerpt.recording for pair in drawn for excerpt in pair).values()) == 1
    assert {excerpt.label for pair in drawn for excerpt in pair} == {label.replace("_", " ") for label in LABELS}
    assert {excerpt.clip[-1] for pair in drawn for excerpt in pair} == {"0", "1"}  # not always the first excerpt


def test_a_seed_draws_its_own_pairs_and_more_pairs_begin_with_the_same(tmp_path: Path) -> None:
    run_dir = write_pool(tmp_path / "run", recordings(60))
    backwards = write_pool(tmp_path / "backwards", recordings(60)[::-1])

    assert drawn_of(run_dir, 20)[:5] == drawn_of(run_dir, 5) == drawn_of(backwards, 5)
    assert not set(drawn_of(run_dir, 5, seed=1)) & set(drawn_of(run_dir, 5))


def test_only_what_was_not_trained_on_is_drawn(tmp_path: Path) -> None:
    held_out = recordings(10, labels=("dog", "rain"), clips_each=1)
    trained_on = [clip_row(f"more/{n}.flac#0", text=("dog", "rain")[n % 2]) for n in range(8)]
    copies = [
        Duplicate(recording="folder/000.flac", group="folder/000.flac", left_out=True),  # training has a copy
        Duplicate(recording="more/0.flac", group="folder/000.flac", left_out=False),
        Duplicate(recording="folder/004.flac", group="folder/002.flac", left_out=False),  # two names of one recording
        Duplicate(recording="folder/002.flac", group="folder/002.flac", left_out=False),
    ]
    run_dir = write_pool(tmp_path, [*held_out, *trained_on], copies)

    drawn = {clip for pair in drawn_of(run_dir, 3) for clip in pair}

    assert len(drawn) == 6
    assert all(clip.startswith("folder/") for clip in drawn)
    assert "folder/000.flac#0" not in drawn
    assert not {"folder/002.flac#0", "folder/004.flac#0"} <= drawn
    with refused(r"expected 4 pairs of .* of validation .*, found 3 of 8 recordings; ask for fewer --pairs"):
        drawn_of(run_dir, 4)
    assert all(clip.startswith("more/") for pair in drawn_of(run_dir, 4, split="train") for clip in pair)


@pytest.mark.parametrize("label", ["", "  ", "Food", "furniture"])
def test_what_has_no_label_of_its_own_is_not_drawn(tmp_path: Path, label: str) -> None:
    run_dir = write_pool(tmp_path, recordings(8, labels=("dog", label)))
    with refused("found 0 of 4 recordings"):
        drawn_of(run_dir, 2)


def test_as_many_pairs_are_found_as_there_are_of_few_recordings(tmp_path: Path) -> None:
    for seed in range(10):
        run_dir = write_pool(tmp_path / str(seed), recordings(4, labels=("dog", "dog", "cat", "cat")))
        assert len(drawn_of(run_dir, 2, seed)) == 2


def test_a_run_without_a_pool_is_one_line(tmp_path: Path) -> None:
    with refused("found 0 of 0 recordings"):
        drawn_of(tmp_path, 2)


def test_over_the_pairs_a_mixture_is_held_against_the_better_of_its_sounds() -> None:
    def at(mean: float) -> Interval:
        return Interval(mean=mean, low=mean, high=mean)

    def pair(mixed: float, alone: tuple[float, float]) -> PairScores:
        other = (at(0), at(0))
        both_alone = (at(alone[0]), at(alone[1]))
        return PairScores(
            labels=("a", "b"), mixed=other, alone=other, with_other_alone=other, both_mixed=at(mixed),
            both_alone=both_alone,
        )  # fmt: skip

    found = summarise_pairs([pair(0.4, (0.1, 0.3)), pair(0.6, (0.2, 0.1))], seed=0)

    assert found["both_mixed"].mean == pytest.approx(0.5)
    assert found["both_alone"].mean == pytest.approx(0.25)
    assert (found["gain"].mean, found["gain"].low, found["gain"].high) == pytest.approx((0.25, 0.1, 0.4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and a run whose pool is of six recordings, all held out."""
    folder = tmp_path_factory.mktemp("mixing")
    write_tiny_pixart(folder / "model")
    tiny_clip(folder / "clip")
    write_photos(folder / "photos", {"a.jpg": "a dog"})
    write_sounds(folder / "sounds", {f"{n}.wav": label for n, label in enumerate(LABELS)})
    running.run(small_config(folder, audio={"validation": 1.0}), stages=["pool"])
    return folder


def run(folder: Path, out: Path, *arguments: str) -> int:
    models = ["--model", str(folder / "model"), "--scorer", str(folder / "clip"), "--steps", "1", "--seeds", "2"]
    return main([*models, "--out", str(out), *arguments])


def test_the_study_of_a_pool_scores_each_pair_on_its_own_labels(folder: Path, tmp_path: Path) -> None:
    for out in ("once", "again"):
        assert run(folder, tmp_path / out, "--pool", str(folder / "run"), "--pairs", "2") == 0

    assert (tmp_path / "once/semantic_mixing.json").read_bytes() == (
        tmp_path / "again/semantic_mixing.json"
    ).read_bytes()
    assert (tmp_path / "once/semantic_mixing.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "once/semantic_mixing.json").read_text())
    drawn = draw_pairs(folder / "run", "validation", 2, 0, OTHERS)
    assert [item["clips"] for item in result["items"]] == [
        clips for one, other in drawn for clips in ([one.clip], [other.clip], [one.clip, other.clip])
    ]
    assert [pair["labels"] for pair in result["summary"]["pairs"]] == [[one.label, other.label] for one, other in drawn]
    assert all(set(item["scores"]) == {one.label for one in drawn[n // 3]} for n, item in enumerate(result["items"]))
    mixed = np.array([list(result["items"][n]["scores"].values()) for n in (2, 5)])
    assert result["summary"]["over_pairs"]["both_mixed"]["mean"] == pytest.approx(mixed.min(axis=1).mean())
    assert result["settings"]["split"] == "validation"


def test_a_pair_of_the_pool_is_what_its_recordings_are(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "pool", "--pool", str(folder / "run"), "--pairs", "2") == 0
    first, _ = draw_pairs(folder / "run", "validation", 2, 0, OTHERS)
    files = [str(folder / "sounds" / Path(excerpt.recording).name) for excerpt in first]
    labels = [excerpt.label for excerpt in first]
    assert run(folder, tmp_path / "audio", "--audio", *files, "--labels", *labels) == 0

    pool, audio = (json.loads((tmp_path / name / "semantic_mixing.json").read_text()) for name in ("pool", "audio"))
    assert [{key: item[key] for key in ("sounds", "scores")} for item in pool["items"][:3]] == audio["items"]
    assert pool["summary"]["pairs"][0] == audio["summary"]["pairs"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pool", "RUN", "--pairs", "1"), "--pairs: expected at least 2, found 1"),
        (("--pool", "RUN", "--pairs", "4"), "expected 4 pairs of labelled recordings of validation"),
        (("--pool", "RUN", "--pairs", "2", "--split", "train"), "found 0 of 0 recordings; ask for fewer"),
        (("--pool", "RUN", "--labels", "dog", "cat"), "--labels: with --pool, the texts of the clips"),
        (("--pool", "sounds"), "not a run: expected run.json"),
        (("--audio", "sounds/0.wav", "sounds/1.wav", "--pairs", "3"), "--pairs: goes with --pool"),
        (("--audio", "sounds/0.wav", "sounds/1.wav", "--split", "train"), "--split: goes with --pool"),
        (("--audio", "sounds/0.wav", "--pool", "RUN"), "not allowed with argument"),
        (("--pairs", "3"), "one of the arguments --audio --pool is required"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    given = [str(folder / word.replace("RUN", "run")) if word[0] in "Rs" else word for word in arguments]
    try:
        code = run(folder, tmp_path / "out", *given)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.glob("out/*"))


def test_a_pool_of_other_clips_than_the_model_hears_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    write_tiny_pixart(tmp_path / "short", clip_seconds=2.0)
    found = run(folder, tmp_path / "out", "--pool", str(folder / "run"), "--model", str(tmp_path / "short"))
    assert found == 2
    assert "expected clips of 2 s at 16000 Hz, which the model hears, found 5 s at 16000 Hz" in capsys.readouterr().err
