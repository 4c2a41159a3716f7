"""Folders of pictures that need no model: the references, those of others shuffled, and what another model made."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval.baseline import main
from eval.baselines.folder import hold, read_made_for
from eval.pictures import read_made
from eval.suites.entries import Selection
from eval.suites.suite import Suite
from eval.suites.write import write_suite
from sonify.io.write import sha256_of
from tests.builders import picture, write_csv
from tests.eval.suites_built import folder_config, make_entries, make_suite
from train.manifest import ControlSettings, OutsideSettings, read_manifest

LABELS = ("dog", "rain", "train")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Which no test changes: six items of three labels."""
    return make_suite(tmp_path_factory.mktemp("suite"), 6, LABELS, others=0)


def run(suite: Suite, recipe: object, out: Path, *words: object, seeds: int = 1) -> int:
    return main(
        [
            *("--recipe", str(recipe), "--suite", str(suite.folder), "--seeds", str(seeds), "--out", str(out)),
            *map(str, words),
        ]
    )


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval.baseline: ")]
    assert len(lines) == 1, lines
    return lines[0]


def write_pictures(folder: Path, suite: Suite, seeds: int = 2, pattern: str = "{id}-{seed}.png") -> Path:
    """As another model's folder may look."""
    for n, item in enumerate(suite.items):
        for seed in range(seeds):
            path = folder / pattern.format(id=item.id, seed=seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(50 * n + seed, (32, 32), "PNG"))
    return folder


# --- references


def test_the_references_are_the_true_pictures_byte_for_byte(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "out"

    assert run(suite, "references", out, "--seed", 4, seeds=2) == 0

    rows = read_manifest(out)
    assert [(row.image, row.seed) for row in rows] == [(f"images/s{n:03d}-4.png", 4) for n in range(6)]
    assert {(row.model, row.model_sha256) for row in rows} == {("references", rows[0].model_sha256)}
    assert rows[1].settings == ControlSettings(kind="control", control="references", of="references", donor="s001")
    for row, item in zip(rows, suite.items, strict=True):
        assert sha256_of(out / row.image) == item.references[0].sha256
        assert (row.sound, row.sound_sha256) == (str(suite.folder / item.sound.file), (item.sound.sha256,))
    made = read_made(suite, out)
    assert [(picture.item.id, picture.donor) for picture in made.pictures] == [(item.id, None) for item in suite.items]
    assert (made.missing, made.failed, made.unusable, made.identical) == ((), (), {}, 0)
    made_for = read_made_for(out)
    assert made_for is not None
    assert (made_for.first_seed, made_for.seeds) == (4, 1)  # what there is, and not what was asked for


def test_of_several_references_each_is_there_once(tmp_path: Path) -> None:
    entries = make_entries(tmp_path / "media", 3, LABELS)
    more = replace(entries[0], more_images=(entries[1].image, entries[2].image))  # pyright: ignore[reportArgumentType]
    bare = replace(entries[2], image=None)
    config = folder_config(tmp_path / "media", others=0)
    suite = write_suite(config, Selection(wanted=(more, entries[1], bare), rest=()), tmp_path / "suite")

    assert run(suite, "references", tmp_path / "out", seeds=5) == 0

    made = read_made(suite, tmp_path / "out")
    hashes = [stored.sha256 for stored in suite.items[0].references]
    assert [picture.sha256 for picture in made.pictures[:3]] == hashes
    assert made.missing == ("s002",)
    assert [(row.id, row.error) for row in made.failed] == [("s002", "the item has no reference picture")]
    made_for = read_made_for(tmp_path / "out")
    assert made_for is not None
    assert made_for.seeds == 3
    assert run(suite, "references", tmp_path / "out", seeds=1) == 0


def test_a_reference_that_is_not_as_it_was_prepared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(tmp_path, 2, others=0)
    (suite.folder / "images" / "s001.png").write_bytes(picture(9, (32, 32), "PNG"))
    assert run(suite, "references", tmp_path / "out") == 2
    assert "s001.png: is not as it was prepared" in last_line(capsys)
    (suite.folder / "images" / "s001.png").unlink()
    assert run(suite, "references", tmp_path / "out") == 2
    assert "s001.png: cannot be read (No such file" in last_line(capsys)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_suite_without_pictures_has_no_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = make_suite(tmp_path, 2, others=0, pictures=False)
    for recipe in ("references", "shuffled"):
        assert run(suite, recipe, tmp_path / "out") == 2
        assert "has no reference pictures, and the control is made of them" in last_line(capsys)


# --- shuffled


def test_shuffled_references_are_those_of_other_labels(suite: Suite, tmp_path: Path) -> None:
    assert run(suite, "shuffled", tmp_path / "out") == 0

    made = read_made(suite, tmp_path / "out")
    items = {item.id: item for item in suite.items}
    assert (made.model, len(made.pictures), made.missing) == ("shuffled[references]", 6, ())
    donors = [picture.donor or "" for picture in made.pictures]
    assert sorted(donors) == sorted(items)
    for shown, donor in zip(made.pictures, donors, strict=True):
        assert items[donor].labels != shown.item.labels
        assert shown.sha256 == items[donor].references[0].sha256
    settings = [row.settings for row in read_manifest(tmp_path / "out")]
    assert settings == [
        ControlSettings(kind="control", control="shuffled", of="references", donor=donor) for donor in donors
    ]


def test_shuffled_again_is_the_same_and_with_another_seed_is_not(suite: Suite, tmp_path: Path) -> None:
    for name, words in (("a", []), ("b", []), ("c", ["seed=1"])):
        assert run(suite, "shuffled", tmp_path / name, *words) == 0
    a, b, c = ((tmp_path / name / "manifest.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_a_models_pictures_are_shuffled_seed_by_seed(suite: Suite, tmp_path: Path) -> None:
    write_pictures(tmp_path / "theirs", suite)
    (tmp_path / "theirs" / "s002-1.png").unlink()
    for seed in range(2):
        (tmp_path / "theirs" / f"s003-{seed}.png").unlink()
    assert run(suite, "images", tmp_path / "model", f"images={tmp_path / 'theirs'}", "name=them", seeds=2) == 0

    assert run(suite, "shuffled", tmp_path / "out", f"of={tmp_path / 'model'}", seeds=2) == 0

    made = read_made(suite, tmp_path / "out")
    theirs = {(p.item.id, p.seed): p.sha256 for p in read_made(suite, tmp_path / "model").pictures}
    assert made.model == "shuffled[them]"
    assert len(made.pictures) == 9
    assert all(shown.sha256 == theirs[shown.donor or "", shown.seed] for shown in made.pictures)
    assert all(shown.donor not in (None, "s003") for shown in made.pictures)
    errors = {(row.id, row.seed): row.error for row in made.failed}
    assert len(errors) == 3
    assert errors["s003", 0] == errors["s003", 1] == "them has no picture of it"
    assert "them has no picture of its donor s002 with this seed" in errors.values()


def test_where_one_label_is_that_of_most_there_is_no_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(tmp_path, 5, ("dog", "dog", "rain"), others=0)
    assert run(suite, "shuffled", tmp_path / "out") == 2
    assert re.search("5 items cannot all be given .*4 of them are of the label 'dog'", last_line(capsys))
    assert not (tmp_path / "out").exists()


def test_what_is_shuffled_must_be_there(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(suite, "references", tmp_path / "model") == 0
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    for words, message in (
        ([f"of={tmp_path / 'nowhere'}"], "of: no such file or folder"),
        ([f"of={tmp_path / 'empty'}"], "manifest.jsonl: cannot be read"),
        ([f"of={tmp_path / 'model'}", "--seed", 7], "has no picture with the seeds 7 to 7; ask for those it has"),
        (["of=s3://bucket/model"], "of: .*expected a path on this machine"),
        (["control=x"], "control.*no such key"),
    ):
        assert run(suite, "shuffled", tmp_path / "out", *words) == 2
        assert re.search(message, last_line(capsys))


# --- pictures of another model


@pytest.mark.parametrize("pattern", ["{id}-{seed}.png", "{seed}/{id}/picture.png"])
def test_a_folder_of_pictures_is_taken_in(pattern: str, suite: Suite, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "theirs", suite, pattern=pattern)
    about = ["name=them", "commit=abc", "trained_on=[vegas]", "image_px=32", "settings.steps=50"]
    words = [
        f"images={folder}",
        f"pattern={pattern!r}",
        *about,
        "heard={sample_rate_hz: 44100, seconds: 5, repeat: pad}",
    ]

    assert run(suite, "images", tmp_path / "out", *words, seeds=2) == 0

    rows = read_manifest(tmp_path / "out")
    assert len(rows) == 12
    assert rows[0].model == "them"
    settings = rows[0].settings
    assert isinstance(settings, OutsideSettings)
    assert (settings.command, settings.commit, settings.image_px, settings.steps) == ((), "abc", 32, 50)
    assert settings.heard is not None
    assert settings.heard.repeat == "pad"
    for row in rows:
        id, seed = Path(row.image).stem.split("-")
        assert (tmp_path / "out" / row.image).read_bytes() == (folder / pattern.format(id=id, seed=seed)).read_bytes()
    shutil.rmtree(folder)  # it stands alone
    assert read_made(suite, tmp_path / "out").trained_on == ("vegas",)
    assert len(read_made(suite, tmp_path / "out").pictures) == 12


def test_other_pictures_are_another_model(suite: Suite, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "theirs", suite, 1)
    assert run(suite, "images", tmp_path / "a", f"images={folder}") == 0
    assert run(suite, "images", tmp_path / "b", f"images={folder}") == 0
    (folder / "s000-0.png").write_bytes(picture(999, (32, 32), "PNG"))
    assert run(suite, "images", tmp_path / "c", f"images={folder}") == 0
    a, b, c = (read_manifest(tmp_path / name)[0].model_sha256 for name in "abc")
    assert a == b != c


def test_one_picture_an_item_needs_one_seed(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pictures(tmp_path / "theirs", suite, 1, "{id}.png")
    words = [f"images={folder}", "pattern='{id}.png'"]
    assert run(suite, "images", tmp_path / "out", *words, seeds=2) == 2
    assert "has no {seed}, so there is one picture an item: expected --seeds 1, found 2" in last_line(capsys)
    assert run(suite, "images", tmp_path / "out", *words, "--seed", 3) == 0
    assert {row.seed for row in read_manifest(tmp_path / "out")} == {3}


def test_what_is_missing_damaged_or_of_nobody_is_counted_and_named(
    suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "theirs", suite, 1)
    (folder / "s000-0.png").unlink()
    (folder / "s001-0.png").write_bytes((folder / "s001-0.png").read_bytes()[:200])
    (folder / "s002-0.png").write_bytes(picture(2, (16, 16), "PNG"))
    for name in ("holiday.png", "s003-9.png", "S004-0.png", "zebra.jpg"):
        (folder / name).write_bytes(picture(3))
    (folder / "notes.txt").touch()

    assert run(suite, "images", tmp_path / "out", f"images={folder}") == 0

    named = "4 of no item and seed that is asked for: S004-0.png, holiday.png, s003-9.png, ..."
    assert caplog.messages == [f"{folder}: {named}"]
    out = capsys.readouterr().out
    assert out == f"3 pictures of 3 of 6 items in {tmp_path / 'out'}; 3 are not there: {tmp_path / 'out/failed.csv'}\n"
    made = read_made(suite, tmp_path / "out")
    assert made.missing == ("s000", "s001", "s002")
    assert [row.id for row in made.failed] == ["s000", "s001", "s002"]
    assert made.failed[0].error == "s000-0.png: no such file"
    assert made.failed[1].error.startswith("s001-0.png: ")
    assert made.failed[2].error == "s002-0.png: 16 x 16 pixels, where most have 32 x 32"


def test_a_table_names_pictures_too(suite: Suite, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "theirs", suite, 2, "{seed}/{id}_made.png")
    rows = [(item.id, f"{seed}/{item.id}_made.png", seed) for item in suite.items for seed in range(2)]
    by_id = write_csv(tmp_path / "ids.csv", ("id", "image", "seed"), [*rows, ("nobody", "0/x.png", 0)])
    sounds = [(suite.folder / f"windows/{id}.flac", image) for id, image, seed in rows if seed == 1]
    by_sound = write_csv(tmp_path / "sounds.csv", ("sound", "image"), sounds)

    words = [f"images={folder}", f"table={by_id}"]
    assert run(suite, "images", tmp_path / "a", *words, seeds=2) == 0
    assert run(suite, "images", tmp_path / "b", f"images={folder}", f"table={by_sound}") == 0

    assert run(suite, "images", tmp_path / "c", *words) == 0  # other seeds are not asked for

    a, b, c = (read_made(suite, tmp_path / name) for name in "abc")
    assert [(shown.item.id, shown.seed) for shown in c.pictures] == [(item.id, 0) for item in suite.items]
    assert len(a.pictures) == 12
    assert [shown.sha256 for shown in b.pictures] == [shown.sha256 for shown in a.pictures if shown.seed == 1]
    assert {shown.seed for shown in b.pictures} == {0}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,picture\ns000,a.png\n", "expected the columns id .or sound. and image, found id, picture"),
        ("", "expected the columns id .or sound. and image, found no row"),
        ("image\na.png\n", "expected the columns id"),
        (
            "id,image\ns000,../a.png\n",
            "line 2: expected an id and an image below the folder of the images, found 's000'",
        ),
        ("id,image\ns000,/etc/passwd\n", "line 2: expected an id and an image below"),
        ("id,image\ns000\n", "line 2: expected an id and an image"),
        ("id,image\ns000,s000-0.png\ns000,s000-1.png\n", "line 3: item s000 with seed 0 stands in it twice"),
        ("id,image,seed\ns000,s000-0.png,first\n", "line 2: seed: expected a whole number, found 'first'"),
        ("id,image,seed\ns000,s000-0.png," + "9" * 5000, "line 2: seed: expected a whole number"),
        ("id,image\nnobody,s000-0.png\n", "no picture of the suite small"),
        (b"id,image\n\xff\xfe\n", "cannot be read as CSV"),
    ],
)
def test_a_wrong_table_is_one_line(
    table: str | bytes, message: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "theirs", suite)
    (tmp_path / "t.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    words = [f"images={tmp_path / 'theirs'}", f"table={tmp_path / 't.csv'}"]
    assert run(suite, "images", tmp_path / "out", *words) == 2
    assert re.search(message, last_line(capsys))
    assert not (tmp_path / "out").exists()


def test_a_wrong_folder_or_pattern_is_one_line(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "theirs", suite)
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([f"images={tmp_path / 'empty'}"], "no picture of the suite small: expected s000-0.png; .*no such file"),
        ([f"images={folder / 's000-0.png'}"], "images: expected a folder, found a file"),
        ([f"images={folder}", "pattern=all.png"], "pattern: expected {id} in it"),
        ([f"images={folder}", "pattern='../{id}.png'"], "leaves the folder of the images: ../s000.png"),
        ([f"images={tmp_path / 'nowhere'}"], "images: no such file or folder"),
        ([f"images={folder}", "table=nowhere.csv"], "table: no such file"),
        (["images=s3://bucket/theirs"], "images: .*expected a path on this machine"),
    ):
        assert run(suite, "images", tmp_path / "out", *words) == 2
        assert re.search(message, last_line(capsys))


def test_equal_pictures_are_refused_unless_they_are_meant(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "theirs", suite)
    with Image.open(folder / "s001-0.png") as image:
        image.save(folder / "s004-1.png", compress_level=1)  # other bytes, the same pixels
    words = [f"images={folder}"]
    assert run(suite, "images", tmp_path / "out", *words, seeds=2) == 3
    assert "those of s001 with seed 0 and of s004 with seed 1 are the same, pixel for pixel" in last_line(capsys)
    assert not (tmp_path / "out").exists()
    assert run(suite, "images", tmp_path / "out", *words, "deterministic=true", seeds=2) == 0
    assert read_made(suite, tmp_path / "out").identical == 2


def test_the_same_command_makes_a_folder_of_its_own_again_and_no_others(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(suite, "references", out) == 0
    before = (out / "manifest.jsonl").read_bytes()
    (out / "images" / "s000-0.png").unlink()
    assert run(suite, "references", out) == 0
    assert (out / "manifest.jsonl").read_bytes() == before
    assert (out / "images" / "s000-0.png").is_file()
    capsys.readouterr()
    assert run(suite, "shuffled", out) == 2
    assert "was made by references, not by shuffled" in last_line(capsys)
    (out / "baseline.json").write_text(json.dumps({"version": 2}))
    assert run(suite, "references", out) == 2
    assert "baseline.json: cannot be read" in last_line(capsys)


def test_made_again_what_else_lies_in_the_folder_stays(suite: Suite, tmp_path: Path) -> None:
    out, inner = tmp_path / "out", tmp_path / "out" / "rep"
    assert run(suite, "references", out) == 0
    (out / "manifest.jsonl").rename(tmp_path / "before")
    inner.mkdir()
    (inner / "report.json").write_text("{}")
    (out / "images" / "mine.png").touch()
    (out / "images" / "s000-0.jpg").touch()  # of before, when it was of another kind

    assert run(suite, "references", out) == 0

    assert (out / "manifest.jsonl").read_bytes() == (tmp_path / "before").read_bytes()
    assert (inner / "report.json").read_text() == "{}"
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        "mine.png", *(f"s{n:03d}-0.png" for n in range(6))
    ]  # fmt: skip


@pytest.mark.parametrize("inside", [".", "images", "new/deep", ".."])
def test_pictures_in_or_around_the_suite_are_refused(
    inside: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(suite.folder.parent.rglob("*"))
    (tmp_path / "link").symlink_to(suite.folder)
    for out in (suite.folder / inside, tmp_path / "link" / inside):
        assert run(suite, "references", out) == 2
        assert f"--out {out}: expected a folder beside the suite's" in last_line(capsys)
    assert sorted(suite.folder.parent.rglob("*")) == before


def test_a_name_that_is_no_text_is_refused(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(suite, "references", tmp_path / "a\udcff") == 2
    assert r"--out: expected a place whose name is UTF-8, found" in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_two_commands_in_one_folder_are_one_and_a_line(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with hold(out):
        assert run(suite, "references", out) == 2
    assert f"--out {out}: another command is at work in it" in last_line(capsys)
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert run(suite, "references", out) == 0


def test_a_link_at_a_name_of_ours_is_not_followed(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    assert run(suite, "references", out) == 0
    victim.write_text("secret")
    for name in (".lock", "failed.csv", ".failed.csv.partial", "manifest.jsonl", "baseline.json", "images"):
        if (out / name).exists():
            (out / name).rename(tmp_path / "aside")
        (out / name).symlink_to(victim)
        assert run(suite, "references", out) == 3
        assert f"{out / name}: expected a {'folder' if name == 'images' else 'file'}, found a link" in last_line(capsys)
        (out / name).unlink()
        if (tmp_path / "aside").exists():
            (tmp_path / "aside").rename(out / name)
    (out / "images" / "s000-0.png").unlink()
    (out / "images" / "s000-0.png").symlink_to(victim)
    assert run(suite, "references", out) == 0
    assert victim.read_text() == "secret"
    assert not (out / "images" / "s000-0.png").is_symlink()
