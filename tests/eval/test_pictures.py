"""A manifest joined with a suite: what can be held against an item, what is counted, and what is refused."""

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.baseline import main
from eval.pictures import read_made
from eval.suites.suite import Suite, read_suite
from tests.builders import SHA256, encoded, picture, refused
from tests.eval.made_built import make_made
from tests.eval.suites_built import make_suite
from train.manifest import GenerationSettings, read_manifest

# A line as `train.generate` wrote it before there were other kinds, and before there were levels.
LINE_OF_BEFORE = {
    "image": "images/000000-000-5.png",
    "mixed_with": [],
    "model": "/models/ours",
    "model_sha256": SHA256,
    "seed": 5,
    "settings": {
        "clip_seconds": 5.0,
        "gains_db": [0.0],
        "guidance": 4.5,
        "precision": "float32",
        "separate": False,
        "steps": 20,
        "target_lufs": -30.0,
    },
    "start_sec": 0.0,
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Which no test changes: four items."""
    return make_suite(tmp_path_factory.mktemp("suite"), 4, others=0)


@pytest.fixture
def folder(suite: Suite, tmp_path: Path) -> Path:
    """Two pictures of each of the first three items."""
    pictures = {f"s{n:03d}": [picture(10 * n + seed, (32, 32), "PNG") for seed in range(2)] for n in range(3)}
    make_made(suite, tmp_path / "made", pictures)
    return tmp_path / "made"


def change_lines(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = folder / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_pictures_are_joined_with_their_items_by_what_was_heard(suite: Suite, folder: Path) -> None:
    window = suite.items[1].window
    assert window is not None

    def mix_up(lines: list[dict[str, Any]]) -> None:
        lines.reverse()
        lines[0]["sound"] = "/elsewhere/renamed.flac"
        lines[2] |= {"sound": "/elsewhere/s001.flac", "sound_sha256": [window.sha256]}

    change_lines(folder, mix_up)
    made = read_made(suite, folder)

    assert [(shown.item.id, shown.seed) for shown in made.pictures] == [
        (f"s{n:03d}", seed) for n in range(3) for seed in range(2)
    ]
    assert made.missing == ("s003",)
    assert (made.model, made.unusable, made.failed, made.identical) == ("a model", {}, (), 0)
    assert made.pictures[0].path == folder / "images" / "s000-0.png"
    assert (made.heard, made.size, made.settings["command"]) == ("window and whole", (32, 32), ("paint",))


def test_a_line_of_before_there_were_kinds_is_read(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / LINE_OF_BEFORE["image"]).write_bytes(picture(0, (32, 32), "PNG"))
    sound = suite.folder / "windows" / "s002.flac"
    heard = suite.items[2].window
    assert heard is not None
    line = LINE_OF_BEFORE | {"sound": str(sound), "sound_sha256": [heard.sha256]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")

    (row,) = read_manifest(tmp_path)
    made = read_made(suite, tmp_path)

    assert row.settings == GenerationSettings(
        guidance=4.5,
        steps=20,
        precision="float32",
        target_lufs=-30.0,
        gains_db=(0.0,),
        separate=False,
        clip_seconds=5.0,
        level="window",
    )
    assert [(shown.item.id, shown.seed, shown.donor) for shown in made.pictures] == [("s002", 5, None)]
    assert (made.model, made.trained_on, made.heard) == ("/models/ours", (), "window")
    assert (made.settings["guidance"], made.settings["steps"]) == (4.5, 20)


def test_what_is_no_picture_is_counted_and_said(suite: Suite, folder: Path) -> None:
    images = folder / "images"
    (images / "s000-0.png").unlink()
    (images / "s000-1.png").write_bytes((images / "s000-1.png").read_bytes()[:100])
    (images / "s001-0.png").write_bytes(picture(1, (16, 32), "PNG"))
    (images / "s001-1.png").write_bytes(encoded(Image.new("F", (32, 32)), "TIFF"))

    made = read_made(suite, folder)

    assert list(made.unusable) == [f"images/s00{n}-{seed}.png" for n in range(2) for seed in range(2)]
    why = list(made.unusable.values())
    assert why[0] == "no such file"
    assert "truncated" in why[1]
    assert why[2] == "16 x 32 pixels, where most have 32 x 32"
    assert why[3] == "pixels of Pillow's mode F, which are no colours of 8 bits"
    assert [shown.item.id for shown in made.pictures] == ["s002", "s002"]
    assert made.missing == ("s000", "s001", "s003")


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own
def test_a_picture_that_would_not_fit_into_memory_is_not_decoded(suite: Suite, folder: Path) -> None:
    for name, side in (("s000-0", 12_000), ("s001-0", 60_000)):
        wide = bytearray(picture(0, (32, 32), "PNG"))
        wide[16:24] = side.to_bytes(4, "big") * 2
        wide[29:33] = zlib.crc32(wide[12:29]).to_bytes(4, "big")
        (folder / "images" / f"{name}.png").write_bytes(wide)

    unusable = read_made(suite, folder).unusable

    assert unusable["images/s000-0.png"] == "12000 x 12000 pixels; at most 100,000,000 are read"
    assert unusable["images/s001-0.png"] == "at most 100,000,000 pixels are read"


def test_equal_pictures_are_counted(suite: Suite, folder: Path) -> None:
    with Image.open(folder / "images" / "s000-0.png") as image:
        image.save(folder / "images" / "s002-1.png", compress_level=0)
    assert read_made(suite, folder).identical == 2


def test_a_window_that_is_the_whole_sound_does_not_tell_what_was_heard(tmp_path: Path) -> None:
    suite = make_suite(tmp_path, 2, others=0)
    first, window = suite.items[0], suite.items[1].window
    assert window is not None
    alike = replace(suite, items=(replace(first, window=first.sound), suite.items[1]))
    pictures = {item.id: [picture(n, (32, 32), "PNG")] for n, item in enumerate(suite.items)}
    assert make_made(alike, tmp_path / "made", pictures).heard == "whole"
    one = make_made(alike, tmp_path / "one", {first.id: pictures[first.id]})
    assert one.heard == "whole"

    def hear_the_window(lines: list[dict[str, Any]]) -> None:
        lines[1]["sound_sha256"] = [window.sha256]

    change_lines(tmp_path / "made", hear_the_window)
    assert read_made(alike, tmp_path / "made").heard == "window"


def test_a_folder_made_for_the_suite_as_it_was_is_refused(tmp_path: Path) -> None:
    before = make_suite(tmp_path, 4, others=0)
    words = ["--recipe", "references", "--suite", str(before.folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert len(read_made(before, tmp_path / "out").pictures) == 4

    now = make_suite(tmp_path, 5, others=0)

    with refused("was made for the suite small as it was before; make the pictures again"):
        read_made(now, tmp_path / "out")
    (tmp_path / "out" / "baseline.json").unlink()  # as of `train.generate`: the sounds alone tell
    assert read_made(now, tmp_path / "out").missing == ("s004",)
    now.folder.rename(tmp_path / "moved")
    assert len(read_made(read_suite(tmp_path / "moved"), tmp_path / "out").pictures) == 4


def test_what_failed_is_told(suite: Suite, folder: Path) -> None:
    (folder / "failed.csv").write_text('id,seed,error\ns003,0,"no, memory"\ns003,1,x\n')
    assert [(row.id, row.seed, row.error) for row in read_made(suite, folder).failed] == [
        ("s003", 0, "no, memory"), ("s003", 1, "x"),
    ]  # fmt: skip
    for damage in ("id,seed\ns003,0\n", "id,seed,error\ns003,first,x\n", "id,seed,error\ns003\n", "\xff"):
        (folder / "failed.csv").write_bytes(damage.encode("latin-1"))
        with refused(r"failed.csv: cannot be read .*; expected the columns id, seed, error"):
            read_made(suite, folder)


def _twice(lines: list[dict[str, Any]]) -> None:
    lines[1]["seed"] = 0


def _same_image(lines: list[dict[str, Any]]) -> None:
    lines[1]["image"] = lines[0]["image"]


def _foreign(lines: list[dict[str, Any]]) -> None:
    lines[1] |= {"sound": "/sounds/other.wav", "sound_sha256": [SHA256]}


def _mixed(lines: list[dict[str, Any]]) -> None:
    lines[1] |= {"mixed_with": ["/b.wav"], "sound_sha256": [*lines[1]["sound_sha256"], SHA256]}


def _two_models(lines: list[dict[str, Any]]) -> None:
    lines[1]["model"] = "another"


def _outside(lines: list[dict[str, Any]]) -> None:
    lines[1]["image"] = "../x.png"


def _no_kind(lines: list[dict[str, Any]]) -> None:
    lines[1]["settings"]["kind"] = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, "names item s000 with seed 0 twice; a manifest has each once"),
        (_same_image, "names images/s000-0.png for 2 images"),
        (_foreign, "1 of 6 images are of sounds that are not in the suite small, such as /sounds/other.wav"),
        (_mixed, "1 of 6 images are of mixtures of sounds, such as images/s000-1.png, and the suite small has single"),
        (_two_models, "expected images of one model, found 2"),
        (_outside, "names ../x.png"),
        (_no_kind, "manifest.jsonl, line 2: settings"),
        (list.clear, "its manifest names no image"),
    ],
)
def test_a_manifest_that_tells_no_story_is_refused(
    change: Callable[[list[dict[str, Any]]], None], message: str, suite: Suite, folder: Path
) -> None:
    change_lines(folder, change)
    with refused(re.escape(message)):
        read_made(suite, folder)


def test_no_manifest_is_said(suite: Suite, tmp_path: Path) -> None:
    with refused("manifest.jsonl: cannot be read"):
        read_made(suite, tmp_path)


@pytest.mark.parametrize(
    "damage", ["", "{}", "[]", '{"version":1}', "\xff\xfe", '{"version":"1","suite":1}', "nul" + "\0" * 9]
)
def test_a_damaged_record_is_one_line(damage: str, suite: Suite, folder: Path) -> None:
    (folder / "baseline.json").write_bytes(damage.encode("latin-1"))
    with refused("baseline.json: cannot be read"):
        read_made(suite, folder)


def test_a_record_of_a_later_version_is_refused(suite: Suite, tmp_path: Path) -> None:
    assert main(["--recipe", "references", "--suite", str(suite.folder), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "baseline.json"
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with refused("baseline.json: expected version 1, found 2"):
        read_made(suite, tmp_path / "out")


@pytest.mark.parametrize("recipe", ["references", "shuffled", "images"])
def test_pictures_that_were_changed_since_they_were_taken_are_refused(
    recipe: str, suite: Suite, folder: Path, tmp_path: Path
) -> None:
    words = ["--recipe", recipe, "--suite", str(suite.folder), "--out", str(tmp_path / "out")]
    more = [f"images={folder / 'images'}", "name=theirs"] if recipe == "images" else []
    assert main([*words, *more]) == 0
    first, second, *_ = sorted((tmp_path / "out" / "images").iterdir())
    assert len(read_made(suite, tmp_path / "out").pictures) > 2
    first.write_bytes(second.read_bytes())
    with refused("out: its pictures were changed since `eval.baseline` took them; make the folder again"):
        read_made(suite, tmp_path / "out")


def test_a_pipe_is_no_picture_and_is_not_waited_for(suite: Suite, folder: Path) -> None:
    path = folder / "images" / "s000-0.png"
    path.unlink()
    os.mkfifo(path)
    assert read_made(suite, folder).unusable == {"images/s000-0.png": "no regular file"}
