"""What a renderer may say, and what the published folder decides."""

import json

import pytest

from sonify.dataset.render_from import adopt_settings
from sonify.errors import InputError
from sonify.running import run
from tests.builders import write_tar
from tests.dataset.folders import elsewhere, mixes, seal, shard_hashes


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"seed": 4}, "seed"),
        ({"mix": {"peak_dbfs": -3.0}}, "mix.peak_dbfs"),
        ({"mix": {"lufs": [-32.0, -28.0]}}, "mix.lufs"),
        ({"render": {"scenes": "any"}}, "render.scenes"),
        ({"retrieval": {"encoder": {"kind": "hybrid"}}}, "retrieval.encoder"),
        ({"retrieval": {"top_k": 7}}, "retrieval.top_k"),
    ],
)
def test_a_key_that_says_something_else_than_the_folder_is_refused_by_name(copy, sections, key):
    with pytest.raises(InputError, match=rf"^{key}: the published dataset was made with"):
        adopt_settings(elsewhere(copy, **sections))


def test_the_folder_decides_what_is_not_set(copy):
    config = adopt_settings(elsewhere(copy))
    assert (config.seed, config.mix.lufs, config.retrieval.draws) == (3, (-30.0, -26.0), 2)
    assert config.scenes == ("captions-0", "captions-1")
    assert adopt_settings(config) == config
    same = elsewhere(copy, seed=3, mix={"lufs": [-30.0, -26.0]})
    assert adopt_settings(same) == config


def test_the_size_of_images_is_the_renderers_and_the_encoder_where_it_draws_again(first, copy):
    config = elsewhere(copy, render={"image": 16})
    assert adopt_settings(config).render.image == 16
    run(config)
    assert mixes(copy / "run") == mixes(first / "run")
    assert shard_hashes(copy / "run") != shard_hashes(first / "run")
    hybrid = elsewhere(copy, "repair", retrieval={"encoder": {"kind": "hybrid"}})
    assert adopt_settings(hybrid).retrieval.encoder.kind == "hybrid"
    assert adopt_settings(hybrid).retrieval.draws == 2


def test_images_of_another_kind_are_refused(copy):
    write_tar(copy / "tars" / "0.tar", {"a.jpg": b""})
    with pytest.raises(InputError, match=r"images\.kind"):
        adopt_settings(elsewhere(copy, images={"kind": "webdataset", "path": str(copy / "tars")}))


def edit_record(folder, change):
    record = json.loads((folder / "sonify.json").read_text())
    change(record)
    (folder / "sonify.json").write_text(json.dumps(record))
    seal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=2), "format 2"),
        (lambda record: record.update(format=True), "format True"),
        (lambda record: record.update(scenes=["captions\n"]), "not the record"),
        (lambda record: record["config"]["images"].update(kind=["folder"]), r"images\.kind is no text"),
        (lambda record: record["config"]["images"].update(kind={}), r"images\.kind is no text"),
        (lambda record: record["config"].update(mix=None), "mix"),
        (lambda record: record["config"].update(audio=[]), r"audio\.clip_seconds is missing"),
        (lambda record: record.update(scenes=["../x"]), "not the record"),
        (lambda record: record.update(scenes=[]), "not the record"),
        (lambda record: record.pop("config"), "not the record"),
        (lambda record: record["config"].pop("concepts"), "not the record"),
        (lambda record: record["config"].pop("mix"), "mix is missing"),
        (lambda record: record["config"]["mix"].update(loud=True), r"mix\.loud: no such key"),
        (lambda record: record["config"].update(seed="x"), "seed"),
        (lambda record: record["config"]["mix"].update(lufs=[3.0, 4.0]), "lufs must be"),
    ],
)
def test_a_record_of_another_form_is_refused_in_one_line(copy, change, message):
    edit_record(copy / "published", change)
    with pytest.raises(InputError, match=message) as caught:
        adopt_settings(elsewhere(copy))
    assert "\n" not in str(caught.value)


def test_a_record_names_no_file_that_is_opened_here(copy):
    encoder = {"kind": "laion_clap", "checkpoint": "/etc/passwd"}
    edit_record(copy / "published", lambda record: record["config"]["retrieval"].update(encoder=encoder))
    with pytest.raises(InputError, match="names the file '/etc/passwd'"):
        adopt_settings(elsewhere(copy, "repair"))


def test_a_record_that_says_no_encoder_is_refused_where_clips_are_drawn_again(copy):
    edit_record(copy / "published", lambda record: record["config"]["retrieval"].pop("encoder"))
    with pytest.raises(InputError, match=r"retrieval\.encoder is missing"):
        adopt_settings(elsewhere(copy, "repair"))
