"""Every clip is heard once, what was heard is kept, and what it says acts on what is drawn."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from sonify import layout
from sonify.config.models import Listener
from sonify.dataset.render_from import adopt_settings
from sonify.dataset.write import publish
from sonify.engine.record import config_of_run
from sonify.errors import InputError, WorkError
from sonify.io.tables import read_rows
from sonify.prepare import RECORDINGS_IN_UNIT
from sonify.report.status import read_status
from sonify.report.verify import verify
from sonify.rows import HeardClip, Pair, Reason
from sonify.running import plan_run, run
from sonify.stages.listen import listen_job
from tests.builders import (
    SUBJECTS,
    as_pcm,
    hash_run,
    refused,
    run_shuffled,
    small_config,
    small_input,
    stored,
    tone,
    write_sound,
    write_sounds,
    write_table,
)
from tests.processes import fork
from tests.tiny_networks import edit_weights, tiny_tagger
from tests.vlm.faulty_server import Fault, serving

NAMES = ("Dog", "Cat", "Church bell", "Rain", "Train", "Chicken, rooster", "Helicopter", "Frog")
SPEECH_SEED = 30
PITCHES = {200 + 37 * seed: name for seed, name in enumerate(SUBJECTS)}


def sounds_of(seeds):
    return [as_pcm(tone(seed)) for seed in seeds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tagger that hears the tones of `small_input` as their subjects, and one more as speech."""
    sounds = sounds_of([*range(len(SUBJECTS)), SPEECH_SEED])
    return tiny_tagger(tmp_path_factory.mktemp("models") / "tagger", (*NAMES, "Male speech, man speaking"), sounds)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Eight photographs, and a recording for each of their subjects, in units of three."""
    monkeypatch.setattr("sonify.prepare.RECORDINGS_IN_UNIT", 3)
    assert RECORDINGS_IN_UNIT > 3
    small_input(tmp_path, photos=8, recordings=8)
    return tmp_path


def tagger(folder, **settings):
    return {"kind": "tagger", "model": str(folder), "device": "cpu", **settings}


def config_of(root, folder, run="run", purity=None, retrieval=None, **sections):
    confirm = folder if isinstance(folder, dict) else tagger(folder)
    return small_config(root, run=run, retrieval={"confirm": confirm, "purity": purity} | (retrieval or {}), **sections)


def tags_of(config):
    (found,) = (config.run_dir / layout.TAGS).iterdir()
    return stored(found, HeardClip)


def pairs_of(config):
    return stored(config.run_dir / layout.PAIRS, Pair)


def mislabel(root, text="dog"):
    """The recording of a cat comes as that of a dog, and no other as either."""
    table = root / "sounds" / "metadata.csv"
    lines = table.read_text().splitlines()
    kept = [line.replace(",cat,", f",{text},") for line in lines if ",dog," not in line]
    table.write_text("\n".join(kept))
    (root / "sounds" / "000.flac").unlink()


def test_what_was_heard_stands_row_for_row_beside_the_clips(root, folder):
    config = config_of(root, folder)
    counts = run(config)
    assert counts["listen"].rows_in == counts["listen"].rows_out == 8
    heard = tags_of(config)
    best = [(one.clip, one.tags[0].name) for one in heard]
    assert best == [(f"folder/{n:03d}.flac#0", name) for n, name in enumerate(NAMES)]
    assert all(one.tags[0].score > 0.9 and one.tags[0].class_id for one in heard)
    assert all(len(one.tags) == len(NAMES) + 1 for one in heard)  # at least ten, or all there are
    assert verify(config.run_dir).damage == ()


def test_each_source_says_who_heard_what(root, folder):
    config = config_of(root, folder, purity={})
    run(config)
    for pair in pairs_of(config):
        (source,) = pair.sources
        assert source.heard_by == "tagger"
        assert source.heard.lower().split()[0].rstrip(",;") in source.concept + " chicken"
        assert source.support > 0.9
        assert source.purity > 0.5
        assert source.speech < 0.1


def test_a_clip_in_which_something_else_is_heard_is_no_candidate(root, folder):
    mislabel(root)
    config = config_of(root, folder, retrieval={"limit": None})
    counts = run(config)
    assert counts["pair"].rejected == {Reason.NOT_CONFIRMED: 1}
    plain = small_config(root, run="plain")
    run(plain)
    drawn = {source.concept: source.clip for pair in pairs_of(plain) for source in pair.sources}
    assert drawn["dog barking"] == "folder/001.flac#0"
    drawn = {source.concept: source.clip for pair in pairs_of(config) for source in pair.sources}
    assert "dog barking" not in drawn
    assert drawn["cat meowing"] == "folder/001.flac#0"  # whatever its text says
    assert len(drawn) == 7


def test_a_pair_names_the_near_miss_and_what_was_heard_in_it(root, folder):
    mislabel(root)
    (root / "photos" / "captions.csv").write_text("file,caption\n000.jpg,a dog in the rain\n")
    config = config_of(root, folder)
    run(config)
    (pair,) = pairs_of(config)
    assert [source.concept for source in pair.sources] == ["rain falling"]
    (missed,) = pair.refused
    assert (missed.concept, missed.reason, missed.clip) == ("dog barking", Reason.NOT_CONFIRMED, "folder/001.flac#0")
    assert missed.heard == "Cat 1.00"
    assert missed.cosine > 0.5


@pytest.mark.parametrize("how", ["shuffled", "three workers", "killed"])
def test_the_same_bytes_however_it_is_done(root, folder, how):
    stages = ["pool", "listen"] if how == "three workers" else None
    run(config_of(root, folder, run="straight"), stages=stages)
    expected = hash_run(root / "straight")
    config = config_of(root, folder, run="other")
    if how == "shuffled":
        run_shuffled(config)
    elif how == "three workers":
        config = config_of(root, folder, run="other", engine={"kind": "ray", "workers": 3})
        run(config, stages=stages)
    else:
        run(config, stages=["pool"])
        for step in range(0, 24, 5):
            fork(lambda: run(config, stages=["pool", "listen"]), kill_at=step)
        run(config)
    assert hash_run(root / "other") == expected
    assert sum(path.startswith(layout.TAGS) for path in expected) == 3


def test_a_pool_that_is_made_again_is_heard_only_where_it_is_new(root, folder):
    config = config_of(root, folder)
    run(config)
    before = tags_of(config)
    broken = [replace(one, tags=one.tags[:1]) for one in before]  # as nobody hears it: what is not heard again stays so
    for path in sorted((root / "run" / layout.TAGS).rglob("*.parquet")):
        rows = list(read_rows(path, HeardClip))
        write_table(path, HeardClip, [one for one in broken if one.clip in {row.clip for row in rows}])
    write_sounds(root / "more", {"900.flac": "dog"})
    shutil.copy(root / "more" / "900.flac", root / "sounds" / "003.flac")
    run(config, redo="pool")
    again = {one.clip: one for one in tags_of(config)}
    changed = [one.clip for one in before if again[one.clip].sha256 != one.sha256]
    assert changed == ["folder/003.flac#0"]
    assert again["folder/003.flac#0"].tags[0].name == "Dog"
    assert all(len(one.tags) == 1 for clip, one in again.items() if clip not in changed)
    run(config, redo="tags")
    assert all(len(one.tags) > 1 for one in tags_of(config))


def test_rules_that_act_on_what_was_heard_need_no_second_hearing(root, folder):
    config = config_of(root, folder)
    run(config)
    listened = {path: path.stat().st_mtime_ns for path in (config.run_dir / layout.TAGS).rglob("*.parquet")}
    stricter = config_of(root, tagger(folder, floor=0.5, of_best=0.9))
    with refused(r"pair was made under another configuration: retrieval\.confirm.*--redo pair"):
        run(stricter)
    run(stricter, redo="pair")
    assert {path: path.stat().st_mtime_ns for path in listened} == listened


def test_without_confirmation_a_run_is_as_before(root):
    config = small_config(root)
    assert "listen" not in {plan.stage.key for plan in plan_run(config)}
    for plan in plan_run(config):
        assert not {"audio.speech", "retrieval.confirm", "retrieval.purity"} & plan.stage.settings.keys()


# --- speech


def speak(root):
    """One more recording of a dog, in which only somebody speaks, and one of people talking."""
    rows = (root / "sounds" / "metadata.csv").read_text()
    for name, text in (("0000.flac", "dog"), ("0001.flac", "people talking")):
        write_sound(root / "sounds" / name, tone(SPEECH_SEED))
        rows += f"{name},{text},CC0-1.0,by me\n"
    (root / "sounds" / "metadata.csv").write_text(rows)


def test_clips_with_speech_leave_the_pool_where_that_is_asked(root, folder):
    speak(root)
    captions = root / "photos" / "captions.csv"
    captions.write_text(captions.read_text() + "900.jpg,people talking\n")
    shutil.copy(root / "photos" / "000.jpg", root / "photos" / "900.jpg")
    config = config_of(root, folder, audio={"speech": "drop"})
    counts = run(config)
    assert counts["listen"].rejected == {Reason.SPEECH: 2}
    assert counts["listen"].rows_in == 10
    assert len(tags_of(config)) == 10  # what was heard stays
    assert verify(config.run_dir).damage == ()
    drawn = {source.clip for pair in pairs_of(config) for source in pair.sources}
    assert not {clip for clip in drawn if "/0000." in clip or "/0001." in clip}
    heard = {int(source.clip[-8:-7]): source.heard for pair in pairs_of(config) for source in pair.sources}
    assert {n: one.rpartition(" ")[0] for n, one in heard.items()} == dict(
        enumerate(NAMES)
    )  # the tags of their own clips
    assert "900_2e_jpg" not in {pair.image for pair in pairs_of(config)}  # nothing left may stand for it


@pytest.mark.parametrize("speech", ["keep", "flag"])
def test_flagged_speech_stays_and_is_told(root, folder, speech):
    speak(root)
    captions = root / "photos" / "captions.csv"
    captions.write_text("file,caption\n000.jpg,people talking\n")
    config = config_of(root, folder, audio={"speech": speech})
    counts = run(config)
    assert counts["listen"].rejected == {}
    (pair,) = pairs_of(config)
    (source,) = pair.sources
    assert source.clip == "folder/0001.flac#0"
    assert source.speech > 0.9


def test_that_speech_is_flagged_changes_no_settings(root, folder):
    def settings(speech):
        plans = plan_run(config_of(root, folder, run=speech, audio={"speech": speech}))
        return {plan.stage.key: plan.stage.digest for plan in plans}

    assert settings("flag") == settings("keep")
    dropped = settings("drop")
    assert {key for key, digest in settings("keep").items() if dropped[key] != digest} == {"listen", "pair"}


@pytest.mark.parametrize("confirm", [None, {"kind": "endpoint", "model": "m", "url": "http://127.0.0.1:9/v1"}])
def test_speech_is_found_by_a_tagger_only(tmp_path, confirm):
    small_input(tmp_path, 1, 1)
    with refused(r"audio\.speech is drop, and speech is found by a tagger: set retrieval\.confirm"):
        small_config(tmp_path, audio={"speech": "drop"}, retrieval={"confirm": confirm})


# --- what a tagger may be


def test_a_tagger_whose_labels_are_nothing_known_is_refused(root, tmp_path):
    strange = tiny_tagger(tmp_path / "strange", ("LABEL_0", "LABEL_1", "qwx"))
    with refused(r"none of its 3 classes is one of AudioSet's ontology \(LABEL_0, LABEL_1, qwx\)"):
        run(config_of(root, strange))


def test_a_tagger_that_knows_other_classes_besides_says_so(root, tmp_path, caplog):
    mixed = tiny_tagger(tmp_path / "mixed", ("Dog", "LABEL_1", "cat"))
    run(config_of(root, mixed), stages=["pool", "listen"])
    assert "1 of its 3 classes are none of the ontology: LABEL_1" in caplog.text


def test_a_tagger_that_hears_everything_everywhere_is_told(root, folder, tmp_path, caplog):
    loud = shutil.copytree(folder, tmp_path / "loud")

    def raise_all(tensors):
        tensors["classifier.dense.weight"].zero_()
        tensors["classifier.dense.bias"].fill_(5.0)

    edit_weights(loud / "model.safetensors", raise_all)
    config = config_of(root, loud)
    run(config)
    assert "in 100 % of the clips loud hears more than a quarter of its classes" in caplog.text
    assert len(pairs_of(config)) == 8


def test_a_tagger_that_hears_nothing_refuses_nothing_and_is_told(root, folder, tmp_path, caplog):
    deaf = shutil.copytree(folder, tmp_path / "deaf")

    def lower_all(tensors):
        tensors["classifier.dense.weight"].zero_()
        tensors["classifier.dense.bias"].fill_(-9.0)

    edit_weights(deaf / "model.safetensors", lower_all)
    config = config_of(root, deaf)
    run(config)
    assert "in 100 % of the clips deaf hears nothing" in caplog.text
    assert "quarter" not in caplog.text
    assert {source.support for pair in pairs_of(config) for source in pair.sources} == {0.0001}
    assert len(pairs_of(config)) == 8


def test_a_tagger_of_damaged_weights_stops_the_run(root, folder, tmp_path):
    nan = shutil.copytree(folder, tmp_path / "nan")
    edit_weights(nan / "model.safetensors", lambda tensors: tensors["classifier.dense.bias"].fill_(float("nan")))
    with refused(r"the tagger gives NaN or infinity", WorkError):
        run(config_of(root, nan))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"expected weights in model\.safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), r"has no file of a processor"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "clap"}'),
            r"a model that classifies sounds",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"not JSON"),
    ],
)
def test_a_folder_that_is_no_tagger_is_named_before_any_work(root, folder, tmp_path, change, said):
    broken = shutil.copytree(folder, tmp_path / "broken")
    change(broken)
    with refused(said):
        run(config_of(root, broken))
    assert not (root / "run" / layout.CLIPS).exists()


def test_another_tagger_hears_anew_and_its_tags_lie_apart(root, folder, tmp_path):
    run(config_of(root, folder), stages=["pool", "listen"])
    other = tiny_tagger(tmp_path / "other", NAMES)
    with refused(r"listen was made under another configuration"):
        run(config_of(root, other), stages=["pool", "listen"])
    run(config_of(root, other), stages=["pool", "listen"], redo="listen")
    assert len(list((root / "run" / layout.TAGS).iterdir())) == 2


def test_a_run_is_looked_at_without_the_files_of_its_tagger(root, test_data):
    weights = shutil.copytree(test_data / "weights" / "yamnet", root / "weights")
    ear = {"kind": "tagger", "model": f"{weights}/yamnet.tflite", "labels": f"{weights}/yamnet_class_map.csv"}
    config = config_of(root, ear)
    run(config)
    known = {plan.stage.key: plan.stage.digest for plan in plan_run(config)}
    weights.rename(root / "elsewhere")
    again = config_of_run(root / "run")
    assert {plan.stage.key: plan.stage.digest for plan in plan_run(again)} == known
    assert all(stage.units_to_do == 0 for stage in read_status(root / "run").stages)
    assert not verify(root / "run").damage
    publish(root / "run", root / "published")
    published = {"path": str(root / "published"), "missing": "repair"}
    with refused(r"set retrieval\.confirm, with where 'yamnet\.tflite' lies, or null$"):
        adopt_settings(small_config(root, published=published))
    assert adopt_settings(small_config(root, published=published | {"missing": "skip"})).retrieval.confirm is None
    with refused(r"retrieval\.confirm\.labels: no such file"):
        config_of(root, ear)


def test_a_front_end_of_the_librarys_own_is_used_for_other_models(root, tmp_path):
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=16,
        id2label={0: "Dog", 1: "Cat"}, label2id={"Dog": 0, "Cat": 1},
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).eval().save_pretrained(tmp_path / "wav2vec")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "wav2vec")
    config = config_of(root, tmp_path / "wav2vec")
    run(config, stages=["pool", "listen"])
    assert {tag.name for one in tags_of(config) for tag in one.tags} == {"Dog", "Cat"}


def test_a_clip_is_heard_without_its_padding_and_the_same_beside_any_other(root, folder):
    config = config_of(root, folder)
    run(config, stages=["pool"])
    job = listen_job(config)
    rows = list(job.read("000000"))
    together = job.process(rows)
    assert [job.process([row])[0] for row in rows] == together


# --- a model behind a server


def listener(server, **fields):
    return {
        "kind": "endpoint", "model": "stub", "url": server.url, "concurrency": 4, "timeout_sec": 2.0,
        "max_wait_sec": 4.0, **fields,
    }  # fmt: skip


def hear(sound, prompt):
    """What a listener says of the tones of `small_input`."""
    pitch = round(float(np.argmax(np.abs(np.fft.rfft(sound)))) * 16_000 / len(sound))
    return f"{PITCHES[min(PITCHES, key=lambda known: abs(known - pitch))]}: plainly heard\nhum: a faint hum"


def test_a_model_is_asked_once_about_each_clip_and_its_answers_are_kept(root):
    mislabel(root)
    with serving(answer=hear) as server:
        config = config_of(root, listener(server))
        counts = run(config)
        assert len(server.seen) == 7
        run(config, redo="pool")
        assert len(server.seen) == 7
        assert {seen.body["messages"][0]["content"][0]["type"] for seen in server.seen} == {"input_audio"}
    assert counts["pair"].rejected[Reason.NOT_CONFIRMED] >= 1
    heard = tags_of(config)
    assert [one.tags[0].name for one in heard] == list(SUBJECTS[1:])
    assert all(one.answer.endswith("a faint hum") for one in heard)
    sources = [source for pair in pairs_of(config) for source in pair.sources]
    assert {source.heard_by for source in sources} == {"stub"}
    assert {source.support for source in sources} == {1.0}


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("The audio contains a dog barking in the rain.", ["dog barking", "rain falling"]),
        ("none", []),
        ("There is no dog in it.", []),
        ("Ich höre einen Hund und den Regen auf dem Dach.", []),
        ("I'm sorry, I cannot listen to audio.", []),
        ("", []),
        ('{"sounds": [{"name": "dog barking", "description": "x"}]}', ["dog barking"]),
        ("\ud83d" * 3, []),
    ],
)
def test_whatever_a_model_answers_is_kept_and_read_with_care(root, answer, tags):
    with serving(answer=lambda _sound, _prompt: answer) as server:
        config = config_of(root, listener(server))
        run(config, stages=["pool", "listen"])
    heard = tags_of(config)
    assert [tag.name for tag in heard[0].tags][: len(tags)] == tags
    assert bool(heard[0].tags) == bool(tags)


def test_a_server_that_goes_away_leaves_the_unit_undone_and_the_run_goes_on_later(root):
    with serving(Fault("status", status=503, after=3), answer=hear) as server:
        config = config_of(root, listener(server, max_wait_sec=1.0))
        with pytest.raises(WorkError, match="503"):
            run(config, stages=["pool", "listen"])
        server.faults = ()
        run(config, stages=["pool", "listen"])
        assert len(tags_of(config)) == 8


def test_a_server_that_nobody_answers_at_is_named_before_any_work(root):
    config = config_of(root, {"kind": "endpoint", "model": "m", "url": "http://127.0.0.1:9/v1"})
    with refused(r"nobody answers at http://127\.0\.0\.1:9/v1"):
        run(config)


def test_a_server_that_cannot_listen_stops_the_run(root):
    with (
        serving(refuses=lambda _body: "audio input is not supported by this model") as server,
        refused(r"refuses one question after another: .*audio input is not supported", InputError),
    ):
        run(config_of(root, listener(server)))


def test_where_a_listener_runs_and_how_hard_it_is_driven_is_no_setting(root):
    with serving(answer=hear) as server:
        config = config_of(root, listener(server))
        plans = {plan.stage.key: plan.stage.digest for plan in plan_run(config)}
        moved = config_of(root, listener(server, url="http://elsewhere/v1", concurrency=9))
        assert {plan.stage.key: plan.stage.digest for plan in plan_run(moved)} == plans
        other = config_of(root, listener(server, temperature=0.5))
        assert {plan.stage.key: plan.stage.digest for plan in plan_run(other)} != plans
    assert isinstance(config.retrieval.confirm, Listener)
    assert "url" not in json.dumps(dict(next(p.stage.settings for p in plan_run(config) if p.stage.key == "listen")))
