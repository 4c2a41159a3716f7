"""What a renderer may say, and what the published folder decides."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files

import pytest

from sonify.config.models import Listener, Purity, Tagger
from sonify.config.sections import Limit
from sonify.dataset.render_from import adopt_settings, open_published, read_declaration
from sonify.dataset.write import publish
from sonify.engine.record import require_record, write_record
from sonify.errors import InputError
from sonify.running import run
from tests.builders import refused, small_config, small_input, write_tar
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
        ({"retrieval": {"top_k_share": None}}, "retrieval.top_k_share"),
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


@pytest.mark.parametrize("changed", [{"remove_dc": False}, {"min_tail_sec": 0}, {"downmix": "mean"}])
def test_recordings_are_cut_as_they_were_for_what_is_published(copy, changed):
    (key,) = changed
    sources = [{"kind": "folder", "path": str(copy / "sounds")}]
    with pytest.raises(InputError, match=rf"^audio\.{key}: the published dataset was made with"):
        adopt_settings(elsewhere(copy, audio={"sources": sources, **changed}))


def test_a_folder_of_before_is_rendered_by_the_rules_of_then(copy):
    later = ("min_tail_sec", "remove_dc", "downmix"), ("hears", "search", "top_k_share", "clips_per_recording")

    def forget(record):
        for section, keys in zip(("audio", "retrieval"), later, strict=True):
            for key in keys:
                del record["config"][section][key]

    before = adopt_settings(elsewhere(copy))
    edit_record(copy / "published", forget)
    now = adopt_settings(elsewhere(copy, retrieval={"clips_per_recording": 3}))
    assert (now.retrieval, now.audio) == (before.retrieval, before.audio)
    with pytest.raises(InputError, match=r"retrieval\.top_k_share: the published dataset was made with 0\.02"):
        adopt_settings(elsewhere(copy, retrieval={"top_k_share": None}))


def test_where_a_pool_is_searched_is_the_renderers(copy):
    def search_elsewhere(record):
        record["config"]["retrieval"]["search"] = {"device": "cuda", "memory_gib": 64.0}

    edit_record(copy / "published", search_elsewhere)
    assert adopt_settings(elsewhere(copy)).retrieval.search.device == "cpu"
    own = {"search": {"memory_gib": 2.0}}
    assert adopt_settings(elsewhere(copy, "repair", retrieval=own)).retrieval.search.memory_gib == 2.0


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
        (lambda record: record["config"].pop("retrieval"), "retrieval is missing"),
        (lambda record: record["config"].update(retrieval=[]), "retrieval is no section"),
        (lambda record: record["config"]["retrieval"].update(limit=5), "retrieval.limit"),
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


SERVED = {"kind": "endpoint", "model": "an/ear", "max_new_tokens": 64}
AT = "http://127.0.0.1:9/v1"
FROM_FILE = {"risk": 0.05}  # a limit whose calibration was a file
PURITY = {"weight": 2.0, "at_least": 0.1}


def edit_retrieval(copy, **sections):
    edit_record(copy / "published", lambda record: record["config"]["retrieval"].update(sections))


def test_a_dataset_that_was_heard_and_limited_by_what_is_not_here_gives_the_same_shards(first, copy):
    edit_retrieval(copy, confirm=SERVED, purity=PURITY, limit=FROM_FILE)
    config = adopt_settings(elsewhere(copy))
    assert (config.retrieval.confirm, config.retrieval.purity, config.retrieval.limit) == (None, None, None)
    assert adopt_settings(config) == config
    run(elsewhere(copy))
    assert shard_hashes(copy / "run") == shard_hashes(first / "run")
    publish(copy / "run", copy / "again")
    retrieval = json.loads((copy / "again" / "sonify.json").read_text())["config"]["retrieval"]
    assert [retrieval[name] for name in ("confirm", "purity", "limit")] == [SERVED, PURITY, FROM_FILE]


def test_a_limit_that_ships_stays_where_nothing_is_drawn(copy):
    edit_retrieval(copy, limit={"risk": 0.02, "calibration": None})
    limit = adopt_settings(elsewhere(copy)).retrieval.limit
    assert limit is not None
    assert limit.risk == 0.02
    assert adopt_settings(elsewhere(copy, "repair")).retrieval.limit == limit


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"confirm": SERVED | {"url": AT}}, "confirm"),
        ({"confirm": SERVED | {"url": AT}, "purity": PURITY}, "confirm"),
        ({"limit": {"risk": 0.05}}, "limit"),
    ],
)
def test_what_acts_on_a_draw_is_not_set_where_nothing_is_drawn(copy, sections, key):
    edit_retrieval(copy, confirm=SERVED, purity=PURITY, limit=FROM_FILE)
    with refused(rf"^retrieval\.{key}: it acts on what is drawn, .* leave the key out"):
        adopt_settings(elsewhere(copy, retrieval=sections))


@pytest.mark.parametrize(
    ("published", "named", "said"),
    [
        ({"confirm": SERVED}, {}, r"set retrieval\.confirm, with the url of a server that has 'an/ear', or null$"),
        (
            {"confirm": SERVED | {"url": AT, "api_key_env": "HOME"}},
            {},
            r"set retrieval\.confirm, with the url of a server that has 'an/ear', or null$",
        ),
        (
            {"confirm": {"kind": "tagger", "model": "yamnet.tflite"}},
            {},
            r"set retrieval\.confirm, with where 'yamnet\.tflite' lies, or null$",
        ),
        ({"confirm": {"kind": "tagger", "model": "ear"}}, {}, r"set retrieval\.confirm, with where 'ear' lies"),
        ({"confirm": {"kind": "tagger", "model": "/etc/ear"}}, {}, r"retrieval\.confirm names the file '/etc/ear'"),
        (
            {"confirm": {"kind": "tagger", "model": "an/ear", "labels": "/etc/passwd"}},
            {},
            r"retrieval\.confirm names the file '/etc/passwd'",
        ),
        ({"limit": FROM_FILE}, {}, r"set retrieval\.limit, with the calibration that clips were drawn under, or null$"),
        ({"limit": {"risk": 0.05, "calibration": "/etc/passwd"}}, {}, r"set retrieval\.limit, with the calibration"),
        (
            {"confirm": SERVED, "limit": FROM_FILE},
            {},
            r"set retrieval\.limit, with .* or null; retrieval\.confirm, with .* or null$",
        ),
        ({"confirm": SERVED, "purity": PURITY}, {"confirm": None}, r"set retrieval\.purity, as null, since nobody"),
        (
            {"limit": {"risk": 0.05, "calibration": None}},
            {"encoder": {"kind": "hybrid"}},
            "no calibration ships for retrieval.encoder hybrid",
        ),
    ],
)
def test_whoever_draws_again_names_what_the_folder_cannot_hold(copy, published, named, said):
    edit_retrieval(copy, **published)
    with refused(said):
        adopt_settings(elsewhere(copy, "repair", retrieval=named))


def test_who_listens_and_what_limits_is_the_renderers_where_it_draws_again(copy):
    edit_retrieval(copy, confirm=SERVED, purity=PURITY, limit=FROM_FILE)
    config = adopt_settings(elsewhere(copy, "repair", retrieval={"confirm": SERVED | {"url": AT}, "limit": None}))
    assert isinstance(config.retrieval.confirm, Listener)
    assert (config.retrieval.confirm.url, config.retrieval.limit) == (AT, None)
    assert config.retrieval.purity == Purity(**PURITY)
    assert adopt_settings(config) == config
    silent = {"confirm": None, "purity": None, "limit": {"risk": 0.1}}
    retrieval = adopt_settings(elsewhere(copy, "repair", retrieval=silent)).retrieval
    assert (retrieval.confirm, retrieval.purity, retrieval.limit) == (None, None, Limit(risk=0.1))


def test_a_tagger_of_the_hub_listens_again(copy):
    edit_retrieval(copy, confirm={"kind": "tagger", "model": "an/ear", "revision": "main", "labels": None})
    confirm = adopt_settings(elsewhere(copy, "repair")).retrieval.confirm
    assert isinstance(confirm, Tagger)
    assert (confirm.model, confirm.revision) == ("an/ear", "main")


def test_a_limit_from_a_file_is_published_as_one(tmp_path):
    small_input(tmp_path, photos=4, recordings=4)
    (tmp_path / "limits.json").write_bytes(files("sonify.retrieval").joinpath("limits.json").read_bytes())
    config = small_config(tmp_path, retrieval={"limit": {"calibration": str(tmp_path / "limits.json")}})
    run(config)
    publish(config.run_dir, tmp_path / "published")
    with refused(r"set retrieval\.limit, with the calibration that clips were drawn under, or null$"):
        adopt_settings(elsewhere(tmp_path, "repair"))
    assert adopt_settings(elsewhere(tmp_path)).retrieval.limit is None


def sounds_of(copy, **settings):
    return {"sources": [{"kind": "folder", "path": str(copy / "sounds")}], **settings}


CUT = {"min_tail_sec": 0.0, "remove_dc": False, "downmix": "mean"}


def test_recordings_are_cut_as_the_dataset_says(copy):
    edit_record(copy / "published", lambda record: record["config"]["audio"].update(CUT))
    config = adopt_settings(elsewhere(copy))
    assert (config.audio.min_tail_sec, config.audio.remove_dc, config.audio.downmix) == (0.0, False, "mean")
    assert adopt_settings(config) == config
    with refused(r"^audio\.remove_dc: the published dataset was made with False, found True: leave the key out"):
        adopt_settings(elsewhere(copy, audio=sounds_of(copy, remove_dc=True)))


TRAIN = {"split": "train", "clips": 54, "recordings": 18, "top_k": 8, "clips_per_recording": 3}
ACTED = {"version": 2, "kinds": 3, "splits": [TRAIN, {**TRAIN, "split": "validation", "clips_per_recording": 0}]}


def declaration_of(copy):
    return read_declaration(open_published(copy / "published"))


@pytest.mark.parametrize("said", [{}, {"acted": {}}, {"acted": None}])
def test_folders_of_before_say_nothing_of_what_acted(copy, said):
    def change(record):
        record.pop("acted")
        record.update(said)

    edit_record(copy / "published", change)
    assert declaration_of(copy).acted is None
    adopt_settings(elsewhere(copy))


@pytest.mark.parametrize(
    "acted",
    [
        5,
        [],
        "train",
        {"splits": []},
        ACTED | {"version": True},
        ACTED | {"version": -1},
        ACTED | {"kinds": "3"},
        ACTED | {"splits": None},
        ACTED | {"splits": {"train": TRAIN}},
        ACTED | {"splits": [5]},
        ACTED | {"splits": [TRAIN | {"split": "test"}]},
        ACTED | {"splits": [TRAIN | {"split": ["train"]}]},
        ACTED | {"splits": [TRAIN | {"top_k": 8.0}]},
        ACTED | {"splits": [TRAIN | {"clips": None}]},
        ACTED | {"splits": [{name: TRAIN[name] for name in TRAIN if name != "recordings"}]},
        ACTED | {"splits": [TRAIN, TRAIN]},
    ],
)
def test_what_acted_is_counts_by_split_or_refused_in_one_line(copy, acted):
    edit_record(copy / "published", lambda record: record.update(acted=acted))
    with refused(r"sonify\.json: acted says no rules of a draw: not the record of a published dataset$"):
        adopt_settings(elsewhere(copy))


def acted_in(folder):
    return json.loads((folder / "sonify.json").read_text())["acted"]


def test_what_acted_goes_on_through_a_rendering_unless_clips_are_drawn_again(copy):
    written = ACTED | {"later": 1, "splits": [split | {"later": 2} for split in ACTED["splits"]]}
    edit_record(copy / "published", lambda record: record.update(acted=written))
    found = declaration_of(copy).acted
    assert found is not None
    assert (found.version, found.splits[0].top_k, found.splits[1].clips_per_recording) == (2, 8, 0)
    run(elsewhere(copy))
    publish(copy / "run", copy / "again")
    assert acted_in(copy / "again") == ACTED
    repaired = elsewhere(copy, "repair", run_dir=str(copy / "repaired"))
    run(repaired)
    record = replace(require_record(repaired.run_dir), acted=ACTED | {"version": 7})
    write_record(repaired.run_dir, record)
    publish(repaired.run_dir, copy / "repaired again")
    assert acted_in(copy / "repaired again") == ACTED | {"version": 7}


def test_what_acted_on_a_run_is_published(first, copy):
    shutil.copytree(first / "run", copy / "drawn")
    write_record(copy / "drawn", replace(require_record(copy / "drawn"), acted=ACTED))
    publish(copy / "drawn", copy / "out")
    assert acted_in(copy / "out") == ACTED
    table = "| train | 54 | 18 | 8 | 3 |\n| validation | 54 | 18 | 8 | any number |"
    assert table in (copy / "out" / "README.md").read_text()
