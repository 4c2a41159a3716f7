import csv
import io
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.errors import WorkError
from sonify.installed import spell
from sonify.io.tables import read_columns
from sonify.report.result import (
    Match,
    describe_refused,
    describe_result,
    iter_rejects,
    print_rejects,
    read_result,
    weakest_in,
    write_rejects,
)
from sonify.report.status import read_status
from sonify.rows import Pair
from sonify.running import run
from sonify.stages.evidence import COLUMNS, LATER, count_evidence
from tests.builders import (
    pair_row,
    sine,
    small_config,
    small_input,
    sounds_in,
    source_row,
    write_photos,
    write_sound,
    write_sounds,
    write_table,
)

SOUNDS = {"a.wav": "dog barking", "b.wav": "rain"}
CAPTIONS = {
    "dog.jpg": "a dog",
    "rain.jpg": "rain on a street",
    "wall.jpg": "a grey wall",
    "sign.jpg": "a dog beside a sign",
    "no caption.jpg": "",
    "damaged.jpg": "a dog",
    "frog.jpg": "a frog",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("result")
    write_photos(root / "photos", CAPTIONS)
    (root / "photos/damaged.jpg").write_bytes((root / "photos/dog.jpg").read_bytes()[:200])
    write_sounds(root / "sounds", SOUNDS)
    write_sound(root / "sounds/silence.wav", sine(level=0))
    config = small_config(root, retrieval={"min_cosine": 0.2}, images={"shard_size": 3})
    run(config)
    return config.run_dir


def test_every_image_has_a_sound_or_a_reason(finished):
    result = read_result(finished)
    assert result.with_sound == 2
    assert result.without == {
        ("concepts/captions", "no_caption"): 1,
        ("concepts/captions", "no_concepts"): 1,
        ("concepts/captions", "unreadable"): 1,
        ("pair", "discarded"): 1,
        ("pair", "no_match"): 1,
    }
    assert result.images == len(CAPTIONS)


def test_what_a_run_says_at_its_end(finished):
    first, second = describe_result(read_result(finished), finished)
    assert first == f"2 of 7 images have a sound: {finished}/shards"
    assert second.startswith("5 have none: 1 no_caption (concepts/captions), 1 no_concepts (concepts/captions), ")
    assert second.endswith(f"each by name: {spell('rejects', finished)}")


def test_a_run_says_what_its_scenes_lack(finished):
    (line,) = describe_refused(read_result(finished))
    assert line == "named in images with a sound, and not heard: 1 concepts, 1 no_match"


def test_every_row_that_left_is_named(finished):
    rejects = list(iter_rejects(finished))
    assert {(reject.name, reject.row.reason) for reject in rejects} == {
        ("folder/silence.wav", "silent"),
        ("no caption.jpg", "no_caption"),
        ("wall.jpg", "no_concepts"),
        ("damaged.jpg", "unreadable"),
        ("sign.jpg", "discarded"),
        ("frog.jpg", "no_match"),
    }
    text = io.StringIO()
    print_rejects(rejects, text)
    lines = text.getvalue().splitlines()
    assert "pair             no_match       frog.jpg [captions]: frog croaking" in lines
    assert lines[-1].startswith("6 rejected: 1 silent, ")


def test_rejects_are_a_table_for_other_programs(finished):
    text = io.StringIO()
    write_rejects(iter_rejects(finished), text)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(rows) == 6
    found = next(row for row in rows if row["reason"] == "discarded")
    assert found == {
        "stage": "pair",
        "extractor": "",
        "unit": "000001",
        "reason": "discarded",
        "key": "sign_2ejpg",
        "name": "sign.jpg",
        "scene": "captions",
        "detail": "sign",
    }


def test_an_image_that_one_extractor_gave_no_scene_left_for_what_that_one_says(tmp_path):
    write_photos(tmp_path / "photos", {"dog.jpg": "a dog", "cat.jpg": "a dog and a cat"})
    write_sounds(tmp_path / "sounds", SOUNDS)
    (tmp_path / "other.csv").write_text("file,caption\ndog.jpg,rain\ncat.jpg,a wall\n")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(tmp_path / "other.csv")}]
    config = small_config(tmp_path, concepts={"extractors": extractors})
    run(config)
    result = read_result(config.run_dir)
    assert (result.with_sound, result.without) == (1, {("concepts/other", "no_concepts"): 1})


def test_an_image_that_another_extractor_filled_in_for_has_a_sound(tmp_path):
    write_photos(tmp_path / "photos", {"dog.jpg": "a dog"})
    write_sounds(tmp_path / "sounds", {"a.wav": "dog", "b.wav": "dog"})
    (tmp_path / "other.csv").write_text("file,caption\ndog.jpg,thunder\n")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(tmp_path / "other.csv")}]
    sections = {"concepts": {"extractors": extractors}, "render": {"scenes": "any"}, "retrieval": {"min_cosine": 0.2}}
    config = small_config(tmp_path, **sections)
    run(config)
    result = read_result(config.run_dir)
    assert (result.with_sound, result.without) == (1, {})


def test_weak_matches_are_counted_and_the_weakest_is_named(tmp_path):
    write_photos(tmp_path / "photos", {"a dog.jpg": "a dog", "a frog.jpg": "a frog"})
    write_sounds(tmp_path / "sounds", SOUNDS)
    config = small_config(tmp_path, retrieval={"limit": None})
    run(config)
    result = read_result(config.run_dir)
    assert (result.sounds, result.weak) == (2, 1)
    assert result.weakest is not None
    assert (result.weakest.concept, result.weakest.image) == ("frog croaking", "a frog.jpg")
    assert result.weakest.cosine < 0.2
    assert "1 of 2 sounds match weakly" in list(describe_result(result, config.run_dir))[-1]


def test_a_match_is_as_weak_as_it_is_above_its_own_limit(tmp_path, finished):
    sources = [source_row("dog", cosine=0.5, limit=0.1), source_row("rain", cosine=0.7, limit=0.66)]
    pairs = [pair_row(f"{n}_2ejpg", sources=(source,)) for n, source in enumerate(sources)]
    write_table(tmp_path / "pairs.parquet", Pair, pairs)
    table = read_columns(tmp_path / "pairs.parquet", ["image", *COLUMNS], LATER)
    weakest = weakest_in(table)
    assert weakest == Match(cosine=0.7, limit=0.66, concept="rain", image="1.jpg")
    result = replace(read_result(finished), evidence=count_evidence([table], by_text=True), weakest=weakest)
    line = list(describe_result(result, finished))[-1]
    assert line == (
        "1 of 2 sounds match weakly (1 within 0.05 of their limit); the weakest, cosine 0.70 (its limit: 0.66), is for"
        " 'rain' in 1.jpg: listen to them, or lower retrieval.limit.risk"
    )


def test_a_name_with_control_characters_does_not_reach_the_terminal(tmp_path):
    write_photos(tmp_path / "photos", {"dog.jpg": "a dog", "\x1b[31mwall\n.jpg": "a wall"}, table=False)
    (tmp_path / "photos/dog.txt").write_text("a dog")
    (tmp_path / "photos/\x1b[31mwall\n.txt").write_text("a wall")
    write_sounds(tmp_path / "sounds", SOUNDS)
    config = small_config(tmp_path)
    run(config)
    for write in (print_rejects, write_rejects):
        text = io.StringIO()
        write(iter_rejects(config.run_dir), text)
        assert "\\x1b[31mwall\\n.jpg" in text.getvalue()
        assert "\x1b" not in text.getvalue()


def test_recordings_of_which_none_can_be_read_are_no_success(tmp_path):
    small_input(tmp_path, photos=2, recordings=0)
    write_sound(tmp_path / "sounds/silence.wav", sine(level=0))
    for _ in range(2):
        with pytest.raises(WorkError, match=r"no recording could be read \(1 silent\); `.*rejects .*/run` names"):
            run(small_config(tmp_path))


def test_tables_without_rows_are_no_success(tmp_path):
    small_input(tmp_path, photos=0, recordings=2)
    (tmp_path / "tables").mkdir()
    empty = pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "tables/000.parquet")
    images = {"kind": "parquet", "path": str(tmp_path / "tables"), "caption_column": "text", "validation": 0}
    with pytest.raises(WorkError, match="nothing is in what was listed"):
        run(small_config(tmp_path, images=images))


def test_images_that_all_changed_are_no_success(tmp_path):
    photos, _ = small_input(tmp_path, photos=3)
    config = small_config(tmp_path)
    run(config, stages=["pool", "embeddings", "concepts", "pair"])
    for photo in photos.glob("*.jpg"):
        photo.write_bytes(photo.read_bytes() + b"\0")
    with pytest.raises(WorkError, match=r"no image could be rendered \(3 changed\)"):
        run(config)


def test_the_status_says_why_a_stage_stopped_until_it_went_well(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {"0.jpg": "a grey wall"})
    config = small_config(tmp_path)
    with pytest.raises(WorkError):
        run(config)
    troubles = {stage.stage: stage.trouble for stage in read_status(config.run_dir).stages}
    assert troubles["concepts/captions"].startswith(
        "concepts/captions: no image has a sounding concept (1 no_concepts)"
    )
    assert troubles["pool"] == ""
    write_photos(tmp_path / "photos", {"0.jpg": "a dog"})
    run(config, redo="concepts")
    assert {stage.trouble for stage in read_status(config.run_dir).stages} == {""}


def test_the_commands_say_what_came_of_a_run(tmp_path):
    write_photos(tmp_path / "photos", CAPTIONS)
    write_sounds(tmp_path / "sounds", SOUNDS)
    (tmp_path / "mine.yaml").write_text(
        f"run_dir: {tmp_path}/run\nimages: {{kind: folder, path: {tmp_path}/photos, validation: 0}}\n"
        f"audio: {{sources: [{{kind: folder, path: {tmp_path}/sounds}}], validation: 0}}\nengine: {{kind: local}}\n"
    )

    def sonify(*words):
        command = [sys.executable, "-m", "sonify", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    ran = sonify("run", "--config", f"{tmp_path}/mine.yaml")
    assert ran.returncode == 0
    assert f"3 of 7 images have a sound: {tmp_path}/run/shards" in ran.stderr
    listed = sonify("rejects", f"{tmp_path}/run")
    assert listed.returncode == 0
    assert "no_caption     no caption.jpg" in listed.stdout
    assert sonify("rejects", f"{tmp_path}/run", "--csv").stdout.startswith("stage,extractor,unit,reason,key,name,")
    assert sonify("rejects", f"{tmp_path}/photos").returncode == 2


def test_sounds_of_a_run_are_named_by_corpus(tmp_path):
    small_input(tmp_path, photos=2, recordings=2)
    (tmp_path / "sounds/cut.wav").write_bytes(b"RIFF")
    config = small_config(tmp_path, audio=sounds_in(tmp_path / "sounds", "field"))
    run(config)
    (reject,) = iter_rejects(config.run_dir)
    assert (reject.stage, reject.name, reject.row.reason) == ("pool", "field/cut.wav", "unreadable")
