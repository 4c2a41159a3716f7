"""The system as a recipe, run for real on a suite: what it makes, what it cannot make, and how it goes on."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import baseline
from eval.baselines import in_the_wild
from eval.baselines.recipe import CommandRecipe, load_recipe
from eval.baselines.wild.attention import NOUN_LIST
from eval.baselines.wild.captions import NOUN_FILE
from eval.suites.suite import Suite
from tests.builders import refused, write_csv
from tests.eval.baselines.wild.built import write_sd, write_wav2clip
from tests.eval.suites_built import make_suite
from tests.tiny_networks import tiny_clip
from train.manifest import OutsideSettings, read_manifest

CAPTIONS = (
    ("s000", "a dog barks in the rain", ".9 .8 .7 .9 .9 .4"),
    ("s001", "rustling", ""),  # no noun at all
    ("s002", "", ""),  # nothing is said
    ("s003", " ".join(["birds sing"] * 50), ""),  # a hundred words
    ("s004", "a dog barks in the rain", ".9 .8 .7 .9 .9 .4"),  # as s000
)  # and none of s005


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wild")
    write_sd(root / "sd")
    write_csv(root / "captions.csv", ("id", "caption", "probabilities"), CAPTIONS)
    return root


@pytest.fixture(scope="module")
def suite(root) -> Suite:
    return make_suite(root / "suite", 6, ("dog", "rain", "train", "cat"), others=0)


def settings(root: Path, *words: str) -> list[str]:
    return [f"stable_diffusion={root / 'sd'}", "revision=null", f"captions={root / 'captions.csv'}", "steps=4", *words]


def run(suite: Suite, out: Path, *words: str, seeds: int = 1) -> int:
    return baseline.main(
        ["--recipe", "in_the_wild", "--suite", str(suite.folder), "--seeds", str(seeds), "--out", str(out), *words]
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def direct(suite: Suite, out: Path, *words: str, seeds: int = 1) -> int:
    whole = str(suite.folder / "sounds_whole.csv")
    return in_the_wild.main(["--list", whole, "--out", str(out), "--seeds", str(seeds), *words])


def test_a_suite_is_made_by_one_command_and_what_fails_is_told(suite, root, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(suite, out, *settings(root, "optimise=0", 'env.OMP_NUM_THREADS="1"'), seeds=2) == 0
    assert f"8 pictures of 4 of 6 items in {out}; 4 are not there" in capsys.readouterr().out
    rows = read_manifest(out)
    assert {row.model for row in rows} == {"in_the_wild[captions+nouns+not_optimised+sd+steps4]"}
    assert [(row.image, row.seed) for row in rows] == [
        (f"images/s{n:03d}-{seed}.png", seed) for n in (0, 1, 3, 4) for seed in (0, 1)
    ]
    recorded = rows[0].settings
    assert isinstance(recorded, OutsideSettings)
    assert {"optimise=0", "image_of_step=0", "steps=4"} <= set(recorded.command)
    assert (recorded.guidance, recorded.steps, recorded.heard) == (7.5, 4, None)
    with (out / "failed.csv").open(newline="") as file:
        failed = {(row["id"], row["seed"]): row["error"] for row in csv.DictReader(file)}
    assert set(failed) == {("s002", "0"), ("s002", "1"), ("s005", "0"), ("s005", "1")}
    assert failed["s002", "0"].startswith("its caption is empty")
    assert failed["s005", "1"] == f"{root / 'captions.csv'} has no caption of it"
    told = {(line["id"], line["seed"]): line for line in lines(out / "wild.jsonl")}
    assert set(told) == {(row.image[7:11], row.seed) for row in rows}
    assert told["s003", 0]["words_cut"] > 0
    assert told["s001", 0]["nouns_by"] == NOUN_LIST
    word, p, noun, weight = told["s000", 0]["words"][1]
    assert (word, p, noun) == ("dog", 0.8, 1.0)
    assert weight == pytest.approx(1 / (2 + math.exp(1.5)) + 1 + 0.08, abs=1e-6)
    assert told["s000", 0]["losses"] == []
    one, other = ((out / "images" / f"{id}-0.png").read_bytes() for id in ("s000", "s004"))
    assert one == other  # one caption and one seed are one picture


@pytest.mark.parametrize("similarity", ["wav2clip", "no_audio"])
def test_an_optimised_suite_keeps_the_tenth_picture(suite, root, tmp_path, similarity):
    """With two steps for ten: what is kept is the last of them, and its record has each one's losses."""
    tiny_clip(tmp_path / "clip", 512)
    weights = write_wav2clip(tmp_path / "wav2clip.safetensors") if similarity == "wav2clip" else "null"
    judges = [f"clip={tmp_path / 'clip'}", "clip_revision=null", f"wav2clip={weights}", "optimise=3"]
    assert direct(suite, tmp_path / "out", *settings(root, *judges)) == 0
    answers = {line["id"]: line for line in lines(tmp_path / "out" / "outputs.jsonl")}
    assert answers["s000"] == {"id": "s000", "seed": 0, "image": "images/s000-0.png", "image_of_step": 2}
    assert set(answers["s002"]) == {"id", "seed", "error"}
    told = lines(tmp_path / "out" / "wild.jsonl")[0]
    assert (told["image_of_step"], len(told["losses"])) == (2, 3)
    assert (told["losses"][0]["audio"] == 0) == (similarity == "no_audio")
    recipe = load_recipe("in_the_wild", settings(root, *judges))
    assert isinstance(recipe, CommandRecipe)
    assert recipe.name == f"in_the_wild[captions+nouns+{similarity}+kept2+sd+clip+steps4]"
    assert recipe.items_may_be_alike == (similarity == "no_audio")
    assert direct(suite, tmp_path / "plain", *settings(root, "optimise=0")) == 0
    assert pixels(tmp_path / "plain", "s000") != pixels(tmp_path / "out", "s000")


def pixels(out: Path, id: str) -> bytes:
    return np.asarray(Image.open(out / "images" / f"{id}-0.png")).tobytes()


def test_the_first_step_of_an_optimised_run_is_the_picture_without(suite, root, tmp_path):
    """And asks for no judge: no weights are named, and none are there."""
    assert direct(suite, tmp_path / "one", *settings(root, "optimise=10", "image_of_step=0")) == 0
    assert direct(suite, tmp_path / "two", *settings(root, "optimise=0")) == 0
    assert pixels(tmp_path / "one", "s000") == pixels(tmp_path / "two", "s000")


def test_the_same_command_makes_what_is_not_there(suite, root, tmp_path):
    out = tmp_path / "out"
    assert direct(suite, out, *settings(root, "optimise=0")) == 0
    whole = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    kept = (out / "images" / "s000-0.png").stat().st_mtime_ns
    (out / "images" / "s001-0.png").unlink()
    text = (out / "outputs.jsonl").read_text()
    (out / "outputs.jsonl").write_text(text[: len(text) - 20])  # killed within a line
    assert direct(suite, out, *settings(root, "optimise=0")) == 0
    assert (out / "images" / "s000-0.png").stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == whole
    answers = [(line["id"], "image" in line) for line in lines(out / "outputs.jsonl")]
    assert sorted(answers) == [
        ("s000", True),
        ("s001", True),
        ("s002", False),
        ("s003", True),
        ("s004", True),
        ("s005", False),
    ]


def test_an_error_that_is_not_of_one_sound_ends_the_command(suite, root, tmp_path, monkeypatch):
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(in_the_wild.System, "make", fault)
    with pytest.raises(ZeroDivisionError):
        direct(suite, tmp_path / "out", *settings(root, "optimise=0"))
    assert lines(tmp_path / "out" / "outputs.jsonl") == []


def test_a_picture_that_is_not_finite_is_a_failure(root, tmp_path, suite, monkeypatch):
    monkeypatch.setattr(in_the_wild.System, "make", lambda *_: (np.nan * in_the_wild.torch.ones(1, 3, 8, 8), []))
    assert direct(suite, tmp_path / "out", *settings(root, "optimise=0")) == 0
    assert "not finite" in lines(tmp_path / "out" / "outputs.jsonl")[0]["error"]


def test_a_sound_that_was_changed_is_a_failure_where_it_is_heard(suite, root, tmp_path):
    judges = [f"clip={tiny_clip(tmp_path / 'clip', 512)}", "clip_revision=null", "wav2clip=null", "optimise=2"]
    table = (suite.folder / "sounds_whole.csv").read_text().splitlines()
    header, first = table[0].split(","), table[1].split(",")
    first[header.index("sha256")] = "0" * 64
    (tmp_path / "list.csv").write_text("\n".join((table[0], ",".join(first))))
    words = ["--list", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), *settings(root, *judges)]
    assert in_the_wild.main(words) == 0
    assert "was changed since it was listed" in lines(tmp_path / "out" / "outputs.jsonl")[0]["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captions=null"], "expected one of captions=FILE.csv.*, found none"),
        (["act=CAPTIONS", "act_words=CAPTIONS"], "expected one of captions=FILE.csv.*found captions and act"),
        (["captions=null", "act=CAPTIONS"], "act and act_words go together"),
        (["optimise=10", "clip=null", "wav2clip=null"], "optimise is 10, and its loss needs `clip`"),
        (
            ["image_of_step=4", "optimise=3", "wav2clip=null"],
            "image_of_step is 4, counted from 0, and optimise=3 makes 3",
        ),
        (["image_of_step=1", "optimise=0"], "image_of_step is 1, counted from 0, and optimise=0 makes 1"),
        (["optimize=0"], "optimize: no such key; did you mean optimise"),
        (
            ["wav2clip=weights/none.safetensors"],
            "weights/none.safetensors: cannot be read .No such file.*; expected a file",
        ),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(root, words, message):
    words = [word.replace("CAPTIONS", str(root / "captions.csv")) for word in words]
    with refused(message):
        load_recipe("in_the_wild", settings(root, *words))


def test_a_recipe_is_known_by_the_bytes_of_its_captions_and_weights(root, tmp_path):
    path = write_csv(tmp_path / "captions.csv", ("id", "caption"), [("a", "a dog")])
    words = settings(root, f"captions={path}", "optimise=0")
    first, _ = load_recipe("in_the_wild", words), path.write_text("id,caption\na,a cat\n")
    second = load_recipe("in_the_wild", words)
    assert isinstance(first, CommandRecipe)
    assert isinstance(second, CommandRecipe)
    changed = {name for name in first.weights if first.weights[name] != second.weights[name]}
    assert changed == {str(path)}
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in first.weights)


def test_what_hears_is_named(root, tmp_path):
    (tmp_path / "ears").write_text("")
    act = ["captions=null", f"act={tmp_path / 'ears'}", f"act_words={tmp_path / 'ears'}", "optimise=0"]
    recipe = load_recipe("in_the_wild", settings(root, *act))
    assert isinstance(recipe, CommandRecipe)
    assert recipe.name == "in_the_wild[nouns+not_optimised+sd+steps4]"
    assert recipe.heard is not None
    assert (recipe.heard.sample_rate_hz, recipe.heard.seconds) == (32_000, 10)


def name_of(words: list[str]) -> str:
    recipe = load_recipe("in_the_wild", words)
    assert isinstance(recipe, CommandRecipe)
    return recipe.name


PUBLISHED = ["act=EARS", "act_words=EARS", "wav2clip=EARS"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "nouns+wav2clip"),  # of what comes along the nearest to the published one
        (["wav2clip=null"], "nouns+no_audio"),
        (["optimise=0"], "nouns+not_optimised"),
        (["optimise=10", "image_of_step=0"], "nouns+not_optimised"),
        (["optimise=12", "image_of_step=9"], "nouns+wav2clip"),  # the tenth, whatever is drawn behind it
        (["optimise=12"], "nouns+wav2clip+kept11"),
        (["steps=50"], "nouns+wav2clip+steps50"),
        (["guidance=5"], "nouns+wav2clip+guidance5"),
        (["revision=main"], "nouns+wav2clip+sd"),
        (["clip=openai/clip-vit-large-patch14"], "nouns+wav2clip+clip"),
        (["clip=openai/clip-vit-large-patch14", "optimise=0"], "nouns+not_optimised"),  # nothing is judged
        (["act=null", "act_words=null", "captioner=some/whisper"], "captioner+nouns+wav2clip"),
        (["checkpointing=false", "device=cpu"], "nouns+wav2clip"),  # the same numbers
    ],
)
def test_a_name_says_each_departure(tmp_path, words, name):
    (tmp_path / "ears").write_text("")
    said = [word.replace("EARS", str(tmp_path / "ears")) for word in (*PUBLISHED, *words)]
    assert name_of(said) == f"in_the_wild[{name}]"


@pytest.mark.parametrize(
    ("rows", "listed"),
    [
        ([("a", "a dog", ".1 .9"), ("b", "", "")], False),
        ([("a", "a dog", ".1 .9"), ("b", "rain", "")], True),  # one is enough
    ],
)
def test_a_name_says_where_a_list_scores_the_nouns_of_a_file(tmp_path, rows, listed):
    path = write_csv(tmp_path / "captions.csv", ("id", "caption", "nouns"), rows)
    assert name_of([f"captions={path}", "optimise=0"]) == f"in_the_wild[captions{'+nouns' * listed}+not_optimised]"


def test_the_longest_name_is_one(tmp_path):
    (tmp_path / "ears").write_text("")
    words = ["captioner=some/whisper", f"wav2clip={tmp_path / 'ears'}", "optimise=1000", "revision=main"]
    words += ["clip_revision=main", "steps=1000", "guidance=12.345678"]
    assert name_of(words) == "in_the_wild[captioner+nouns+wav2clip+kept999+sd+clip+steps1000+guidance12.3457]"


def test_the_record_says_who_scored_the_nouns(suite, root, tmp_path):
    rows = [("s000", "a dog", ".1 .9"), ("s001", "rain", "")]
    path = write_csv(tmp_path / "captions.csv", ("id", "caption", "nouns"), rows)
    assert direct(suite, tmp_path / "out", *settings(root, f"captions={path}", "optimise=0")) == 0
    told = {line["id"]: line["nouns_by"] for line in lines(tmp_path / "out" / "wild.jsonl")}
    assert told == {"s000": NOUN_FILE, "s001": NOUN_LIST}


def test_more_steps_than_the_schedule_has_are_refused(suite, root, tmp_path, capsys):
    assert direct(suite, tmp_path / "out", *settings(root, "optimise=0", "steps=1000")) == 2
    assert "steps: expected fewer than the 1000 of the model's schedule, found 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seed and --seeds: expected"),
        (["--list", "none.csv"], "--list none.csv: cannot be read as CSV"),
    ],
)
def test_a_wrong_word_is_one_line(suite, root, tmp_path, capsys, words, message):
    usual = ["--list", str(suite.folder / "sounds_whole.csv"), "--out", str(tmp_path / "out")]
    assert in_the_wild.main([*usual, *words, *settings(root, "optimise=0")]) == 2
    assert message in capsys.readouterr().err


def test_a_list_without_a_column_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("id,sound\na,b\n")
    with refused("expected the columns id, sound and sha256, found no sha256"):
        in_the_wild.read_list(tmp_path / "list.csv")


@pytest.mark.parametrize("ids", [["../../x"], ["/x"], ["a", "a"], [""], ["x" * 300], []])
def test_a_list_names_pictures_that_can_be_written(tmp_path, ids):
    path = tmp_path / "list.csv"
    path.write_text("id,sound,sha256\n" + "".join(f"{id},a.wav,0\n" for id in ids))
    with refused("--list .*; expected a list of a suite$"):
        in_the_wild.read_list(path)
