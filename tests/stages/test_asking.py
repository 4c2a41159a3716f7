"""Concepts and checks from a model behind a real server on loopback."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from sonify.config import Config, Engine
from sonify.errors import ConcernsAll, InputError, WorkError
from sonify.io.tables import read_rows, write_rows
from sonify.rows import RecordedAnswer
from sonify.running import run
from sonify.stages.table import stages_of
from tests.builders import SAID, hash_run, number_in, say, small_config, small_input, vlm_at
from tests.processes import run_python
from tests.vlm.faulty_server import Fault, FaultyServer, numbered_image, serving

PHOTOS = 20


@pytest.fixture
def server():
    with serving(answer=say) as running:
        yield running


@pytest.fixture
def configure(tmp_path, server) -> Callable[..., Config]:
    small_input(tmp_path, photos=1)
    for n in range(PHOTOS):
        numbered_image(n).save(tmp_path / "photos" / f"{n:03d}.jpg", quality=95)
    return lambda run="run", url=server.url, images=None, **concepts: small_config(
        tmp_path, run, images=images or {}, concepts={"extractors": [vlm_at(url)], **concepts}
    )


def questions(server: FaultyServer) -> int:
    return len(server.seen)


def test_what_a_model_says_becomes_concepts_and_is_kept(configure, server):
    config = configure()
    counts = run(config)

    assert counts["concepts/eye"].rows_out == PHOTOS == questions(server)
    concepts = pq.read_table(config.run_dir / "concepts" / "eye").to_pylist()
    answers = pq.read_table(config.run_dir / "answers" / "eye").to_pylist()
    assert [row["answer"] for row in concepts] == [row["answer"] for row in answers]
    first = concepts[0]
    assert first["caption"] == "a dog on grass"
    assert [(c["concept"], c["prominence"]) for c in first["concepts"]] == [("dog", "foreground"), ("rain", "ambience")]
    assert first["image_sha256"] == hashlib.sha256((config.images.path / "000.jpg").read_bytes()).hexdigest()
    assert {row["prompt"] for row in answers} == {server.seen[0].prompt}


def test_redone_concepts_ask_nobody_and_need_no_server(configure, server):
    config = configure()
    run(config)
    before = hash_run(config.run_dir)
    asked = questions(server)

    run(configure(url="http://127.0.0.1:9/v1"), redo="concepts")  # nothing listens there

    assert questions(server) == asked
    assert hash_run(config.run_dir) == before


@pytest.mark.parametrize("change", [{"image_size": 32}, {"max_new_tokens": 7}])
def test_other_settings_of_the_model_ask_again(configure, server, change):
    run(configure())
    asked = questions(server)
    run(configure(extractors=[vlm_at(server.url, **change)]), redo="concepts")
    assert questions(server) == 2 * asked


def test_a_limit_in_the_prompt_is_another_question_and_the_old_answers_stay(configure, server):
    run(configure())
    asked = questions(server)
    run(configure(max_concepts=1), redo="concepts")
    assert questions(server) == 2 * asked
    run(configure(), redo="concepts")
    assert questions(server) == 2 * asked


def test_another_model_behind_kept_answers_is_checked_before_any_work(configure, server):
    run(configure())
    with pytest.raises(InputError, match="does not serve the model 'other'"):
        run(configure(extractors=[vlm_at(server.url, model="other")]), redo="concepts")


def test_a_renamed_extractor_and_another_sample_list_the_images_again(tmp_path):
    small_input(tmp_path)
    run(small_config(tmp_path, images={"sample": 6}), stages=("concepts",))
    renamed = {"extractors": [{"kind": "captions", "name": "other"}]}
    config = small_config(tmp_path, images={"sample": 9}, concepts=renamed)
    assert run(config, stages=("concepts",), redo="concepts")["concepts/other"].rows_in == 9


def test_redone_answers_are_asked_for_again(configure, server):
    run(configure())
    asked = questions(server)
    run(configure(), redo="answers")
    assert questions(server) == 2 * asked


def test_an_image_that_has_changed_is_asked_about_again(configure, server, tmp_path):
    config = configure()
    run(config)
    asked = questions(server)
    (tmp_path / "photos" / "001.jpg").write_bytes((tmp_path / "photos" / "004.jpg").read_bytes())
    (tmp_path / "photos" / "002.jpg").unlink()

    counts = run(config, redo="concepts")

    assert questions(server) == asked + 1
    assert counts["concepts/eye"].rows_in == PHOTOS - 1


def test_answers_that_are_no_use_are_counted_and_kept(configure, server):
    server.answer = lambda image, prompt: say(image, prompt) if number_in(image) % 2 else "I'm sorry, but I can't help."
    config = configure()
    counts = run(config)

    assert counts["concepts/eye"].rejected == {"refusal": PHOTOS // 2}
    assert len(pq.read_table(config.run_dir / "answers" / "eye")) == PHOTOS


def test_a_model_that_hears_nothing_anywhere_stops_the_run(configure, server):
    server.answer = lambda _image, _prompt: "caption: a wall\nnone"
    with pytest.raises(WorkError, match="no image has a sounding concept"):
        run(configure())


def test_a_server_that_fails_leaves_units_undone_and_loses_nothing(configure, server):
    straight = configure("straight")
    run(straight)
    server.faults = (Fault("status", status=500, after=questions(server) + 9),)
    config = configure("broken")
    with pytest.raises(WorkError, match="given up"):
        run(config)
    server.faults = ()
    run(config)
    assert hash_run(config.run_dir) == hash_run(straight.run_dir)


def test_two_extractors_give_two_scenes(configure, server):
    config = configure(extractors=[vlm_at(server.url), vlm_at(server.url, "other")])
    run(config)
    pairs = pq.read_table(config.run_dir / "pairs").to_pylist()
    assert [(pair["image"], pair["scene"]) for pair in pairs[:2]] == [("000_2ejpg", "eye"), ("000_2ejpg", "other")]
    assert len(pairs) == 2 * PHOTOS


def test_the_check_filters_what_is_heard_and_is_kept(configure, server):
    config = configure(check=True)
    counts = run(config)

    churches = sum(n % len(SAID) == 2 for n in range(PHOTOS))
    assert counts["checks/eye"].rows_out == PHOTOS
    assert counts["pair"].rejected == {"not_a_photo": 1, "unconfirmed": churches}
    pairs = pq.read_table(config.run_dir / "pairs").to_pylist()
    assert {pair["medium"] for pair in pairs} == {"photo"}
    assert all("visible yes" in pair["check_answer"] for pair in pairs)
    checks = pq.read_table(config.run_dir / "checks" / "eye").to_pylist()
    assert all(len(row["foils"]) == 2 for row in checks)
    named = {c["concept"] for row in checks for c in row["concepts"]}
    assert named == {"dog", "rain", "cat", "church bell"}


def test_another_filter_asks_nobody(configure, server):
    run(configure(check=True))
    asked = questions(server)
    counts = run(configure(check=True, media=["photo", "drawing"]), redo="pair")
    assert questions(server) == asked
    assert "not_a_photo" not in counts["pair"].rejected
    run(configure(check=True, media=["photo", "drawing"]), redo="concepts")
    assert questions(server) == asked


def test_how_often_foils_are_confirmed_is_reported(configure, server):
    from sonify.report.status import read_status  # noqa: PLC0415 - the one test that needs it

    config: Config = configure(check=True)
    run(config)
    (foils,) = read_status(config.run_dir).foils.values()
    churches = sum(n % len(SAID) == 2 for n in range(PHOTOS))
    assert (foils.asked, foils.confirmed) == (2 * PHOTOS, 2 * (PHOTOS - churches))


def test_a_photo_is_decoded_for_the_model_at_the_size_it_asks_for(configure, server, tmp_path):
    with Image.open(tmp_path / "photos" / "005.jpg") as small:
        small.resize((640, 480)).save(tmp_path / "photos" / "005.jpg", quality=95)
    run(configure())
    assert {seen.number for seen in server.seen} == set(range(PHOTOS))


def test_damaged_answers_are_asked_for_again(configure, server, tmp_path):
    config = configure()
    run(config)
    asked = questions(server)
    damaged = sorted((config.run_dir / "answers" / "eye").glob("*.parquet"))[0]
    damaged.write_bytes(b"PAR1 nonsense" * 10)
    run(config, redo="concepts")
    assert questions(server) == asked + 8  # one unit


MEASURED = """
import json, sys
from sonify.config import make_config
from sonify.running import run
from tests.processes import peak_kib
run(make_config(json.loads(sys.argv[1])), stages=("concepts",))
print(peak_kib())
"""


def peak_of_units(configure, root: Path, units_of: int) -> int:
    images = {"path": str(root / "large"), "shard_size": units_of}
    config = configure(f"of-{units_of}", images=images)
    return int(run_python(MEASURED, config.model_dump_json()).stdout)


def test_memory_follows_the_window_and_not_the_unit(configure, server, tmp_path):
    configure()
    (tmp_path / "large").mkdir()
    noise = Image.effect_noise((400, 300), 90).convert("RGB")
    noise.save(tmp_path / "large" / "first.jpg", quality=95)  # 100 KB, and 360 KB decoded
    for n in range(1000):
        os.link(tmp_path / "large" / "first.jpg", tmp_path / "large" / f"{n:04d}.jpg")

    of_100, of_1000 = (peak_of_units(configure, tmp_path, units_of) for units_of in (100, 1000))

    assert of_1000 < of_100 + 15 * 1024  # 900 more images are 90 MB as files and 320 MB decoded


def test_a_refused_image_is_not_asked_about_again(configure, server):
    server.faults = (Fault("status", status=400, number=3),)
    config = configure()
    assert run(config)["concepts/eye"].rejected == {"no_answer": 1}
    asked = questions(server)
    counts = run(configure(url="http://127.0.0.1:9/v1"), redo="concepts")
    assert counts["concepts/eye"].rejected == {"no_answer": 1}
    assert questions(server) == asked


@pytest.mark.parametrize("fault", ["hang", "down"])
def test_an_interrupted_run_ends_within_seconds_whatever_its_server_does(configure, server, fault):
    server.faults = (Fault("hang", delay_sec=300.0),) if fault == "hang" else ()
    url = server.url if fault == "hang" else "http://127.0.0.1:9/v1"
    config = configure(extractors=[vlm_at(url, timeout_sec=300.0, max_wait_sec=600.0)])
    path = config.run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "sonify", "concepts", "--config", str(path)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not ((config.run_dir / "units" / "concepts").is_dir() and (server.seen or fault == "down")):
        time.sleep(0.05)
        assert running.poll() is None
    time.sleep(1)  # it waits for the server by now, or is about to: either way it ends
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the same command goes on from here" in said


def test_a_first_attempt_under_a_wrong_configuration_binds_nobody(configure, server):
    wrong = configure(extractors=[vlm_at(server.url, model="misspelt")])
    with pytest.raises(InputError, match="does not serve"):
        run(wrong)
    assert run(configure())["render"].rows_out == PHOTOS


def test_checks_that_cannot_be_read_stop_the_run(configure, server):
    server.answer = lambda image, prompt: "no idea, sorry" if "medium:" in prompt else say(image, prompt)
    with pytest.raises(WorkError, match="no image could be checked"):
        run(configure(check=True))


def test_a_long_strip_is_brought_to_a_size_that_a_window_can_hold(configure, server, tmp_path):
    Image.new("RGB", (6000, 100), "red").save(tmp_path / "photos" / "strip.png")
    run(configure())
    assert max(max(seen.size) for seen in server.seen) <= 4 * 64


def test_prominence_lowers_what_the_model_puts_in_the_background(configure, tmp_path, server):
    plain = configure("plain")
    run(plain)
    lowered = small_config(tmp_path, "lowered", concepts={"extractors": [vlm_at(server.url)]}, mix={"prominence": {}})
    run(lowered)

    def targets(config: Config) -> dict[tuple[str, str], float]:
        pairs = pq.read_table(config.run_dir / "pairs").to_pylist()
        return {(pair["image"], s["concept"]): s["target_lufs"] for pair in pairs for s in pair["sources"]}

    before, after = targets(plain), targets(lowered)
    differences = {name: round(after[image, name] - before[image, name], 3) for image, name in before}
    assert differences == {"dog": 0.0, "cat": 0.0, "rain": -9.0, "church bell": -6.0}


MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_refused_field_stops_the_run_and_the_key_that_mends_it_goes_on(configure, server, tmp_path, engine):
    server.refuses = lambda body: MAX_TOKENS * ("max_tokens" in body)
    config = configure().model_copy(update={"engine": Engine(kind=engine, workers=1)})
    with pytest.raises(ConcernsAll) as caught:
        run(config, stages=("concepts",))
    assert MAX_TOKENS in str(caught.value)
    assert "set token_limit: max_completion_tokens" in str(caught.value)
    assert questions(server) <= 3 * 4 * 2  # the window ahead has begun too
    assert not list((config.run_dir / "commits").rglob("*.json"))
    assert not list((config.run_dir / "rejects").rglob("*.parquet"))
    mended = configure(extractors=[vlm_at(server.url, token_limit="max_completion_tokens")])
    assert run(mended, stages=("concepts",))["concepts/eye"].rows_out == PHOTOS


def test_how_a_limit_is_spelt_is_in_no_digest_and_what_answers_depend_on_is(configure, server):
    run(configure())
    asked = questions(server)

    def digest(**keys: Any) -> str:
        stages = stages_of(configure(extractors=[vlm_at(server.url, **keys)]))
        return next(stage.digest for stage in stages if stage.key == "concepts/eye")

    usual = digest()
    assert digest(token_limit="max_completion_tokens", temperature=0.0, system=None, extra_body={}) == usual
    others = {
        digest(temperature=None), digest(temperature=0.5), digest(system="/no_think"), digest(extra_body={"seed": 1})
    }  # fmt: skip
    assert len({usual, *others}) == 5
    run(configure(extractors=[vlm_at(server.url, token_limit="max_completion_tokens")]))
    assert questions(server) == asked
    with pytest.raises(InputError, match=r'extra_body was not set then, is \{"seed": 1\} now'):
        run(configure(extractors=[vlm_at(server.url, extra_body={"seed": 1})]))
    run(configure(extractors=[vlm_at(server.url, extra_body={"seed": 1})]), redo="concepts")
    assert questions(server) == 2 * asked


def test_odd_replies_are_rejects_and_cost_no_unit(configure, server):
    server.faults = [Fault("no_fields", number=number) for number in (2, 9, PHOTOS - 1)]
    counts = run(configure(), stages=("concepts",))["concepts/eye"]
    assert (counts.rows_out, counts.rejected) == (PHOTOS - 3, {"no_answer": 3})


def test_a_server_that_says_nonsense_to_all_leaves_its_units_undone(configure, server):
    server.faults = [Fault("no_fields", after=10)]
    config = configure()
    with pytest.raises(WorkError, match="units were given up"):
        run(config, stages=("concepts",))
    server.faults = ()
    assert run(config, stages=("concepts",))["concepts/eye"].rows_out == PHOTOS


def test_what_a_model_thinks_is_heard_nowhere(configure, server):
    def think(image: Image.Image, prompt: str) -> str:
        checks, number = "medium:" in prompt, number_in(image)
        first = "zebra: visible yes, real yes, sounding yes" if checks else "zebra: sound of a zebra"
        if (number, checks) in ((5, False), (6, True)):  # without a mark, and cut
            return f"Okay, let me see.\n{first}\ndog: visible yes, real yes, sounding yes"
        return f"<think>\n{first}\n</think>\n\n{say(image, prompt)}"

    server.answer = think
    server.faults = (Fault("length", number=5), Fault("length", number=6))
    config = configure(check=True)
    counts = run(config)
    assert counts["concepts/eye"].rejected == {"bad_answer": 1}
    assert counts["checks/eye"].rejected == {"bad_answer": 1}
    pairs = pq.read_table(config.run_dir / "pairs").to_pylist()
    assert {source["concept"] for pair in pairs for source in pair["sources"]} <= {"dog", "rain", "cat", "church bell"}
    assert all("zebra" in row["answer"] for row in pq.read_table(config.run_dir / "answers" / "eye").to_pylist())


def test_refusals_of_every_question_that_an_earlier_version_kept_are_asked_again(configure, server):
    """That version committed them as rejects: the units are done, and `--redo concepts` does them."""
    server.faults = [Fault("status", status=400, number=number) for number in range(1, PHOTOS)]
    config = configure()
    run(config, stages=("concepts",))
    for path in (config.run_dir / "answers" / "eye").glob("*.parquet"):
        rows = list(read_rows(path, RecordedAnswer))
        with path.open("wb") as file:
            kept = [replace(row, refused=row.refused and f"the server answers 400 {MAX_TOKENS}") for row in rows]
            write_rows(file, RecordedAnswer, kept)
    server.faults = ()
    asked = questions(server)
    counts = run(config, stages=("concepts",), redo="concepts")["concepts/eye"]
    assert counts.rows_out == PHOTOS
    assert questions(server) == asked + PHOTOS - 1


def test_an_address_where_nobody_answers_is_one_line(configure, tmp_path):
    config = configure(url="http://127.0.0.1:9/v1")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"extractor eye: nobody answers at http://127\.0\.0\.1:9/v1"):
        run(config, stages=("concepts",))
    assert time.monotonic() - began < 10
