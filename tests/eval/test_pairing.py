"""A labelled table against small pools, where every figure is computed by hand, and against real recordings."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.pairing import FIGURES, Asked, ask, classes_of, judge_run, main, read_labelled
from sonify import layout, running
from sonify.captions.ontology import class_ids_by_name
from sonify.config import Config, Listener
from sonify.errors import InputError
from sonify.io.places import stems
from sonify.pool import iter_clips
from sonify.retrieval.candidates import Drawn, SplitPool
from sonify.retrieval.encoders import query_of
from sonify.retrieval.limits import read_calibrations
from sonify.rows import HeardClip, Tag
from sonify.stages.listen import listener_of
from tests.builders import small_config, write_csv, write_photos, write_sounds, write_table

COLUMNS = ("concept", "kind", "accepted", "tolerated", "judges")
SOUNDS = {"a.wav": "dog", "b.wav": "rain", "c.wav": "Cat, Meow", "d.wav": "car_horn"}
ROWS = (
    ("dog", "name", "dog", "", "2"),  # right
    ("Rain", "name", "dog", "", "2"),  # wrong, and not kept
    ("kitten: meowing for its mother", "description", "meow;no such thing", "", "2"),  # right, by one of two labels
    ("frog", "name", "", "", "2"),  # dropped, as it should be
    ("puppy", "name", "", "", "2"),  # answered, and should not be
    ("hound", "name", "", "dog", "1"),  # disputed: counts nowhere
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pool of four recordings, of which some are for validation."""
    root = tmp_path_factory.mktemp("pairing")
    write_photos(root / "photos", {"a.jpg": "a dog"})
    write_sounds(root / "sounds", SOUNDS)
    config = small_config(root, audio={"validation": 0.5})
    running.run(config, stages=["pool", "embeddings"])
    return root / "run"


def table(place: Path, rows: tuple[tuple[str, ...], ...] = ROWS) -> Path:
    return write_csv(place / "concepts.csv", COLUMNS, rows)


def figures(found: dict[str, object]) -> tuple[object, ...]:
    return tuple(found[name] for name in (*FIGURES, "n"))


def test_every_figure_is_that_of_the_hand(run, tmp_path):
    found = judge_run(run, table(tmp_path))
    assert figures(found) == (0.5, pytest.approx(2 / 3, abs=1e-6), 0.5, 5)
    assert figures(found["by_kind"]["description"]) == (1.0, 1.0, None, 1)
    assert figures(found["by_kind"]["name"]) == (pytest.approx(1 / 3, abs=1e-6), 0.5, 0.5, 4)
    of = {row["concept"]: row for row in found["concepts"]}
    assert (of["Rain"]["right"], of["Rain"]["wrong"], of["Rain"]["best"]) == (0.0, 1.0, "rain")
    assert (of["frog"]["dropped"], of["frog"]["reason"], of["frog"]["right"]) == (1.0, "no_match", 0.0)
    assert (of["hound"]["verdict"], of["hound"]["right"]) == ("disputed", 1.0)
    assert of["dog"]["cosine"] > of["dog"]["limit"] > 0
    assert all(row["right"] + row["wrong"] + row["dropped"] == 1 for row in of.values())


def test_candidates_are_of_what_is_answered_and_evenness_of_what_is_drawn(run, tmp_path):
    found = judge_run(run, table(tmp_path))
    assert found["candidates"] == 1.0  # frog has none, and is not in the mean
    assert found["evenness"] == pytest.approx(2**1.5, abs=0.01)  # of four draws two are a, one b, one c
    every_clip = judge_run(run, table(tmp_path), ["retrieval.limit=null", "retrieval.min_cosine=-1"])
    assert every_clip["candidates"] > 1
    nothing = judge_run(run, table(tmp_path, (("frog", "name", "", "", "2"), ("toad", "name", "dog", "", "2"))))
    assert (nothing["candidates"], nothing["evenness"], nothing["kept"]) == (None, None, 0.0)


def test_the_output_has_the_keys_that_scripts_rely_on(run, tmp_path, capsys):
    assert main(["--table", str(table(tmp_path)), "--run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "precision",
        "kept",
        "wrong_answers",
        "candidates",
        "evenness",
        "n",
        "intervals",
        "by_kind",
        "curve",
        "concepts",
        "setting",
    ]
    assert list(found["by_kind"]) == ["name", "description"]
    assert set(found["by_kind"]["name"]) == {*FIGURES, "candidates", "evenness", "n", "intervals"}
    assert found["setting"]["pool"] == {"clips": 4, "recordings": 4, "classes": 6}
    assert found["setting"]["retrieval"]["limit"] == {"risk": 0.05, "calibration": None}
    assert found == judge_run(run, table(tmp_path))  # the resamples are seeded


def test_an_interval_is_around_its_figure_and_of_the_concepts(run, tmp_path):
    found = judge_run(run, table(tmp_path))
    for name in FIGURES:
        low, high = found["intervals"][name]
        assert 0 <= low <= found[name] <= high <= 1
    assert found["intervals"]["precision"][0] < 0.5 < found["intervals"]["precision"][1]
    assert found["by_kind"]["description"]["intervals"] == {"precision": [1, 1], "kept": [1, 1], "wrong_answers": None}


def test_the_curve_ends_where_nothing_is_answered_and_meets_the_setting(run, tmp_path):
    found = judge_run(run, table(tmp_path))
    by_cosine = [point for point in found["curve"] if point["over"] == "cosine"]
    at_risk = {point["at"]: point for point in found["curve"] if point["over"] == "risk"}
    assert [at_risk[0.05][name] for name in FIGURES] == [found[name] for name in FIGURES]
    assert by_cosine[0]["wrong_answers"] == 1.0  # without a limit everything is answered
    strict = judge_run(run, table(tmp_path), ["retrieval.min_cosine=0.99"])["curve"]
    assert [point for point in strict if point["over"] == "cosine"] == by_cosine  # it is of what there is to draw
    kept = [point["kept"] for point in by_cosine]
    assert kept == sorted(kept, reverse=True)


TWO = ("dog barking", "dog howling")
ONE_ROW = (("dog: a dog barks", "description", "dog howling", "", "2"),)


def two_sounds(root: Path) -> Config:
    """A run whose pool has two clips of each of two texts that a dog is near to, at different cosines, and others."""
    write_photos(root / "photos", {"a.jpg": "a dog"})
    write_sounds(root / "sounds", {f"{n}.wav": text for n, text in enumerate((*TWO, *TWO, "rain", "wind"))})
    by_words = {"kind": "text", "matching": "words"}
    config = small_config(root, retrieval={"limit": None, "margin": 0.0, "encoder": by_words})
    running.run(config, stages=["pool", "embeddings"])
    return config


def share_of_draws(asked: Asked, text: str) -> float:
    """How often a clip of that text is drawn for the first concept."""
    retrieval = asked.config.retrieval
    split = SplitPool(asked.pool.clips, asked.encoder, retrieval, 1)
    concept = asked.rows[0].concept
    query = query_of(concept, "description")
    ranking = split.rank([query])[query]
    drawn = [split.draw(concept, ranking, set(), ("n", n)) for n in range(3000)]
    return float(np.mean([isinstance(one, Drawn) and asked.pool.texts[one.clip] == text for one in drawn]))


@pytest.mark.parametrize(
    "overrides",
    [(), ("retrieval.draw=uniform",), ("retrieval.draw=softmax", "retrieval.temperature=0.4")],
)
def test_the_chances_are_those_of_the_draw(tmp_path, overrides):
    config = two_sounds(tmp_path)
    asked = ask(config.run_dir, table(tmp_path, ONE_ROW), overrides)
    (outcome,) = asked.judge(asked.config.retrieval)
    assert outcome.right == pytest.approx(share_of_draws(asked, "dog howling"), abs=0.035)
    assert 0.1 < outcome.right < 0.9
    if "retrieval.draw=softmax" in overrides:
        assert abs(outcome.right - 0.5) > 0.1  # and not those of an even draw


def test_what_was_heard_acts_on_the_chances(tmp_path):
    config = two_sounds(tmp_path)
    rows = list(iter_clips(config.run_dir))
    dog, music = (Tag(name=name, class_id=class_ids_by_name()[name], score=0.9, mean=0.9) for name in ("Dog", "Music"))
    barks, howls = ([row for row in rows if row.text == text] for text in TWO)
    heard = {row.clip: (dog,) for row in rows if row.text in ("rain", "wind")}
    heard |= {barks[0].clip: (dog,), howls[0].clip: (dog, music), howls[1].clip: (dog, music)}  # one broke the listener
    told = [row for row in rows if row.clip in heard]
    kept = [HeardClip(clip=row.clip, sha256=row.sha256, listener="x", tags=heard[row.clip]) for row in told]
    confirm = {"kind": "endpoint", "model": "ear", "url": "http://127.0.0.1:9/v1"}
    overrides = [f"retrieval.confirm={json.dumps(confirm)}", "retrieval.purity={weight: 2.0}"]
    with pytest.raises(InputError, match=r"nobody that retrieval\.confirm names has listened to its pool"):
        judge_run(config.run_dir, table(tmp_path, ONE_ROW), overrides)
    (unit,) = stems(config.run_dir / layout.CLIPS)
    listener = listener_of(config.run_dir, Listener.model_validate(confirm)).id
    write_table(tmp_path / "run" / layout.tags(listener, unit), HeardClip, kept)
    asked = ask(config.run_dir, table(tmp_path, ONE_ROW), overrides)
    (outcome,) = asked.judge(asked.config.retrieval)
    assert sorted(asked.pool.texts) == ["dog barking", "dog howling", "dog howling", "rain", "wind"]
    assert outcome.right == pytest.approx(share_of_draws(asked, "dog howling"), abs=0.035)
    (unweighed,) = asked.judge(asked.config.retrieval.model_copy(update={"purity": None}))
    assert outcome.right < unweighed.right - 0.1


def test_another_setting_is_tried_on_the_same_pool(run, tmp_path):
    strict = judge_run(run, table(tmp_path), ["retrieval.limit=null", "retrieval.min_cosine=1"])
    words = judge_run(run, table(tmp_path), ["retrieval.encoder.matching=words", "retrieval.limit=null"])
    assert strict["wrong_answers"] < 1
    assert (strict["setting"]["encoder"], words["setting"]["encoder"]) == ("kinds-1", "text")  # nobody embedded for it
    assert words["setting"]["retrieval"]["limit"] is None
    with pytest.raises(InputError, match=r"'mix\.lufs=\[-30,-20\]': expected retrieval\.KEY=VALUE"):
        judge_run(run, table(tmp_path), ["mix.lufs=[-30,-20]"])
    with pytest.raises(InputError, match=r"retrieval\.limitt"):
        judge_run(run, table(tmp_path), ["retrieval.limitt=null"])


def test_a_concept_whose_classes_this_pool_lacks_has_no_answer_in_it(run, tmp_path, caplog):
    rows = (("dog", "name", "dog", "", "2"), ("sheep", "name", "sheep", "", "2"), ("ram", "name", "sheep", "rain", "2"))
    found = judge_run(run, table(tmp_path, rows))
    assert [row["verdict"] for row in found["concepts"]] == ["answerable", "unanswerable", "disputed"]
    assert found["setting"]["table"]["lost_their_answer"] == 2
    assert caplog.messages == [f"{tmp_path}/concepts.csv: no clip of the pool is of sheep"]


def test_a_class_that_is_nearly_one_of_the_pool_is_asked_after(run, tmp_path, caplog):
    judge_run(run, table(tmp_path, (("dog", "name", "dog;car hrn", "", "2"),)))
    assert "no clip of the pool is of car hrn (did you mean car horn?)" in caplog.text


@pytest.mark.parametrize("text", ["dog", "Dog", "dog_", " dog ", "Bark;DOG", "Domestic animals, pets, dog"])
def test_labels_of_a_text_are_its_classes(text):
    assert "dog" in classes_of(text)


def test_a_label_with_a_comma_is_a_class():
    assert "chirp, tweet" in classes_of("Chirp, tweet")
    assert classes_of(" , ;") == {", ;"}
    assert classes_of("") == frozenset()


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfconcept,kind,accepted,tolerated\ndog,name,dog;rain,\n",
        b'concept;kind;accepted;tolerated\ndog;name;"dog;rain";\n',
        b"sep=,\nJudges,Tolerated,Accepted,Kind,Concept\n2,,dog; Rain,name,dog\n\n",
        "concept,kind,accepted,tolerated\ndog,name,dog;rain,\n".encode("utf-16"),
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    (row,) = read_labelled(tmp_path / "t.csv")
    assert (row.text, row.kind, row.accepted, row.tolerated) == ("dog", "name", {"dog", "rain"}, frozenset())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "expected concepts, found no row"),
        ((("dog", "noun", "dog", "", "2"),), "row 1: kind: expected name or description, found 'noun'"),
        ((("dog", "nam", "dog", "", "2"),), r"found 'nam'; did you mean name\?"),
        ((("dog", "name", "dog", "", "2"), ("DOG", "name", "", "", "2")), "row 2: 'DOG' stands in row 1 already"),
        ((("a dog", "description", "dog", "", "2"),), "expected `name: description`, of kind description"),
        ((("dog:", "description", "dog", "", "2"),), "expected `name: description`"),
        ((("", "name", "dog", "", "2"),), "row 1: concept: expected a concept, found ''"),
        (
            (("dog", "name", "hund", "", "2"),),
            "none of its 1 classes is the text of a clip in the pool, which holds car",
        ),
        ((("dog", "name", "", "", "2"),), "none of its 0 classes"),
    ],
)
def test_a_table_that_cannot_be_judged_is_one_line(run, tmp_path, capsys, rows, message):
    with pytest.raises(InputError, match=message):
        judge_run(run, table(tmp_path, rows))
    assert main(["--table", str(tmp_path / "concepts.csv"), "--run", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"concept,accepted\ndog,dog\n", "expected the columns concept, kind, accepted, tolerated"),
        (b"", "expected the columns"),
        (b"concept,kind,accepted,tolerated\n\xff\xfe\x80,name,dog,\n", "row 1"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["x" * 2000, "狗在叫", "🐕", "\x1b[31mdog", "dog " * 500])
def test_a_concept_may_be_anything(run, tmp_path, text):
    found = judge_run(run, table(tmp_path, (*ROWS, (text, "name", "", "", "2"))))
    assert found["n"] == 6


def test_a_run_without_a_pool_and_what_is_no_run_are_one_line(tmp_path, capsys):
    write_photos(tmp_path / "photos", {"a.jpg": "a dog"})
    write_sounds(tmp_path / "sounds", SOUNDS)
    config = small_config(tmp_path)
    running.run(config, stages=["concepts"])
    for place, message in ((config.run_dir, "no clip is in its pool"), (tmp_path / "none", "not a run")):
        assert main(["--table", str(table(tmp_path)), "--run", str(place)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") <= 2


def test_a_pool_of_one_class_is_judged(tmp_path):
    write_photos(tmp_path / "photos", {"a.jpg": "a dog"})
    write_sounds(tmp_path / "sounds", {f"{n}.wav": "dog" for n in range(3)})
    config = small_config(tmp_path)
    running.run(config, stages=["pool", "embeddings"])
    found = judge_run(config.run_dir, table(tmp_path))
    assert figures(found)[:2] == (pytest.approx(1 / 2), 0.5)


def test_what_people_read_names_the_faults(run, tmp_path, capsys):
    assert main(["--table", str(table(tmp_path)), "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "5 concepts count, 3 with an answer in the pool and 2 without" in said
    assert "answered wrongly: 2" in said
    assert "puppy -> dog" in said
    assert "0.500" in said


def test_limits_need_more_concepts_than_that(run, tmp_path, capsys):
    assert main(["--table", str(table(tmp_path)), "--run", str(run), "--calibrate"]) == 2
    assert "expected at least 20 concepts with an answer" in capsys.readouterr().err
    assert main(["--table", str(table(tmp_path)), "--run", str(run), "--out", str(tmp_path / "x.json")]) == 2


def test_most_of_what_is_drawn_for_real_concepts_is_right(real_run, test_data):
    found = judge_run(real_run.run_dir, test_data / "concepts_pool.csv")
    table = found["setting"]["table"]
    assert (table["answerable"], table["unanswerable"], table["disputed"], table["lost_their_answer"]) == (
        104,
        93,
        5,
        0,
    )
    assert found["precision"] > 0.9
    assert found["kept"] > 0.85
    assert found["wrong_answers"] < 0.08
    by_words = ["retrieval.encoder.matching=words", "retrieval.limit=null", "retrieval.min_cosine=0.35"]
    words = judge_run(real_run.run_dir, test_data / "concepts_pool.csv", by_words)
    assert [words[name] for name in FIGURES] == pytest.approx(
        [0.789, 0.577, 0.118], abs=0.01
    )  # as before, but for seats among equals


def test_limits_that_were_calibrated_act_in_a_run(real_run, test_data, tmp_path, capsys):
    out = tmp_path / "limits.json"
    command = [
        "--table",
        str(test_data / "concepts_pool.csv"),
        "--run",
        str(real_run.run_dir),
        "--calibrate",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert "cross-fitted" in capsys.readouterr().out
    assert main([*command, "retrieval.encoder.matching=words"]) == 0  # the other stays
    calibrated = read_calibrations(out)
    assert set(calibrated) == {"kinds-1", "text"}
    for calibration in calibrated.values():
        assert calibration.trials == 197
        assert [row.wrong_answers <= row.risk + 0.05 for row in calibration.risks] == [True] * len(calibration.risks)
    found = judge_run(
        real_run.run_dir, test_data / "concepts_pool.csv", [f"retrieval.limit={{risk: 0.05, calibration: {out}}}"]
    )
    assert found["wrong_answers"] <= 0.05
    assert found["setting"]["retrieval"]["limit"]["calibration"] == str(out)
