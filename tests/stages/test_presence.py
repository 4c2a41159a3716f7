"""What a model says is seen or not, sounds or not, from a real server on loopback to the pairs."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sonify import layout
from sonify.config import Config
from sonify.engine.job import StoredReject
from sonify.errors import ConcernsAll
from sonify.report.status import pairs_of_run
from sonify.rows import CheckedImage, ImageConcepts, RecordedAnswer
from sonify.running import run
from sonify.stages.table import stages_of
from sonify.vlm.questions import concepts_prompt, concepts_schema
from tests.builders import (
    TOLD,
    hash_run,
    refused,
    say,
    small_config,
    small_input,
    stored,
    tell,
    told,
    told_json,
    vlm_at,
)
from tests.vlm.faulty_server import Fault, number_of, numbered_image, serving
from tests.vlm.test_replies import NO_SCHEMAS

PHOTOS = 12
KINDS = Counter(n % len(TOLD) for n in range(PHOTOS))


@pytest.fixture
def server():
    with serving(answer=tell, honours=True) as running:
        yield running


@pytest.fixture
def configure(tmp_path, server) -> Callable[..., Config]:
    small_input(tmp_path, photos=0)
    (tmp_path / "photos").mkdir(exist_ok=True)
    for n in range(PHOTOS):
        numbered_image(n).save(tmp_path / "photos" / f"{n:03d}.jpg", quality=95)

    def make(run="run", url=server.url, extractor: dict[str, Any] | None = None, **concepts: Any) -> Config:
        extractor = {"answers": "schema"} | (extractor or {})
        return small_config(tmp_path, run, concepts={"extractors": [vlm_at(url, **extractor)], **concepts})

    return make


def concepts_of(config: Config) -> list[ImageConcepts]:
    return stored(config.run_dir / layout.CONCEPTS / "eye", ImageConcepts)


def rejects_of(config: Config, stage: str = "pair") -> list[tuple[str, str]]:
    folder = config.run_dir / layout.REJECTS / stage
    return [(row.reason, row.detail) for row in stored(folder, StoredReject)] if folder.exists() else []


def scenes_of(config: Config) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By caption, what is heard in a scene and what is refused, with the reasons."""
    return {
        pair.caption: (
            [source.concept for source in pair.sources],
            {refusal.concept: str(refusal.reason) for refusal in pair.refused},
        )
        for pair in pairs_of_run(config.run_dir)
    }


def test_a_server_is_asked_for_the_schema_and_what_it_says_is_kept(configure, server):
    config = configure()
    run(config)
    asked_for = server.seen[0].body["response_format"]["json_schema"]["schema"]
    assert asked_for == concepts_schema(config.concepts.max_concepts)
    assert {seen.prompt for seen in server.seen} == {concepts_prompt(config.concepts.max_concepts, "schema")}
    rows = concepts_of(config)
    assert len(rows) == PHOTOS
    first = rows[0]
    assert first.caption == "a dog on a beach"
    assert [(c.concept, c.presence, c.sounding, c.confidence, c.box) for c in first.concepts] == [
        ("dog", "visible", True, 0.75, (0.0, 0.0, 0.5, 1.0)),
        ("seagull", "off_screen", True, 0.5, ()),
        ("parked car", "visible", False, 0.75, (0.0, 0.0, 0.5, 1.0)),
    ]
    answers = stored(config.run_dir / layout.ANSWERS / "eye", RecordedAnswer)
    assert [json.loads(said.answer)["caption"] for said in answers] == [row.caption for row in rows]


def test_what_is_not_seen_or_silent_is_refused_with_its_reason_and_is_no_fault(configure, server):
    config = configure()
    counts = run(config)
    scenes = scenes_of(config)
    assert scenes["a dog on a beach"] == (["dog"], {"seagull": "not_visible", "parked car": "not_sounding"})
    assert scenes["a cat at home"] == (["cat"], {})
    refusal = next(pair for pair in pairs_of_run(config.run_dir) if pair.refused).refused[0]
    assert (refusal.presence, refusal.description, refusal.clip) == ("off_screen", "sound of a seagull nearby", "")
    assert rejects_of(config) == [("not_visible", "church bell")] * KINDS[2]
    assert counts["pair"].rejected == {"not_visible": KINDS[2]}


def test_another_presence_is_paired_without_asking_anybody(configure, server):
    run(configure())
    asked = len(server.seen)
    config = configure(presence=["visible", "implied", "off_screen"])
    with refused("presence"):
        run(config)
    run(config, redo="pair")
    assert len(server.seen) == asked
    heard, left = scenes_of(config)["a dog on a beach"]
    assert set(heard) | set(left) == {"dog", "seagull", "parked car"}
    assert left["parked car"] == "not_sounding"
    assert "not_visible" not in left.values()


def test_a_scene_in_which_all_is_silent_is_said_to_be(configure, server):
    silent = told_json("a yard", told("dog", sounding=False), told("cat", sounding=False))
    server.answer = lambda image, prompt: silent if number_of(image) % len(TOLD) else tell(image, prompt)
    config = configure()
    run(config)
    assert rejects_of(config) == [("not_sounding", "dog, cat")] * (PHOTOS - KINDS[0])


def test_the_check_asks_of_what_is_claimed_in_plain_lines(configure, server):
    config = configure(check=True)
    run(config)
    checks = [seen for seen in server.seen if "medium:" in seen.prompt]
    assert len(checks) == PHOTOS
    for seen in checks:
        assert "response_format" not in seen.body
        assert ("dog" in seen.prompt) == (seen.number % 3 == 0)
        assert "seagull" not in seen.prompt
        assert "parked car" not in seen.prompt
        assert "church bell" not in seen.prompt
    rows = stored(config.run_dir / layout.CHECKS / "eye", CheckedImage)
    assert {len(row.foils) for row in rows} == {2}
    assert {tuple(verdict.concept for verdict in row.concepts) for row in rows} == {("dog",), ("cat",), ()}
    scenes = scenes_of(config)
    assert scenes["a dog on a beach"] == (["dog"], {"seagull": "not_visible", "parked car": "not_sounding"})
    assert Counter(rejects_of(config)) == {("not_visible", "church bell"): KINDS[2], ("not_a_photo", "drawing"): 1}


def test_what_the_check_denies_is_unconfirmed_and_the_rest_keeps_its_own_reason(configure, server):
    def deny_the_dog(image, prompt):
        answer = say(image, prompt) if "medium:" in prompt else tell(image, prompt)
        return answer.replace("dog: visible yes", "dog: visible no")

    server.answer = deny_the_dog
    config = configure(check=True)
    run(config)
    drawn = 1  # number 3 is a drawing, which would show the dog
    expected = {"unconfirmed": KINDS[0] - drawn, "not_visible": KINDS[2], "not_a_photo": drawn}
    assert Counter(reason for reason, _ in rejects_of(config)) == expected


@pytest.mark.parametrize("said", NO_SCHEMAS)
def test_a_server_that_refuses_schemas_is_one_line_that_names_the_key_and_json_goes_on(configure, server, said):
    server.refuses = lambda body: NO_SCHEMAS[said] * ("response_format" in body)
    config = configure()
    with pytest.raises(ConcernsAll, match=r"refuses one question after another.*set answers: json") as caught:
        run(config, stages=("concepts",))
    assert "\n" not in str(caught.value)
    assert len(server.seen) <= 3 * 4 * 2
    assert not list((config.run_dir / "commits").rglob("*.json"))
    mended = configure(extractor={"answers": "json"})
    run(mended)
    assert scenes_of(mended)["a dog on a beach"][0] == ["dog"]


IGNORES: dict[str, Callable[[str], str]] = {
    "fence": lambda said: f"Here is the JSON:\n```json\n{json.dumps(json.loads(said), indent=2)}\n```",
    "bare list": lambda said: json.dumps(json.loads(said)["concepts"]),
    "python": lambda said: repr(json.loads(said)),
    "thinks": lambda said: f"<think>a dog, a gull</think>\n{said}",
}


@pytest.mark.parametrize("form", IGNORES)
def test_a_server_that_ignores_the_schema_is_read_for_what_is_there(configure, server, form):
    server.honours = False
    server.answer = lambda image, prompt: IGNORES[form](tell(image, prompt))
    config = configure()
    run(config)
    heard = {number: [c.concept for c in row.concepts] for number, row in enumerate(concepts_of(config))}
    assert heard == {n: [one["name"] for one in TOLD[n % len(TOLD)][1:]] for n in range(PHOTOS)}


def test_a_server_that_answers_in_plain_lines_is_read_as_such(configure, server):
    server.honours = False
    server.answer = lambda _image, _prompt: "caption: a yard\ndog: sound of a dog barking (foreground)"
    config = configure()
    run(config)
    assert scenes_of(config) == {"a yard": (["dog"], {})}


@pytest.mark.parametrize(("share", "names"), [(0.55, ["dog"]), (0.997, ["dog", "seagull", "parked car"]), (0.2, [])])
def test_a_cut_answer_keeps_what_is_whole(configure, server, share, names):
    server.faults = [Fault("cut", share=share)]
    server.answer = lambda _image, _prompt: told_json(*TOLD[0])
    config = configure()
    if names:
        run(config, stages=("concepts",))
        assert [[c.concept for c in row.concepts] for row in concepts_of(config)] == [names] * PHOTOS
    else:
        with pytest.raises(Exception, match=r"concept"):
            run(config, stages=("concepts",))
        assert {reason for reason, _ in rejects_of(config, "concepts/eye")} <= {"bad_answer"}


def test_a_schema_json_and_text_are_other_questions_and_each_is_kept(configure, server):
    config = configure()
    run(config)
    before = hash_run(config.run_dir)
    for n, answers in enumerate(("json", "text"), 2):
        with refused("answers"):
            run(configure(extractor={"answers": answers}))
        run(configure(extractor={"answers": answers}), redo="concepts")
        assert len(server.seen) == n * PHOTOS
    run(config, redo="concepts")
    assert len(server.seen) == 3 * PHOTOS
    after = hash_run(config.run_dir)
    kept = [name for name in before if name.startswith(("concepts", "pairs", "shards"))]
    assert kept
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_the_form_of_the_answers_is_in_no_digest_while_it_is_text(configure, server):
    def digests(extractor=None, **concepts):
        made = configure(extractor={"answers": "text"} | (extractor or {}), check=True, **concepts)
        return {stage.key: stage.digest for stage in stages_of(made)}

    usual = digests()
    assert digests({"language": None}, presence=["visible"]) == usual
    asked = digests({"answers": "schema"})
    assert {key for key in usual if asked[key] != usual[key]} == {"concepts/eye"}  # the check is asked as before
    assert {key for key in usual if digests({"language": "en"})[key] != usual[key]} == {"concepts/eye"}
    assert {key for key in usual if digests(presence=["implied"])[key] != usual[key]} == {"pair"}


def test_a_language_is_asked_for_and_read(configure, server, tmp_path):
    def german(image, _prompt):
        sounds = "Geräusch von einem Hund, der bellt und das ist laut"
        return told_json("Ein Hund.", told("Hund", sounds)) if number_of(image) else told_json("Nichts.")

    server.answer = german
    said = {"language": "de"}
    clap = {"kind": "clap", "model": "a/clap"}
    with refused("answers in German, and retrieval.encoder text compares English words"):
        configure(extractor=said)
    config = small_config(
        tmp_path,
        "run",
        concepts={"extractors": [vlm_at(server.url, answers="schema", **said)]},
        retrieval={"encoder": clap},
    )
    run(config, stages=("concepts",))
    assert all(seen.prompt.endswith("in German.") for seen in server.seen)
    assert [row.concepts[0].concept for row in concepts_of(config)] == ["hund"] * (PHOTOS - 1)
    english = small_config(tmp_path, "other", concepts={"extractors": [vlm_at(server.url, answers="schema")]})
    with pytest.raises(Exception, match="concept"):
        run(english, stages=("concepts",))


def test_a_worker_has_no_grammar(tmp_path):
    small_input(tmp_path, photos=0)
    model = {"kind": "vlm", "name": "eye", "backend": "transformers", "model": "a/model"}
    with refused(r"answers is schema, and nothing holds a model in the worker to one: set answers: json"):
        small_config(tmp_path, concepts={"extractors": [model | {"answers": "schema"}]})
    small_config(tmp_path, concepts={"extractors": [model | {"answers": "json"}]})
    with refused(r"language.*expected a code, one of ar, bn"):
        small_config(tmp_path, concepts={"extractors": [model | {"language": "english"}]})
