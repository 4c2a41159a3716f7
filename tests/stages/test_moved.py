"""A run, its input or both copied to another place go on; input that is other input is refused."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sonify import layout
from sonify.config import make_config
from sonify.engine.record import StageRecord, require_record, write_record
from sonify.installed import spell_redo
from sonify.io.tables import read_rows
from sonify.report.status import read_status
from sonify.rows import ImageRef
from sonify.running import plan_run, run
from sonify.sources.captions import identify_texts_before
from sonify.stages.table import stages_of
from tests.builders import (
    archives_in,
    hash_run,
    picture,
    refused,
    small_config,
    small_input,
    tone,
    write_sound,
    write_tar,
)
from tests.dataset.folders import copy_of, elsewhere, published_run
from tests.tiny_networks import tiny_clap


def begun(root, **sections):
    """A run over small input below `root`, of which the first stages are done."""
    small_input(root)
    config = small_config(root, **sections)
    run(config, stages=["pool", "concepts"])
    return config


def photos_of(config):
    return Path(str(config.images.path))


def sounds_of(config):
    return Path(str(config.audio.sources[0].path))


def at(config, photos=None, sounds=None, run_dir=None):
    """The configuration with other places, as somebody writes them."""
    raw = config.model_dump(mode="json")
    raw["images"]["path"] = str(photos or config.images.path)
    raw["audio"]["sources"][0]["path"] = str(sounds or config.audio.sources[0].path)
    raw["run_dir"] = str(run_dir or config.run_dir)
    return make_config(raw)


def expected_of(tmp_path):
    """What the whole run gives where nothing is moved."""
    small_input(tmp_path / "straight")
    config = small_config(tmp_path / "straight")
    run(config)
    return hash_run(config.run_dir)


@pytest.mark.parametrize("moved", ["run", "photos", "sounds", "all"])
def test_what_was_moved_goes_on_with_the_same_bytes(tmp_path, moved):
    config = begun(tmp_path / "here")
    names = {"photos": photos_of(config), "sounds": sounds_of(config), "run_dir": Path(str(config.run_dir))}
    chosen = {"run": ["run_dir"], "photos": ["photos"], "sounds": ["sounds"], "all": list(names)}[moved]
    places = {name: shutil.move(names[name], tmp_path / f"there {name}") for name in chosen}
    there = at(config, **places)
    commits = {path: path.stat().st_mtime_ns for path in (Path(str(there.run_dir)) / layout.COMMITS).rglob("*.json")}
    assert [plan.complete for plan in plan_run(there)[:2]] == [True, False]
    counts = run(there)
    assert counts["render"].rows_out == 24
    assert all(path.stat().st_mtime_ns == made for path, made in commits.items())
    assert hash_run(there.run_dir) == expected_of(tmp_path)
    assert require_record(there.run_dir).config["images"]["path"] == str(there.images.path)
    assert all(stage.units_to_do == 0 for stage in read_status(there.run_dir).stages)


def test_a_place_can_be_written_in_many_ways(tmp_path, monkeypatch):
    config = begun(tmp_path)
    photos = photos_of(config)
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (f"{photos}/", f"file://{photos}", "photos", "./photos/", "~/photos", tmp_path / "link"):
        counts = run(at(config, photos=place), stages=["concepts"])
        assert counts["concepts/captions"].rows_out == 24


def test_input_that_lacks_what_was_listed_is_refused_before_anything_is_written(tmp_path):
    config = begun(tmp_path)
    there = shutil.copytree(photos_of(config), tmp_path / "there")
    for name in ("003.jpg", "011.jpg"):
        (there / name).unlink()
    before = (Path(str(config.run_dir)) / layout.RUN).read_bytes()
    with refused(
        f"images.path: it was {config.images.path}, and at {there} 2 of the 24 files .*the first: 003.jpg"
        f".*, or `{re.escape(spell_redo('concepts'))}` for other input"
    ):
        run(at(config, photos=there))
    assert (Path(str(config.run_dir)) / layout.RUN).read_bytes() == before
    assert run(config)["render"].rows_out == 24
    assert run(at(config, photos=there), redo="concepts")["render"].rows_out == 22
    units = sorted((Path(str(config.run_dir)) / layout.UNITS / "concepts").glob("*.parquet"))
    assert [len(list(read_rows(path, ImageRef))) for path in units] == [8, 8, 6]  # other images are another listing


def test_recordings_that_are_not_there_are_refused(tmp_path):
    config = begun(tmp_path)
    there = shutil.copytree(sounds_of(config), tmp_path / "there")
    (there / "005.flac").unlink()
    with refused(
        r"audio.sources.0.path: it was .*, and at .* 1 of the 16 files .*the first: 005.flac.*run .*--redo pool`"
    ):
        run(at(config, sounds=there))
    assert run(at(config, sounds=there), redo="pool")["pool"].rows_out == 15


def test_of_several_collections_one_may_be_moved(tmp_path):
    small_input(tmp_path)
    shutil.copytree(tmp_path / "sounds", tmp_path / "second")
    sources = [{"kind": "folder", "path": str(tmp_path / name), "name": name} for name in ("sounds", "second")]
    run(small_config(tmp_path, audio={"sources": sources, "validation": 0}), stages=["pool"])
    os.rename(tmp_path / "second", tmp_path / "there")
    (tmp_path / "sounds" / "003.flac").unlink()  # which says nothing of the other
    moved = [sources[0], sources[1] | {"path": str(tmp_path / "there")}]
    run(small_config(tmp_path, audio={"sources": moved, "validation": 0}), stages=["pool"])
    os.rename(tmp_path / "there" / "001.flac", tmp_path / "there" / "101.flac")
    os.rename(tmp_path / "there", tmp_path / "again")
    moved = [sources[0], sources[1] | {"path": str(tmp_path / "again")}]
    with refused(r"audio.sources.1.path: it was .*there, and at .*again 1 of the 16 files"):
        run(small_config(tmp_path, audio={"sources": moved, "validation": 0}), stages=["pool"])


def test_other_pictures_under_the_same_names_are_refused(tmp_path):
    config = begun(tmp_path)
    there = shutil.copytree(photos_of(config), tmp_path / "there")
    for n in range(24):
        (there / f"{n:03d}.jpg").write_bytes(picture(n, size=(24, 16)))
    with refused("images.path: it was .* is another picture than the one that this run has of it.*--redo concepts"):
        run(at(config, photos=there))
    assert run(at(config, photos=there), redo="concepts")["render"].rows_out == 24


def test_other_recordings_under_the_same_names_are_refused_and_another_encoding_of_samples_is_not(tmp_path):
    config = begun(tmp_path)
    there = shutil.copytree(sounds_of(config), tmp_path / "there")
    write_sound(there / "000.flac", tone(0), subtype="PCM_24")
    run(at(config, sounds=there), stages=["pool"])
    other = shutil.copytree(there, tmp_path / "other")
    write_sound(other / "000.flac", tone(99))
    with refused("audio.sources.0.path: it was .* 000.flac is another recording than the one that this run has of it"):
        run(at(config, sounds=other))


def test_archives_that_were_moved_go_on_and_other_archives_are_refused(tmp_path):
    small_input(tmp_path, photos=0)

    def archives(folder, first):
        for n in range(2):
            write_tar(folder / f"{n}.tar", {"a.jpg": picture(first + n), "a.txt": b"a dog"})
        return folder

    config = small_config(tmp_path, images=archives_in(archives(tmp_path / "here", 0)))
    run(config, stages=["pool", "concepts"])
    there = shutil.move(photos_of(config), tmp_path / "there")
    assert run(at(config, photos=there))["render"].rows_out == 2
    with refused(r"images.path: it was .*there, and at .*other 0.tar/a.jpg is another picture"):
        run(at(config, photos=archives(tmp_path / "other", 5)))


def test_answers_of_other_images_are_not_taken_over(tmp_path):
    first = begun(tmp_path)
    other = shutil.copytree(photos_of(first), tmp_path / "other")
    (other / "000.jpg").unlink()
    with refused("images.path: it was .* 1 of the 24 files"):
        run(at(first, photos=other, run_dir=tmp_path / "second"), concepts_from=first.run_dir)
    there = shutil.copytree(photos_of(first), tmp_path / "there")
    run(at(first, photos=there, run_dir=tmp_path / "third"), concepts_from=first.run_dir)


def test_a_published_folder_and_the_images_for_it_can_be_moved(tmp_path):
    first = published_run(tmp_path / "first")
    here = copy_of(first, tmp_path / "here")
    (here / "photos" / "004.jpg").unlink()  # not all that was published is here
    config = elsewhere(here, missing="skip")
    run(config, stages=["pool", "concepts"])
    there = copy_of(here, tmp_path / "there")
    again = elsewhere(there, missing="skip").model_copy(update={"run_dir": config.run_dir})
    shutil.rmtree(here / "photos")
    shutil.rmtree(here / "published")
    assert run(again)["render"].rows_out == 38
    gone = shutil.copytree(there / "photos", tmp_path / "gone")
    (gone / "007.jpg").unlink()
    with refused("images.path: it was .* 1 of the 19 files that this run has of it .*007.jpg"):
        run(again.model_copy(update={"images": again.images.model_copy(update={"path": gone})}))


def test_a_model_is_known_by_its_files_wherever_its_folder_is(tmp_path):
    pytest.importorskip("transformers")
    folder = tiny_clap(tmp_path / "models" / "clap")
    encoder = {"kind": "clap", "model": str(folder), "device": "cpu"}
    config = begun(tmp_path, retrieval={"encoder": encoder, "min_cosine": -1})
    run(config, stages=["pool", "embeddings"])
    made = hash_run(config.run_dir)
    os.rename(tmp_path / "models", tmp_path / "weights")
    moved = encoder | {"model": str(tmp_path / "weights" / "clap")}
    there = small_config(tmp_path, retrieval={"encoder": moved, "min_cosine": -1})
    assert run(there)["render"].rows_out == 24
    assert made.items() <= hash_run(config.run_dir).items()
    assert all(stage.units_to_do == 0 for stage in read_status(there.run_dir).stages)
    os.rename(tmp_path / "weights", tmp_path / "models")
    run(config)  # which is done: that it is the same model is noted all the same
    os.rename(tmp_path / "models", tmp_path / "third")
    third = small_config(
        tmp_path, retrieval={"encoder": encoder | {"model": str(tmp_path / "third" / "clap")}, "min_cosine": -1}
    )
    run(third)
    assert str(tmp_path / "third" / "clap") in require_record(third.run_dir).models
    os.rename(tmp_path / "third", tmp_path / "weights")
    other = tiny_clap(tmp_path / "other", sentences=("another", "model"))
    another = small_config(tmp_path, retrieval={"encoder": encoder | {"model": str(other)}, "min_cosine": -1})
    with refused("made under another configuration: retrieval.encoder"):
        run(another)
    run(another, redo="embeddings")
    with refused("made under another configuration: retrieval.encoder"):  # also of a folder that is known
        run(there)


def with_texts(root, folder):
    texts = root / folder
    texts.mkdir()
    for n in range(24):
        (texts / f"{n:03d}.txt").write_text("a dog")
    return {"extractors": [{"kind": "captions", "file": str(texts)}]}


def test_a_folder_of_texts_is_no_other_where_it_was_moved(tmp_path):
    config = begun(tmp_path, concepts=with_texts(tmp_path, "texts"))
    shutil.rmtree(tmp_path / "texts")
    there = small_config(tmp_path, concepts=with_texts(tmp_path, "there"))
    assert run(there)["render"].rows_out == 24
    assert config.run_dir == there.run_dir


def test_a_folder_of_texts_that_an_earlier_version_knew_by_its_place_is_known_again(tmp_path):
    config = begun(tmp_path, concepts=with_texts(tmp_path, "texts"))
    record = require_record(config.run_dir)
    before = record.stages["concepts/captions"]
    texts = identify_texts_before(str(tmp_path / "texts"))
    settings = {**before.settings, "concepts.extractors.file": texts, "images.path": str(config.images.path)}
    stage = StageRecord(digest="", version=before.version, settings=settings)
    table = next(stage for stage in stages_of(config) if stage.key == "concepts/captions")
    digest = replace(table, settings=settings).digest
    write_record(config.run_dir, replace(record, stages={**record.stages, table.key: replace(stage, digest=digest)}))
    there = small_config(tmp_path, concepts=with_texts(tmp_path, "there"))
    assert next(stage for stage in stages_of(there) if stage.key == table.key).digest == digest
    other = {"extractors": [{"kind": "captions", "file": str(tmp_path / "photos" / "captions.csv")}]}
    assert next(s for s in stages_of(small_config(tmp_path, concepts=other)) if s.key == table.key).digest != digest


def test_a_folder_of_texts_is_not_what_a_table_was(tmp_path):
    table = {"extractors": [{"kind": "captions", "file": str(tmp_path / "photos" / "captions.csv")}]}
    begun(tmp_path, concepts=table)
    with refused("configuration: concepts.extractors.file has another content now than then"):
        run(small_config(tmp_path, concepts=with_texts(tmp_path, "texts")))


def test_a_list_that_is_gone_is_not_what_no_list_was(tmp_path):
    config = begun(tmp_path)
    raw = config.model_dump(mode="json")
    raw["audio"]["exclude"] = str(tmp_path / "gone.txt")
    pools = [next(iter(stages_of(of))) for of in (config, make_config(raw, check_paths=False))]
    assert pools[0].digest != pools[1].digest


def test_who_only_looks_at_a_run_needs_nothing_that_it_was_made_from(tmp_path):
    (tmp_path / "exclude.txt").write_text("000.jpg")
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{n:03d}.jpg,a dog\n" for n in range(24)))
    exclude = {"exclude": str(tmp_path / "exclude.txt")}
    extractors = {"extractors": [{"kind": "captions", "file": str(tmp_path / "captions.csv")}]}
    config = begun(tmp_path, images=exclude, audio=exclude, concepts=extractors)
    run(config)
    there = shutil.copytree(str(config.run_dir), tmp_path / "copy" / "run")
    for name in ("photos", "sounds"):
        shutil.rmtree(tmp_path / name)
    for name in ("exclude.txt", "captions.csv"):
        (tmp_path / name).unlink()
    assert [(stage.units_to_do, stage.units_done > 0) for stage in read_status(there).stages] == [(0, True)] * 5
