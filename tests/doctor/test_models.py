"""Are the models of a configuration here, and does each do what it is for? Tiny ones, a hub and servers on loopback."""

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from sonify.config import Config, Confirm, make_config
from sonify.config.models import ClapEncoder, EndpointVlm, ServerVlm, Tagger
from sonify.config.sections import Retrieval
from sonify.doctor import trials
from sonify.doctor.apart import tried
from sonify.doctor.findings import Finding, Outcome, as_rows
from sonify.doctor.models import examine_models
from sonify.doctor.specimens import SOUNDS, choose_picture, draw_picture, laid_out_sounds
from sonify.doctor.trials import (
    count_won,
    try_checker,
    try_clap,
    try_ear,
    try_listener,
    try_vae,
    try_vlm,
)
from sonify.media.clips import cut_recording
from sonify.vlm import server as server_module
from tests.builders import archives_in, picture, small_config, sounds_in, vlm_at, write_tar
from tests.servers import COMMIT, MODEL, ModelHub, away_from_hub, put_into_cache, running_hub
from tests.tiny_networks import (
    answering_llava,
    edit_json,
    edit_weights,
    hearing_clap,
    taesd_folder,
    tiny_clap,
    tiny_tagger,
)
from tests.vlm.faulty_server import Fault, FaultyServer, serving
from train.tiny import write_tiny_ast, write_tiny_beats, write_tiny_vae

SAYS = "Caption: a car in the rain.\ncar: a car passing by (foreground)\nrain: rain falling (ambience)"
CLASSES = ("Bark", "Rain", "Siren", "Church bell", "Bird", "Helicopter")
WALLS = (
    "The wall is blue.", "Above it hangs a lamp.", "It looks rather old.", "Nobody is to be seen.",
    "Snow covers a roof.", "My favourite part is the door.", "There may be a garden.", "What a lovely place!",
)  # fmt: skip
ENGINE = (sys.executable, str(Path(__file__).parents[1] / "vlm" / "faulty_server.py"), "--port", "{port}")
DEMO = Path(__file__).parents[2] / "sonify" / "demo" / "sounds"


def clips_at(rate_hz: int) -> list[np.ndarray]:
    return [next(cut_recording(DEMO / sound.file, rate_hz, 5.0)).samples for sound in SOUNDS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models that were taught what the doctor asks, and of an AST that was taught nothing."""
    folder = tmp_path_factory.mktemp("models")
    drawing = Image.open(io.BytesIO(draw_picture().data)).convert("RGB")
    answering_llava(folder / "llava", [(drawing, SAYS)])
    hearing_clap(folder / "clap", clips_at(48_000), [sound.concept.description for sound in SOUNDS])
    tiny_tagger(folder / "tagger", CLASSES, clips_at(16_000))
    write_tiny_ast(folder / "ast")
    return folder


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    """Runs over no photos and no sounds yet."""
    for name in ("photos", "sounds"):
        (tmp_path / name).mkdir()
    return partial(small_config, tmp_path)


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub that has a LLaVA, with files that nobody fetches."""
    folder = Path(shutil.copytree(models / "llava", tmp_path / "hub"))
    for unwanted in ("pytorch_model.bin", "original/model.safetensors", "README.md"):
        (folder / unwanted).parent.mkdir(exist_ok=True)
        (folder / unwanted).write_bytes(bytes(10_000))
    with running_hub(monkeypatch, tmp_path / "cache", folder) as hub:
        yield hub


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def llava(folder: Path | str, **fields: Any) -> dict[str, Any]:
    extractor = {"kind": "vlm", "name": "llava", "backend": "transformers", "device": "cpu", "max_new_tokens": 48}
    return {"concepts": {"extractors": [extractor | {"model": str(folder)} | fields]}}


def clap(folder: Path | str, **fields: Any) -> dict[str, Any]:
    return {"retrieval": {"encoder": {"kind": "clap", "model": str(folder), "device": "cpu"} | fields, "limit": None}}


# --- all of it


def test_with_models_that_do_what_they_are_for_all_is_well(hub, configure, models, test_data, tmp_path, monkeypatch):
    taesd_folder(test_data / "weights" / "taesd", tmp_path / "vae")
    tagger = {"kind": "tagger", "model": str(models / "tagger"), "device": "cpu"}
    retrieval = clap(models / "clap")["retrieval"] | {"confirm": tagger}
    features = {"vae": str(tmp_path / "vae"), "ast": str(models / "ast"), "device": "cpu", "size": 128}
    config = configure(**llava(MODEL), retrieval=retrieval, features=features)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))  # for the process in which it is tried
    monkeypatch.setenv("HF_ENDPOINT", constants.ENDPOINT)

    findings = {finding.about: finding for finding in examine_models(config, fetch=True)}

    assert list(findings) == [
        "llava", "clap", "tagger", "vae", "ast",
        "llava, one image", "clap, 6 x 6", "tagger, six sounds", "vae, one image", "ast, one sound",
    ]  # fmt: skip
    assert {finding.outcome for finding in findings.values()} == {Outcome.OK}
    assert json.loads(json.dumps(as_rows(findings.values())))[5]["facts"]["concepts"] == ["car", "rain"]
    assert findings["llava, one image"].shown == (
        *(f"| {line}" for line in SAYS.splitlines()), "-> car: a car passing by", "-> rain: rain falling",
    )  # fmt: skip
    assert findings["llava, one image"].facts["tokens_per_sec"] > 0
    assert all((finding.seconds or 0) > 0 for about, finding in findings.items() if "," in about)
    assert findings["llava"].facts["identity"] == COMMIT
    assert findings["clap"].facts["size_bytes"] == size_of(models / "clap")
    assert findings["clap"].facts["identity"].startswith("sha256:")
    assert findings["ast, one sound"].facts["shape"] == [49, 32]
    assert findings["vae, one image"].facts["shape"] == [4, 16, 16]
    assert not config.run_dir.exists()


def test_what_fails_is_a_fault_and_the_others_go_on(configure, models, test_data):
    yamnet = test_data / "weights" / "yamnet"
    confirm = {"kind": "tagger", "model": str(yamnet / "yamnet.tflite"), "labels": str(yamnet / "yamnet_class_map.csv")}
    engine = {"backend": "server", "command": ["no-such-engine", "{port}"]}
    extractor = {"kind": "vlm", "name": "llava", "model": str(models / "llava")} | engine
    config = configure(concepts={"extractors": [extractor]}, retrieval={"confirm": confirm})

    findings = {finding.about: finding for finding in examine_models(config)}

    assert {about: finding.outcome.value for about, finding in findings.items()} == {
        "llava": "ok", "tagger": "ok", "llava, one image": "fault", "tagger, six sounds": "ok",
        "clap, 6 x 6": "not tried",
    }  # fmt: skip
    assert "'no-such-engine' is not on this machine's PATH" in findings["llava, one image"].found
    assert findings["tagger, six sounds"].found == "hears 6 of 6 recordings as what they are"


def test_weights_without_a_tensor_are_a_fault_of_one_line(models, tmp_path):
    broken = Path(shutil.copytree(models / "llava", tmp_path / "llava"))
    edit_weights(broken / "model.safetensors", lambda tensors: tensors.pop(next(n for n in tensors if "mlp" in n)))
    extractor = make_vlm(models, model=str(broken))
    failed = tried("llava", lambda: try_vlm("llava", extractor, 5, draw_picture()))
    assert failed.outcome is Outcome.FAULT
    assert "1 of the tensors of LlavaForConditionalGeneration are not in the weights" in failed.found
    assert "\n" not in failed.found


def test_words_need_no_model_and_hear_nothing(configure):
    [finding] = examine_models(configure())
    assert (finding.about, finding.outcome) == ("clap, 6 x 6", Outcome.NOT_TRIED)
    assert "compares words and hears nothing" in finding.found


# --- here, or to be fetched


def look(config: Config, **options: Any) -> Finding:
    """What is found where the model is not tried."""
    looked, trial, *_ = examine_models(config, **options)
    assert trial.outcome is Outcome.NOT_TRIED
    return looked


def test_what_is_to_be_fetched_is_told_with_its_size_and_not_fetched(hub, configure, models, tmp_path):
    found = look(configure(**llava(MODEL)))

    assert found.outcome is Outcome.NOTE
    assert found.facts["missing_bytes"] == found.facts["size_bytes"] == size_of(models / "llava")
    assert found.facts["identity"] == COMMIT
    assert f"{size_of(models / 'llava') / 1e6:.2f} MB to be fetched, no token is needed" in found.found
    assert not any("/resolve/" in path for path in hub.asked)
    assert not (tmp_path / "cache").exists()


def test_a_model_in_the_cache_is_here_and_nobody_asks_the_hub(hub, configure, models, tmp_path):
    put_into_cache(tmp_path / "cache", models / "llava")
    found = next(iter(examine_models(configure(**llava(MODEL)))))
    assert (found.outcome, found.facts["identity"]) == (Outcome.OK, COMMIT)
    assert found.facts["size_bytes"] == size_of(models / "llava")
    assert hub.asked == []


def test_of_a_model_that_is_here_in_part_the_rest_is_to_be_fetched(hub, configure, models, tmp_path):
    weights = put_into_cache(tmp_path / "cache", models / "llava") / "model.safetensors"
    size = weights.stat().st_size
    weights.unlink()
    found = look(configure(**llava(MODEL)))
    assert (found.outcome, found.facts["missing_bytes"]) == (Outcome.NOTE, size)
    assert found.facts["size_bytes"] == size_of(models / "llava")


def test_weights_that_are_cut_are_a_fault_though_the_hub_has_them_whole(hub, configure, models, tmp_path):
    weights = put_into_cache(tmp_path / "cache", models / "llava") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = look(configure(**llava(MODEL)))
    assert found.outcome is Outcome.FAULT
    assert "cut short" in found.found


def test_a_gated_model_needs_a_token_and_its_page_is_named(hub, configure):
    hub.gated = "manual"
    found = look(configure(**llava(MODEL)))
    assert found.outcome is Outcome.FAULT
    assert found.found.endswith("to be fetched, for which a token is needed")
    assert f"https://huggingface.co/{MODEL}" in found.todo


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("fetch", [True, False])
def test_without_the_hub_what_is_not_here_is_a_fault_with_the_command(hub, configure, monkeypatch, offline, fetch):
    hub.away = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    found = look(configure(**llava(MODEL, revision=COMMIT)), fetch=fetch)
    assert found.outcome is Outcome.FAULT
    assert "size not known: the hub was not reached" in found.found
    assert f"`hf download {MODEL} --revision {COMMIT} --include '*.json' --include '*.txt'" in found.todo
    assert "--include '*.safetensors' --exclude '*/*' --exclude 'consolidated*'`" in found.todo
    assert "\n" not in found.found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "some-people/another"}, "no such model"),
        ({"model": MODEL, "revision": "v9"}, "no revision v9"),
        ({"model": "/not/there"}, "there is no such folder"),
    ],
)
def test_what_there_is_nowhere_is_a_fault(hub, configure, fields, expected):
    found = look(configure(**llava("", **fields)))
    assert found.outcome is Outcome.FAULT
    assert expected in found.found


def test_another_kind_of_model_is_a_fault(configure, models):
    found = look(configure(**llava(models / "clap")))
    assert found.outcome is Outcome.FAULT
    assert "expected a model that answers about images" in found.found


def test_a_page_of_some_portal_in_place_of_the_hub_is_a_fault(configure, monkeypatch, tmp_path):
    with serving(lists=None) as server:
        away_from_hub(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(constants, "ENDPOINT", server.url.removesuffix("/v1"))
        assert look(configure(**llava(MODEL))).outcome is Outcome.FAULT


def test_a_checkpoint_and_its_tokenizer_are_looked_for_apart(configure, tmp_path, monkeypatch):
    away_from_hub(monkeypatch, tmp_path / "cache")
    (tmp_path / "clap.pt").write_bytes(bytes(2_500_000))
    encoder = {"kind": "laion_clap", "checkpoint": str(tmp_path / "clap.pt"), "device": "cpu"}
    config = configure(retrieval={"encoder": encoder, "limit": None})
    checkpoint, roberta, trial = examine_models(config)
    assert (checkpoint.about, checkpoint.outcome) == ("clap", Outcome.OK)
    assert "2.50 MB" in checkpoint.found
    assert (roberta.about, roberta.outcome) == ("roberta", Outcome.FAULT)
    assert trial.outcome is Outcome.NOT_TRIED

    (tmp_path / "clap.pt").unlink()
    gone = next(examine_models(config))
    assert gone.outcome is Outcome.FAULT
    assert "retrieval.encoder.checkpoint" in gone.todo


def test_nobody_at_an_address_is_a_fault(configure, monkeypatch):
    monkeypatch.setattr("sonify.vlm.endpoint.SECONDS_TO_LOOK", 0.0)
    listener = {"kind": "endpoint", "model": "stub", "url": "http://127.0.0.1:9/v1"}
    checker = vlm_at("http://127.0.0.1:9/v1", "checker")
    config = configure(
        concepts={"check": True, "checker": checker, "extractors": [vlm_at("http://127.0.0.1:9/v1")]},
        retrieval={"confirm": listener},
    )
    findings = {finding.about: finding for finding in examine_models(config)}
    for name in ("eye", "checker", "listener"):
        assert findings[name].outcome is Outcome.FAULT
        assert "nobody answers at http://127.0.0.1:9/v1" in findings[name].found
    for about in ("eye, one image", "checker, one check", "listener, six sounds"):
        assert findings[about].outcome is Outcome.NOT_TRIED


# --- what a model is shown


def test_the_first_readable_image_of_the_set_is_shown(configure, tmp_path):
    config = configure()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "b.jpg").write_bytes(picture(1))
    (tmp_path / "photos" / "c.jpg").write_bytes(picture(2))
    assert choose_picture(config.images).data == picture(1)
    assert choose_picture(config.images).name == "b.jpg"


def test_an_image_of_an_archive_is_shown_and_no_sample_is_drawn_for_it(configure, tmp_path, monkeypatch):
    def read_all(*_: object) -> None:
        raise AssertionError("every archive would be read")

    monkeypatch.setattr("sonify.sources.images.images_in", read_all)
    write_tar(tmp_path / "tars" / "0.tar", {"x.png": picture(3, image_format="PNG")})
    config = configure(images=archives_in(tmp_path / "tars", sample=1))
    assert choose_picture(config.images).name == "0.tar/x.png"


def test_without_an_image_a_drawing_is_shown_that_is_always_the_same(configure, tmp_path):
    config = configure()
    assert choose_picture(config.images) == draw_picture()
    (tmp_path / "photos").rmdir()
    assert choose_picture(config.images) == draw_picture()
    assert Image.open(io.BytesIO(draw_picture().data)).size == (512, 384)


# --- what it answers


def ask_at(server: FaultyServer, **fields: Any) -> Finding:
    extractor = EndpointVlm.model_validate(vlm_at(server.url, **fields))
    return tried("eye", lambda: try_vlm("eye", extractor, 5, draw_picture()))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PATIENCE_SEC", 0.5)


def test_an_answer_is_shown_and_its_concepts_named():
    with serving(answer=lambda *_: SAYS) as server:
        found = ask_at(server)
    assert found.outcome is Outcome.OK
    assert found.found.startswith("hears car, rain in a drawing")
    assert found.shown[:3] == tuple(f"| {line}" for line in SAYS.splitlines())
    assert "tokens_per_sec" not in found.facts
    assert "What can be heard in this image?" in server.seen[0].prompt
    assert min(server.seen[0].size) == 64  # as large as the stage would show it


def test_the_form_that_was_asked_for_is_read():
    def answer(_image: object, prompt: str) -> str:
        assert "JSON" in prompt
        return json.dumps({"caption": "a road", "concepts": [{"name": "car", "description": "a car passing by"}]})

    with serving(answer=answer) as server:
        found = ask_at(server, answers="json")
    assert found.facts["concepts"] == ["car"]


def test_an_answer_without_a_concept_is_a_fault_with_what_was_said():
    long = (
        "A bird sits on a branch and a man with a hat walks by, while a boat lies in the harbour behind the old mill."
    )
    said = f"The image shows a red car.\n\x1b[31m{long}\n" + "\n".join(WALLS)
    with serving(answer=lambda *_: said) as server:
        found = ask_at(server)
    assert found.outcome is Outcome.FAULT
    assert "holds no concept that can be read: bad_answer" in found.found
    assert found.shown[0] == "| The image shows a red car."
    assert found.shown[-1] == "| ... 2 more lines"
    assert all(line.isprintable() and len(line) < 120 for line in found.shown)
    assert found.facts["answer"] == said


def test_an_answer_that_names_nothing_is_a_note():
    with serving(answer=lambda *_: "caption: a wall\nnone") as server:
        found = ask_at(server)
    assert (found.outcome, found.facts["reason"]) == (Outcome.NOTE, "no_concepts")


def test_an_answer_that_was_cut_is_a_note_that_names_the_key(models):
    extractor = make_vlm(models, max_new_tokens=24)
    found = try_vlm("llava", extractor, 5, draw_picture())
    assert found.outcome is Outcome.NOTE
    assert "max_new_tokens (24)" in found.todo
    assert found.facts["finished"] is False


def make_vlm(models: Path, **fields: Any) -> Any:
    sections = llava(models / "llava", **fields)
    base = {"run_dir": "run", "images": {"kind": "folder", "path": str(models)}, "audio": sounds_in(models)}
    base["images"]["validation"] = 0
    return make_config(base | sections).concepts.extractors[0]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([Fault("status", status=500)], "gave up after"),
        ([Fault("status", status=400, body='{"error": "no"}')], "answers 400"),
        ([Fault("status", status=404)], "check url"),
        ([Fault("html")], "gave up after"),
        ([Fault("garbage")], "gave up after"),
        ([Fault("hang")], "gave up after"),
    ],
)
def test_a_server_that_fails_is_a_fault_of_one_line(impatient, faults, expected):
    started = time.monotonic()
    with serving(*faults) as server:
        found = ask_at(server, max_wait_sec=120.0)
    assert time.monotonic() - started < 60  # whatever a run would wait
    assert found.outcome is Outcome.FAULT
    assert expected in found.found
    assert "\n" not in found.found


def test_what_a_server_refuses_of_one_image_is_a_fault():
    filtered = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
    with serving(Fault("reply", status=200, body=json.dumps(filtered))) as server:
        found = ask_at(server)
    assert found.outcome is Outcome.FAULT
    assert found.found.startswith("no answer: ")


def test_the_check_is_asked_with_foils():
    def answer(_image: object, prompt: str) -> str:
        names = prompt.partition("in this order: ")[2].partition("\n")[0].split(", ")
        lines = [f"{name}: visible {'yes' if name == 'car' else 'no'}, real yes, sounding yes" for name in names]
        return "\n".join(["medium: drawing", *lines])

    with serving(answer=answer) as server:
        checker = EndpointVlm.model_validate(vlm_at(server.url))
        found = try_checker("eye", checker, draw_picture())
    assert (found.outcome, found.facts["medium"], found.facts["concepts"]) == (Outcome.OK, "drawing", ["car"])

    with serving(answer=lambda *_: "I see a car.") as server:
        checker = EndpointVlm.model_validate(vlm_at(server.url))
        found = try_checker("eye", checker, draw_picture())
    assert found.outcome is Outcome.FAULT
    assert found.shown == ("| I see a car.",)


# --- an engine


def engine(*command: str, **fields: Any) -> ServerVlm:
    base = {"kind": "vlm", "name": "stub", "backend": "server", "model": "stub", "start_timeout_sec": 30}
    return ServerVlm.model_validate(base | {"command": command} | fields)


@pytest.fixture
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(server_module, "GRACE_SEC", 1.0)
    return tmp_path


def test_an_engine_is_started_asked_and_ended_and_leaves_nothing(own_temp):
    told = own_temp / "pid"
    tells = f"import os, sys; open({str(told)!r}, 'w').write(str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])"
    command = (sys.executable, "-c", tells, *ENGINE)
    found = tried("stub", lambda: try_vlm("stub", engine(*command), 5, draw_picture()))
    assert found.outcome is Outcome.OK, found.found
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert found.facts["load_sec"] > 0
    assert list(own_temp.glob("sonify-doctor-*")) == []


def test_an_engine_that_dies_at_once_is_a_fault_with_the_end_of_its_log(own_temp):
    dies = (sys.executable, "-c", "print('CUDA out of memory'); raise SystemExit(7)", "{port}")
    found = tried("stub", lambda: try_vlm("stub", engine(*dies), 5, draw_picture()))
    assert found.outcome is Outcome.FAULT
    assert "the engine ended before it was ready" in found.found
    assert "CUDA out of memory" in found.found
    [log] = own_temp.glob("sonify-doctor-*/*.log")  # stays, for it is named
    assert str(log) in found.found


def test_an_engine_that_is_not_installed_is_a_fault():
    found = tried("stub", lambda: try_vlm("stub", engine("no-such-engine", "{port}"), 5, draw_picture()))
    assert found.outcome is Outcome.FAULT
    assert "is not on this machine's PATH" in found.found


# --- six recordings and six texts


def hear(folder: Path, config: Config, hears: str = "recording", **fields: Any) -> Finding:
    encoder = ClapEncoder(kind="clap", model=str(folder), device="cpu", **fields)
    retrieval = Retrieval(encoder=encoder, limit=None, hears=hears)  # pyright: ignore[reportArgumentType]
    return tried("clap", lambda: try_clap("clap", retrieval, config.audio))


def test_recordings_are_heard_at_the_rate_and_in_the_window_of_the_stage(configure, models):
    found = hear(models / "clap", configure())
    assert (found.facts["rows_won"], found.facts["columns_won"]) == (6, 6)
    # it was taught the first five seconds at 48 kHz, exactly
    np.testing.assert_allclose(found.facts["cosines"], np.eye(6), atol=1e-3)
    assert len(found.shown) == 7
    assert found.shown[1].split() == ["dog", "1.00*", *found.shown[1].split()[2:]]


def test_sounds_are_without_the_padding_of_a_clip(configure):
    config = configure(audio={**sounds_in(configure().run_dir.parent / "sounds"), "clip_seconds": 10.0})
    with laid_out_sounds(config.audio) as (_, heard):
        lengths = [len(one.samples) for one in heard]
    assert min(lengths) < 160_000
    assert lengths == [round(one.clip.duration_sec * 16_000) for one in heard]


def test_of_clips_another_sound_is_heard(configure, models):
    heard = np.array(hear(models / "clap", configure(), hears="clip").facts["cosines"])
    assert np.abs(heard - np.eye(6)).max() > 0.01  # nothing above 8 kHz is left


@pytest.mark.parametrize(
    ("order", "won", "outcome"),
    [
        ((0, 1, 2, 3, 5, 4), 4, Outcome.NOTE),
        ((0, 1, 2, 4, 5, 3), 3, Outcome.FAULT),
        ((1, 2, 3, 4, 5, 0), 0, Outcome.FAULT),
    ],
)
def test_a_clap_that_takes_sounds_for_each_other_is_a_note_and_then_a_fault(configure, tmp_path, order, won, outcome):
    sounds = clips_at(48_000)
    texts = [SOUNDS[n].concept.description for n in order]
    found = hear(hearing_clap(tmp_path / "clap", sounds, texts), configure())
    assert (found.facts["rows_won"], found.facts["columns_won"], found.outcome) == (won, won, outcome)
    assert found.todo


def test_random_weights_are_a_fault(configure, tmp_path):
    assert hear(tiny_clap(tmp_path / "clap"), configure()).outcome is Outcome.FAULT


def test_weights_that_are_no_numbers_are_a_fault(configure, models, tmp_path):
    broken = Path(shutil.copytree(models / "clap", tmp_path / "clap"))
    edit_weights(broken / "model.safetensors", lambda tensors: tensors["audio_projection.linear2.bias"].fill_(np.nan))
    found = hear(broken, configure())
    assert found.outcome is Outcome.FAULT
    assert "NaN" in found.found


def test_what_is_equal_wins_nothing():
    assert count_won(np.eye(6)) == 6
    assert count_won(np.ones((6, 6))) == 0
    assert count_won(np.eye(6)[[1, 0, 2, 3, 4, 5]]) == 4
    only_rows = np.eye(6)
    only_rows[0] += 2
    assert (count_won(only_rows), count_won(only_rows.T)) == (6, 1)


def test_of_a_hybrid_its_clap_is_tried(configure, models):
    hybrid = {"kind": "hybrid", "audio": {"kind": "clap", "model": str(models / "clap"), "device": "cpu"}}
    config = configure(retrieval={"encoder": hybrid, "limit": None})
    found = try_clap("clap", config.retrieval, config.audio)
    assert (found.outcome, found.facts["dimension"]) == (Outcome.OK, 32)


# --- who listens


def listen(confirm: Confirm, config: Config) -> Finding:
    retrieval = config.retrieval.model_copy(update={"confirm": confirm})
    return tried("listener", lambda: try_listener("listener", retrieval, config.audio))


@pytest.mark.parametrize(
    ("order", "confirmed", "outcome"),
    [((1, 0, 2, 3, 4, 5), 4, Outcome.NOTE), ((1, 2, 3, 4, 5, 0), 0, Outcome.FAULT)],
)
def test_a_tagger_that_hears_other_things_is_a_note_or_a_fault(configure, tmp_path, order, confirmed, outcome):
    folder = tiny_tagger(tmp_path / "tagger", [CLASSES[n] for n in order], clips_at(16_000))
    found = listen(Tagger(kind="tagger", model=str(folder), device="cpu"), configure())
    assert (len(found.facts["confirmed"]), found.outcome) == (confirmed, outcome)
    assert found.todo


def listener_at(server: FaultyServer) -> Any:
    listener = {"kind": "endpoint", "model": "stub", "url": server.url, "timeout_sec": 2.0, "max_wait_sec": 4.0}
    return Retrieval(confirm=listener).confirm  # pyright: ignore[reportArgumentType]


def test_a_model_that_listens_is_asked_about_each_sound(configure):
    with serving(answer=lambda *_: "dog: a dog barking") as server:
        found = listen(listener_at(server), configure())
    assert (found.outcome, found.facts["confirmed"]) == (Outcome.NOTE, ["dog"])
    assert len(server.seen) == 6
    assert found.shown[0] == "dog: dog 1.00"


def test_a_listener_that_refuses_all_is_a_fault(configure, impatient):
    with serving(refuses=lambda _body: "input_audio is not known here") as server:
        found = listen(listener_at(server), configure())
    assert found.outcome is Outcome.FAULT
    assert "input_audio is not known here" in found.found


# --- the networks of features


def features(config: dict[str, Any], configure: Callable[..., Config]) -> Any:
    return configure(features={"device": "cpu", "size": 64} | config).features


def test_a_vae_of_random_weights_is_told(configure, tmp_path):
    settings = features({"vae": str(write_tiny_vae(tmp_path / "vae"))}, configure)
    found = try_vae("vae", settings, draw_picture())
    assert found.outcome is Outcome.NOTE
    assert "its mean colour alone has" in found.todo


def test_a_vae_that_blurs_is_a_note(configure, test_data, tmp_path):
    vae = taesd_folder(test_data / "weights" / "taesd", tmp_path / "vae")
    settings = features({"vae": str(vae), "size": 256}, configure)
    assert try_vae("vae", settings, draw_picture()).outcome is Outcome.OK
    small = settings.model_copy(update={"size": 64})  # of which more is detail
    blurred = try_vae("vae", small, draw_picture())
    assert blurred.outcome is Outcome.NOTE
    assert blurred.facts["psnr_db"] < 20


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_features_that_no_file_holds_are_a_fault(configure, models, test_data, tmp_path, value):
    vae = taesd_folder(test_data / "weights" / "taesd", tmp_path / "vae")
    ast = Path(shutil.copytree(models / "ast", tmp_path / "ast"))
    edit_weights(ast / "model.safetensors", lambda tensors: tensors["layernorm.bias"].fill_(value))
    edit_weights(
        vae / "diffusion_pytorch_model.safetensors", lambda tensors: tensors["encoder.layers.14.bias"].fill_(value)
    )
    settings = features({"vae": str(vae), "ast": str(ast)}, configure)
    heard = try_ear("ast", settings, small_config(tmp_path).audio)
    seen = try_vae("vae", settings, draw_picture())
    for found in (heard, seen):
        assert found.outcome is Outcome.FAULT
        assert "NaN, infinity or more than float16 holds" in found.found
        json.dumps(found.facts, allow_nan=False)


def test_a_front_end_of_another_rate_is_a_fault(configure, models, tmp_path):
    ast = Path(shutil.copytree(models / "ast", tmp_path / "ast"))
    edit_json(ast / "preprocessor_config.json", lambda settings: settings.update(sampling_rate=48_000))
    settings = features({"ast": str(ast)}, configure)
    found = tried("ast", lambda: try_ear("ast", settings, small_config(tmp_path).audio))
    assert found.outcome is Outcome.FAULT
    assert "expected a front end" in found.found


def test_beats_is_tried_in_the_place_of_the_ast(configure, tmp_path):
    beats = write_tiny_beats(tmp_path / "beats")
    asked = {"vae": str(write_tiny_vae(tmp_path / "vae")), "ast": "not/there", "beats": str(beats)}
    config = configure(features={"device": "cpu", "size": 64, "frequency": "all", "layers": [4, 8, 12]} | asked)
    found = {finding.about: finding for finding in examine_models(config, fetch=False)}
    assert "ast" not in found
    assert found["beats"].outcome is Outcome.OK
    assert found["beats"].facts["identity"].startswith("sha256:")
    heard = found["beats, one sound"]
    assert (heard.outcome, heard.facts["shape"]) == (Outcome.OK, [248, 96])
    asked |= {"beats": str(write_tiny_ast(tmp_path / "ast"))}
    config = configure(features={"device": "cpu", "size": 64} | asked)
    wrong = {finding.about: finding for finding in examine_models(config, fetch=False)}["beats"]
    assert wrong.outcome is Outcome.FAULT
    assert "expected a model of type 'beats'" in wrong.found
