"""Programs of other people, run for real: what they make is taken in, and what they do wrong is one clear line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.baseline import main
from eval.baselines import runner
from eval.baselines.recipe import CommandRecipe, load_recipe
from eval.pictures import read_made
from eval.suites.entries import Selection
from eval.suites.suite import Suite, read_suite
from eval.suites.write import write_suite
from sonify.io.commits import digest_of
from sonify.io.write import sha256_of
from tests.builders import RATE_HZ, SHA256, tone, write_sound
from tests.eval.baselines.programs import ALIKE, ALL, CHILD, HANGS, SLOW, WORDS, first_is, then, write_recipe
from tests.eval.suites_built import folder_config, make_entries, make_suite
from tests.processes import is_gone
from tests.tiny_networks import write_tiny_pixart
from train.manifest import GenerationSettings, Heard, OutsideSettings, read_manifest

LABELS = ("dog", "rain", "train", "cat")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Which no test changes."""
    return suite_of_its_own(tmp_path_factory.mktemp("suite"))


def suite_of_its_own(folder: Path, sounds: int = 4) -> Suite:
    return make_suite(folder, sounds, LABELS, others=0)


def run(suite: Suite, recipe: Path, out: Path, *words: object, seeds: int = 2) -> int:
    return main(
        [
            *("--recipe", str(recipe), "--suite", str(suite.folder), "--seeds", str(seeds), "--out", str(out)),
            *map(str, words),
        ]
    )


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What went wrong: the one line of the standard error that the command itself wrote."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval.baseline: ")]
    assert len(lines) == 1, lines
    return lines[0]


def failures(out: Path) -> list[dict[str, str]]:
    with (out / "failed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_program_makes_is_taken_in(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about: dict[str, Any] = {
        "repository": "https://example.org/model",
        "commit": "abc",
        "weights": {"run.py": ""},
        "trained_on": ["vggsound_train"],
        "heard": {"sample_rate_hz": 16000, "seconds": 10, "repeat": "tile"},
        "image_px": 32,
        "settings": {"guidance": 7.5, "steps": 50},
        "licence": "none",
    }
    write_recipe(tmp_path)
    about["weights"]["run.py"] = sha256_of(tmp_path / "model" / "run.py")
    recipe = write_recipe(tmp_path, **about)
    out = tmp_path / "out"

    assert run(suite, recipe, out, "--seed", 3) == 0

    assert capsys.readouterr().out == f"8 pictures of 4 of 4 items in {out}\n"
    rows = read_manifest(out)
    assert [(row.image, row.seed, row.start_sec) for row in rows] == [
        (f"images/s{n:03d}-{seed}.png", seed, 0.0) for n in range(4) for seed in (3, 4)
    ]
    assert [row.sound for row in rows[::2]] == [str(suite.folder / f"windows/s{n:03d}.flac") for n in range(4)]
    assert [row.sound_sha256 for row in rows[::2]] == [(item.window.sha256,) for item in suite.items if item.window]
    assert rows[0].settings == OutsideSettings(
        kind="outside",
        command=(sys.executable, "run.py", *WORDS),
        repository="https://example.org/model",
        commit="abc",
        heard=Heard(sample_rate_hz=16000, seconds=10, repeat="tile"),
        image_px=32,
        guidance=7.5,
        steps=50,
        trained_on=("vggsound_train",),
    )
    assert {row.model for row in rows} == {"standin"}
    program = {sys.executable: sha256_of(Path(sys.executable)), **about["weights"]}
    digest = digest_of(["abc", about["weights"], [sys.executable, "run.py", *WORDS], {}, program])
    assert {row.model_sha256 for row in rows} == {digest}
    made = read_made(suite, out)
    assert (len(made.pictures), made.missing, made.failed, made.identical) == (8, (), (), 0)
    assert made.trained_on == ("vggsound_train",)
    assert failures(out) == []


def test_a_recipe_that_takes_whole_sounds_is_given_them(tmp_path: Path) -> None:
    entries = make_entries(tmp_path / "media", 4, seconds=12.0)
    late = np.concatenate([np.zeros(6 * RATE_HZ), tone(1, 6.0)])
    write_sound(entries[1].audio, late)  # nothing is heard in its first window
    config = folder_config(tmp_path / "media", heard={"windows": "first"})
    suite = write_suite(config, Selection(wanted=tuple(entries), rest=()), tmp_path / "suite")

    assert run(suite, write_recipe(tmp_path, takes="sounds_whole.csv"), tmp_path / "whole", seeds=1) == 0
    assert run(suite, write_recipe(tmp_path), tmp_path / "windows", seeds=1) == 0

    whole, windows = (read_manifest(tmp_path / name) for name in ("whole", "windows"))
    assert [row.sound_sha256 for row in whole] == [(item.sound.sha256,) for item in suite.items]
    assert [row.sound_sha256 for row in windows] == [(item.window.sha256,) for item in suite.items if item.window]
    assert read_made(suite, tmp_path / "whole").missing == ()
    assert read_made(suite, tmp_path / "windows").missing == ("s001",)


def test_little_of_the_environment_is_passed_on_and_no_shell_is_there(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    body = "print(json.dumps([dict(os.environ), sys.argv[-1], os.getcwd()]))\n" + ALL
    recipe = write_recipe(tmp_path, body, env={"MINE": "at {out}"})
    out = tmp_path / "out $(touch owned)"

    assert run(suite, recipe, out) == 0

    environment, last, cwd = json.loads((out / "log.txt").read_text())
    environment.pop("LC_CTYPE", None)  # Python's own
    assert environment == {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG")},
        "MINE": f"at {out}",
    }
    assert (last, cwd) == ("2", str(tmp_path / "model"))
    assert not list(tmp_path.rglob("owned"))


def test_without_a_working_folder_it_works_where_it_writes(suite: Suite, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "Path('mine.txt').write_text('x')\n" + ALL, cwd=None)
    recipe.write_text(recipe.read_text().replace("run.py", str(tmp_path / "model" / "run.py")))
    assert run(suite, recipe, tmp_path / "out") == 0
    assert (tmp_path / "out" / "mine.txt").is_file()


# --- single pictures


def test_what_failed_is_counted_and_tried_again(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
for row, seed in pairs:
    name = f"images/{row['id']}-{seed}.png"
    if (row["id"], seed) == ("s000", 0) and not (out / "second").exists():
        answer(id=row["id"], seed=seed, error="out of\\nmemory")
    elif (row["id"], seed) == ("s001", 0) and not (out / "second").exists():
        (out / name).write_bytes(b"no picture")
        answer(id=row["id"], seed=seed, image=name)
    elif (row["id"], seed) == ("s001", 1) and not (out / "second").exists():
        picture(row, seed).save(out / name)
        (out / name).write_bytes((out / name).read_bytes()[:60])
        answer(id=row["id"], seed=seed, image=name)
    elif (row["id"], seed) == ("s002", 0) and not (out / "second").exists():
        picture(row, seed, (16, 16)).save(out / name)
        answer(id=row["id"], seed=seed, image=name)
    elif (row["id"], seed) == ("s002", 1) and not (out / "second").exists():
        answer(id=row["id"], seed=seed, image="images/none.png")
    elif (row["id"], seed) == ("s003", 0) and not (out / "second").exists():
        Image.new("I;16", (32, 32), 300).save(out / name)
        answer(id=row["id"], seed=seed, image=name)
    else:
        make(row, seed)
(out / "second").touch()
"""
    recipe, out = write_recipe(tmp_path, body), tmp_path / "out"

    assert run(suite, recipe, out) == 0

    assert capsys.readouterr().out == f"2 pictures of 2 of 4 items in {out}; 6 are not there: {out / 'failed.csv'}\n"
    assert [(row["id"], row["seed"]) for row in failures(out)] == [
        ("s000", "0"), ("s001", "0"), ("s001", "1"), ("s002", "0"), ("s002", "1"), ("s003", "0"),
    ]  # fmt: skip
    errors = [row["error"] for row in failures(out)]
    assert errors[0] == "out of memory"
    assert errors[1] == "images/s001-0.png: not a picture of a known kind"
    assert "truncated" in errors[2]
    assert errors[3] == "images/s002-0.png: 16 x 16 pixels, where most have 32 x 32"
    assert errors[4] == "images/none.png: no such file"
    assert "mode I;16" in errors[5]
    made = read_made(suite, out)
    assert made.missing == ("s001", "s002")
    assert [(row.id, row.seed) for row in made.failed] == [(row["id"], int(row["seed"])) for row in failures(out)]
    kept = (out / "images" / "s000-1.png").stat().st_mtime_ns

    assert run(suite, recipe, out) == 0

    assert len(read_manifest(out)) == 8
    assert failures(out) == []
    assert (out / "images" / "s000-1.png").stat().st_mtime_ns == kept


def test_a_program_that_makes_nothing_is_an_error(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "for row, seed in pairs:\n    answer(id=row['id'], seed=seed, error='no GPU')\n")
    assert run(suite, recipe, tmp_path / "out") == 3
    assert "none of 8 pictures can be used; the first: no GPU" in last_line(capsys)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert len(failures(tmp_path / "out")) == 8


# --- what ends a run

# What a program does, and what is said of it.
BAD = {
    "dies": (
        "make(*pairs[0])\nprint('some')\nsys.exit('CUDA error: no device')",
        "ended with exit code 1 with 1 of 8 pictures answered; it said: CUDA error: no device",
    ),
    "killed": ("os.kill(os.getpid(), 9)", r"was ended by a signal \(Killed\) .*; it said nothing"),
    "binary": ("sys.stdout.buffer.write(bytes(range(256)) * 9)\nsys.exit(3)", "ended with exit code 3 .*; it said: "),
    "hangs": (HANGS, r"was ended after 1 s \(timeout_s_per_image: 0.125\) .*; it said: loading"),
    "deaf": ("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + HANGS, "was ended after 1 s"),
    "twice": (
        then("answer(id='s000', seed=0, image='images/s000-1.png')"),
        "outputs.jsonl, line 9: s000 with seed 0 is answered twice",
    ),
    "same twice": (
        then("answer(id='s000', seed=0, image='images/s000-0.png')"),
        "outputs.jsonl, line 9: s000 with seed 0 is answered twice",
    ),
    "unknown id": (
        then("answer(id='s009', seed=0, image='images/s000-0.png')"),
        "outputs.jsonl, line 9: s009 with seed 0 was not asked for",
    ),
    "unknown seed": (then("answer(id='s000', seed=7, error='x')"), "s000 with seed 7 was not asked for"),
    "missing": ("for pair in pairs[:-2]:\n    make(*pair)", "has not answered 2 of 8, such as s003 with seed 0"),
    "nothing": ("", "has not answered 8 of 8, such as s000 with seed 0"),
    "not json": (
        then(r"(out / 'outputs.jsonl').open('ab').write(b'\x00\xff{\n')"),
        "outputs.jsonl, line 9: expected a JSON object with id, seed and image or error",
    ),
    "not whole": (then("answer(id='s000')"), "line 9: expected a JSON object .*seed: "),
    "both": (then("answer(id='s000', seed=0, image='a.png', error='b')"), "line 9: expected either image or error"),
    "above": (
        first_is("'../x.png'", "first.save(out.parent / 'x.png')"),
        r"names '../x.png', which is not inside \{out\}",
    ),
    "absolute": (
        first_is("str(out.parent / 'x.png')", "first.save(out.parent / 'x.png')"),
        r"names '/.*/x.png', which is not inside \{out\}",
    ),
    "link": (
        first_is("'images/x.png'", "first.save(out.parent / 'x.png'); os.symlink('../../x.png', out / 'images/x.png')"),
        "images/x.png: no regular file of the folder",
    ),
    "linked folder": (
        first_is("'more/x.png'", "first.save(out.parent / 'x.png'); os.symlink('..', out / 'more')"),
        "more/x.png: no regular file of the folder",
    ),
    "pipe": (first_is("'images/p.png'", "os.mkfifo(out / 'images/p.png')"), "images/p.png: no regular file"),
    "answers elsewhere": (
        then("(out / 'outputs.jsonl').rename(out.parent / 'o'); os.symlink('../o', out / 'outputs.jsonl')"),
        "outputs.jsonl cannot be read .*no regular file",
    ),
    "answers in a pipe": ("os.mkfifo(out / 'outputs.jsonl')", "outputs.jsonl cannot be read .*no regular file"),
    "changes the suite": (
        then("open(rows[0]['sound'], 'ab').write(b'x')"),
        r"changed the suite \(.*windows/s000.flac\); it may write into \{out\} alone",
    ),
    "adds to the suite": (then("Path(rows[0]['sound']).with_name('x.txt').touch()"), r"changed the suite \(.*/x.txt\)"),
    "changes its folder": (then("Path('cache.bin').touch()"), r"changed its working folder \(.*/cache.bin\)"),
    "changes and dies": ("Path('cache.bin').touch()\nsys.exit(1)", r"changed its working folder \(.*/cache.bin\)"),
    "alike": (
        ALIKE,
        "of 8 pictures 2 are different; those of s000 with seed 0 and of s001 with seed 0 are the same",
    ),
    "wrong manifest": (
        "(out / 'manifest.jsonl').write_text('{}')",
        "wrote a manifest that cannot be taken: .*manifest.jsonl, line 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_program_does_wrong_is_one_line_and_nothing_is_half_written(
    name: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, message = BAD[name]
    if "the suite" in name:
        suite = suite_of_its_own(tmp_path)
    monkeypatch.setattr(runner, "GRACE_SEC", 0.5)
    slow = name in ("hangs", "deaf")
    recipe = write_recipe(tmp_path, body + "\n", timeout_s_per_image=0.125 if slow else 20)

    assert run(suite, recipe, tmp_path / "out") == 3

    line = last_line(capsys)
    assert line.startswith("eval.baseline: standin: ")
    assert line.isprintable()
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


# What a program leaves at a name of ours, and what is said of it: then, and when the same command is run again.
SPOILS = {
    "manifest.jsonl": ("os.mkdir(at)", "a file, found a folder"),
    "failed.csv": ("os.mkdir(at)", "a file, found a folder"),
    ".failed.csv.partial": ("os.symlink('../victim', at)", "a file, found a link"),
    "log.txt": ("os.remove(at)\nos.mkfifo(at)", "a file, found a pipe, a socket or a device"),
    "images": ("(out / 'images').rename(out / 'old')\nopen(at, 'w')", "a folder, found a file"),
    ".lock": ("os.remove(at)\nos.symlink('../victim', at)", "a file, found a link"),
    "sounds_whole.csv": ("os.symlink('../victim', at)", "a file, found a link"),
    "baseline.json": ("os.remove(at)\nos.mkfifo(at)", "a file, found a pipe, a socket or a device"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_what_a_program_leaves_at_a_name_of_ours_is_named_and_neither_followed_nor_waited_for(
    name: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    does, message = SPOILS[name]
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("secret")
    body = f"at = out / {name!r}\nif not (out / 'second').exists():\n    (out / 'second').touch()\n"
    body += "".join(f"    {line}\n" for line in does.split("\n"))
    if name == "images":
        body += "    time.sleep(0.5)\n"  # while its pictures are counted
    recipe = write_recipe(tmp_path, ALL + body)

    for _ in range(2):
        assert run(suite, recipe, out) == 3
        assert f"{out / name}: expected {message}; remove it" in last_line(capsys)

    assert victim.read_text() == "secret"
    if name != "baseline.json":
        (out / name).rmdir() if (out / name).is_dir() else (out / name).unlink()
        assert run(suite, recipe, out) == 0
        assert len(read_manifest(out)) == 8


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "its program moved or removed "),
        ("sys.exit(1)\n", "its program ended with exit code 1"),
        ("Path('cache.bin').touch()\n", "its program changed its working folder"),
    ],
)
def test_a_folder_that_a_program_puts_in_the_place_of_ours_is_left_alone(
    end: str, message: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    for name in ("manifest.jsonl", "outputs.jsonl", "failed.csv", ".lock"):
        (victim / name).write_text("{}")
    swap = "out.rename(out.parent / 'aside')\n(out.parent / 'out').symlink_to('victim')\n"
    assert run(suite, write_recipe(tmp_path, ALL + swap + end), out) == 3
    assert message in last_line(capsys)
    assert {path.name: path.read_text() for path in victim.iterdir()} == dict.fromkeys(
        ("manifest.jsonl", "outputs.jsonl", "failed.csv", ".lock"), "{}"
    )


def test_a_program_that_dies_without_its_log_and_with_folders_for_pictures_goes_on(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "if not (out / 'log.old').exists():\n    (out / 'log.txt').rename(out / 'log.old')\n"
    body += "    (out / 'images/s000-0.png').mkdir()\n    (out / 'outputs.refused.jsonl').mkdir()\n"
    body += "    (out / 'outputs.jsonl').mkdir()\n    sys.exit('no more')\n"
    recipe, out = write_recipe(tmp_path, body + ALL), tmp_path / "out"
    assert run(suite, recipe, out) == 3
    assert "it said: no more" in last_line(capsys)
    assert run(suite, recipe, out) == 3
    assert "outputs.jsonl cannot be read" in last_line(capsys)
    assert run(suite, recipe, out) == 0
    assert len(read_manifest(out)) == 8


@pytest.mark.parametrize("name", ["twice", "unknown id", "not json", "above", "link", "changes its folder"])
def test_what_broke_the_protocol_is_not_trusted_when_it_is_mended(name: str, suite: Suite, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, BAD[name][0] + "\n"), tmp_path / "out"
    assert run(suite, recipe, out) == 3
    before = (out / "images" / "s002-0.png").stat().st_mtime_ns
    assert (out / "outputs.refused.jsonl").exists()
    (tmp_path / "model" / "cache.bin").unlink(missing_ok=True)
    write_recipe(tmp_path)

    assert run(suite, recipe, out) == 0

    assert len(read_manifest(out)) == 8
    assert (out / "images" / "s002-0.png").stat().st_mtime_ns > before


def test_equal_pictures_may_be_meant(suite: Suite, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, ALIKE), tmp_path / "out"
    assert run(suite, recipe, out) == 3
    assert run(suite, recipe, out, "deterministic=true") == 0
    assert read_made(suite, out).identical == 8


def test_items_may_be_alike_where_that_is_said_and_seeds_may_not(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path / "items", ALIKE), tmp_path / "out"
    assert run(suite, recipe, out) == 3
    assert run(suite, recipe, out, "items_may_be_alike=true") == 0  # in the same folder: the digest is the same
    assert read_made(suite, out).identical == 8

    capsys.readouterr()
    recipe = write_recipe(tmp_path / "seeds", ALIKE.replace("(0, 0, seed)", "(0, 0, 0)"))
    assert run(suite, recipe, tmp_path / "seeds_out", "items_may_be_alike=true") == 3
    assert "those of s000 with seed 0 and of s000 with seed 1 are the same, pixel for pixel" in last_line(capsys)


def test_pythons_own_files_are_no_change(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "parts.py").write_text("ONE = 1\n")
    assert run(suite, write_recipe(tmp_path, "import parts\n" + ALL), tmp_path / "out") == 0
    assert (tmp_path / "model" / "__pycache__").is_dir()


def test_what_a_program_leaves_running_ends_with_it(suite: Suite, tmp_path: Path) -> None:
    assert run(suite, write_recipe(tmp_path, f"{CHILD}print(child.pid)\n{ALL}"), tmp_path / "out") == 0
    assert is_gone(int((tmp_path / "out" / "log.txt").read_text()))


def test_a_hanging_program_ends_with_all_that_it_started(suite: Suite, tmp_path: Path) -> None:
    body = f"{CHILD}print(os.getpid(), child.pid, flush=True)\ntime.sleep(600)\n"
    assert run(suite, write_recipe(tmp_path, body, timeout_s_per_image=0.125), tmp_path / "out") == 3
    pids = (tmp_path / "out" / "log.txt").read_text().split()
    assert len(pids) == 2
    assert all(is_gone(int(pid)) for pid in pids)


# --- what it prints

PRINTS = """
print("first words", flush=True)
def fill():
    while os.fstat(1).st_size < 64 * 2**20:
        os.write(1, b"x" * 2**20)
"""


@pytest.mark.parametrize("still", [True, False])
def test_what_a_program_prints_without_end_is_kept_at_its_beginning_and_its_end(
    still: bool, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "fill()\nos.write(1, b'.')\n"
    if still:  # it is shortened while the program is at work
        body += "while os.fstat(1).st_size > 4 * 2**20:\n    time.sleep(0.02)\ntime.sleep(0.5)\n"
    body += "print('\\nlast words', flush=True)\nsys.exit(1)\n"
    recipe, out = write_recipe(tmp_path, PRINTS + body), tmp_path / "out"

    for _ in range(2):  # the second time what is there already is long enough
        assert run(suite, recipe, out, seeds=1) == 3
        assert "it said: last words (" in last_line(capsys)

    said = (out / "log.txt").read_bytes()
    assert len(said) < 5 * 2**20
    assert said.startswith(b"first words\n")
    assert b"\n[left out, so that this file stays below 67,108,864 bytes]\n" in said
    assert said.endswith(b"last words\n")


def test_a_program_that_empties_its_log_says_nothing(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "print('much', flush=True)\nif (out / 'second').exists():\n    os.truncate(1, 0)\n"
                                    "(out / 'second').touch()\nsys.exit(1)\n")  # fmt: skip
    for words in ("it said: much", "it said nothing"):
        assert run(suite, recipe, tmp_path / "out") == 3
        assert words in last_line(capsys)


# --- going on


def test_a_program_that_died_goes_on_where_it_was(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
for number, (row, seed) in enumerate(pairs):
    if number == 5 and not (out / "died").exists():
        (out / "died").touch()
        picture(row, seed).save(out / "half.png")
        (out / f"images/{row['id']}-{seed}.png").write_bytes((out / "half.png").read_bytes()[:50])
        (out / "outputs.jsonl").open("a").write('{"id": "s0')
        os._exit(1)
    make(row, seed)
"""
    recipe, out = write_recipe(tmp_path, body), tmp_path / "out"
    assert run(suite, recipe, out) == 3
    assert "with 5 of 8 pictures answered" in last_line(capsys)
    before = {n: path.stat().st_mtime_ns for n, path in enumerate(sorted((out / "images").iterdir()))}

    assert run(suite, recipe, out) == 0

    assert len(read_manifest(out)) == 8
    after = {n: path.stat().st_mtime_ns for n, path in enumerate(sorted((out / "images").iterdir()))}
    assert [after[n] == before[n] for n in range(5)] == [True] * 5
    whole = tmp_path / "whole"
    assert run(suite, write_recipe(tmp_path), whole) == 0
    assert [path.read_bytes() for path in sorted((whole / "images").iterdir())] == [
        path.read_bytes() for path in sorted((out / "images").iterdir())
    ]


def test_a_program_that_answers_again_what_was_there_is_not_refused(suite: Suite, tmp_path: Path) -> None:
    body = """
count = 0
for row, seed in pairs:
    name = f"images/{row['id']}-{seed}.png"
    if not (out / name).exists():
        count += 1
        if count == 3:
            sys.exit(1)
        picture(row, seed).save(out / name)
    answer(id=row["id"], seed=seed, image=name)
"""
    recipe, out = write_recipe(tmp_path, body), tmp_path / "out"
    assert [run(suite, recipe, out) for _ in range(4)] == [3, 3, 3, 0]
    assert len(read_manifest(out)) == 8


def test_what_is_done_is_not_run_again(suite: Suite, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, "print('started')\n" + ALL), tmp_path / "out"
    assert run(suite, recipe, out) == 0
    manifest = (out / "manifest.jsonl").read_bytes()
    assert run(suite, recipe, out) == 0
    assert (out / "manifest.jsonl").read_bytes() == manifest
    assert (out / "log.txt").read_text() == "started\n"


@pytest.mark.parametrize("body", ["make(*pairs[0])\nsys.exit(1)\n", ALL])
def test_a_program_that_was_changed_does_not_go_on_with_the_pictures_of_before(
    body: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path, body), tmp_path / "out"
    code = run(suite, recipe, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_recipe(tmp_path, "# another\n" + ALL)
    capsys.readouterr()

    assert run(suite, recipe, out) == 2

    line = last_line(capsys)
    assert f"--out {out}: holds pictures that the program made before run.py was changed; choose another place" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    write_recipe(tmp_path, body)
    assert run(suite, recipe, out) == code
    assert run(suite, write_recipe(tmp_path, "# another\n" + ALL), tmp_path / "other") == 0


def test_a_program_that_made_nothing_yet_may_be_changed(suite: Suite, tmp_path: Path) -> None:
    recipe, out = (
        write_recipe(tmp_path, "for row, seed in pairs:\n    answer(id=row['id'], seed=seed, error='x')\n"),
        (tmp_path / "out"),
    )
    assert run(suite, recipe, out) == 3
    assert run(suite, write_recipe(tmp_path), out) == 0


def test_another_program_or_environment_is_another_model(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "size.txt").write_text("small")
    digests: set[str] = set()
    for name, body, words in (
        ("a", ALL, []),
        ("again", ALL, []),
        ("b", "# another\n" + ALL, []),
        ("c", ALL, ["env={SIZE: large}"]),
        ("d", ALL, [f"cwd={tmp_path}", f"command={json.dumps([sys.executable, 'model/run.py', *WORDS])}"]),
    ):
        recipe = write_recipe(tmp_path, body)
        assert run(suite, recipe, tmp_path / name, *words, seeds=1) == 0
        digests |= {row.model_sha256 for row in read_manifest(tmp_path / name)}
    assert len(digests) == 4


def test_more_seeds_go_on_and_fewer_are_refused(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    assert run(suite, recipe, out, "--seed", 1) == 0
    kept = (out / "images" / "s000-1.png").stat().st_mtime_ns
    assert run(suite, recipe, out, seeds=4) == 0
    assert len(read_manifest(out)) == 16
    assert (out / "images" / "s000-1.png").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert run(suite, recipe, out, seeds=2) == 2
    assert "was made with the seeds 0 to 3, which are not all asked for now" in last_line(capsys)


def test_another_recipe_or_suite_in_a_folder_is_refused(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    assert run(suite, recipe, out) == 0
    capsys.readouterr()
    for words, message in (
        (["commit=abc"], "was made by the recipe standin with other settings, not by standin"),
        (["name=other"], "was made by standin, not by other"),
    ):
        assert run(suite, recipe, out, *words) == 2
        assert message in last_line(capsys)
    assert run(suite, recipe, out, "timeout_s_per_image=7", "licence=MIT") == 0
    other = suite_of_its_own(tmp_path, 5)
    capsys.readouterr()
    assert run(other, recipe, out) == 2
    assert "was made for the suite small as it was before" in last_line(capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").touch()
    assert run(suite, recipe, tmp_path / "mine") == 2
    assert "holds something else than pictures of a baseline" in last_line(capsys)
    (tmp_path / "file").touch()
    assert run(suite, recipe, tmp_path / "file") == 2
    assert "expected a folder, found a file" in last_line(capsys)


def start(suite: Suite, recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["--recipe", recipe, "--suite", suite.folder, "--seeds", "2", "--out", out]
    return subprocess.Popen([sys.executable, "-m", "eval.baseline", *map(str, words)], stderr=subprocess.PIPE)


def wait_for(path: Path, text: str) -> str:
    for _ in range(600):
        if path.is_file() and text in path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(path)


def test_killed_outright_it_goes_on_once_its_program_has_ended(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path, SLOW), tmp_path / "out"
    process = start(suite, recipe, out)
    wait_for(out / "outputs.jsonl", "\n")
    process.kill()
    process.wait()
    program = int((out / "log.txt").read_text())

    assert run(suite, recipe, out) == 2

    assert "another command is at work in it, or the program of one that was killed" in last_line(capsys)
    os.kill(program, signal.SIGKILL)
    assert is_gone(program)
    assert not (out / "manifest.jsonl").exists()
    (out / "go").touch()
    assert run(suite, recipe, out) == 0
    assert len(read_manifest(out)) == 8
    assert len(list((out / "images").iterdir())) == 8


def test_interrupted_it_ends_its_program_and_says_how_to_go_on(suite: Suite, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, SLOW), tmp_path / "out"
    process = start(suite, recipe, out)
    wait_for(out / "outputs.jsonl", "\n")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"the same command goes on from here" in error
    assert is_gone(int((out / "log.txt").read_text()))
    assert not (out / "manifest.jsonl").exists()


# --- before it runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["command=[no-such-program]"], r"command: no-such-program: cannot be started \(No such file"),
        (["command=[model]"], "cannot be started"),
        ([f"weights={{run.py: {SHA256}}}"], "weights: .*run.py: expected sha256 aaa.*, found"),
        ([f"weights={{none.pth: {SHA256}}}"], r"weights: .*none.pth: cannot be read \(No such file"),
        (["weights={run.py: short}"], "weights"),
        (["cwd=nowhere"], "cwd: no such file or folder"),
        (["cwd=s3://bucket/model"], "cwd: .*expected a path on this machine"),
        (["command=[a, '{sound}']"], r"command: expected one of \{sounds\}, .*, found \{sound\}"),
        (["command=[a, '{model}']"], "model: must be set: the folder or the hub id"),
        (["model=x"], r"model: 'x' would be ignored"),
        (["command=[]"], "command: expected at least 1"),
        (["env={A: 1}"], "env"),
        (["takes=sounds.txt"], "takes"),
        (["timeout_s_per_image=0"], "timeout_s_per_image"),
        (["name='a b'"], "name"),
        (
            ["kind=comand"],
            "kind: expected one of command, images, shuffled, references, in_the_wild, found 'comand'; did you mean",
        ),
        (["comand=[a]"], "comand.*no such key"),
        (["--seeds", "0"], "--seeds: expected 1 to 10,000, found 0"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_wrong_recipe_is_one_line_before_anything_is_made(
    words: list[str], message: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    assert run(suite, recipe, tmp_path / "out", *words) == 2
    assert re.search(message, last_line(capsys))
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_suite_that_was_moved_is_heard_where_it_is(tmp_path: Path) -> None:
    suite_of_its_own(tmp_path).folder.rename(tmp_path / "moved")
    moved = read_suite(tmp_path / "moved")
    assert run(moved, write_recipe(tmp_path), tmp_path / "out") == 0
    assert {Path(row.sound).parent for row in read_manifest(tmp_path / "out")} == {tmp_path / "moved" / "windows"}


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_sound_that_is_not_as_it_was_prepared_is_refused(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_of_its_own(tmp_path)
    sound = suite.folder / "windows" / "s002.flac"
    sound.write_bytes(b"other") if damage == "changed" else sound.unlink()
    assert run(suite, write_recipe(tmp_path), tmp_path / "out") == 2
    assert f"{sound}: {'is not as it was prepared' if damage == 'changed' else 'cannot be read'}" in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_pictures_of_other_kinds_are_taken_as_they_are(suite: Suite, tmp_path: Path) -> None:
    body = """
for n, (row, seed) in enumerate(pairs):
    name = f"images/{row['id']}-{seed}.{('png', 'jpg', 'webp')[n % 3]}"
    image = picture(row, seed)
    (image if n % 3 else image.convert("RGBA")).save(out / name)
    answer(id=row["id"], seed=seed, image=name, seconds=0.5)
"""
    assert run(suite, write_recipe(tmp_path, body), tmp_path / "out") == 0
    made = read_made(suite, tmp_path / "out")
    assert len(made.pictures) == 8
    assert {np.asarray(Image.open(picture.path).convert("RGB")).shape for picture in made.pictures} == {(32, 32, 3)}


# --- programs that write a manifest themselves

OWN_MANIFEST = """
made = os.environ.get("MADE", "").split()
lines = []
for n, (row, seed) in enumerate(pairs):
    if made and row["id"] not in made:
        continue
    name = f"images/{n:06d}-000-{seed}.png"
    picture(row, seed).save(out / name)
    line = {"image": name, "mixed_with": [], "model": "/ours", "model_sha256": "a" * 64, "start_sec": 0.0}
    line |= {"seed": seed + int(os.environ.get("SHIFT", 0)), "sound": row["sound"], "sound_sha256": [row["sha256"]]}
    settings = {"clip_seconds": 5.0, "gains_db": [0.0], "guidance": 4.5, "precision": "float32", "separate": False}
    lines.append(json.dumps(line | {"settings": settings | {"steps": 20, "target_lufs": -30.0}}) + "\\n")
(out / "manifest.jsonl").write_text("".join(lines))
if made:
    for line in lines[:1]:
        (out / json.loads(line)["image"]).write_bytes(b"no picture")
sys.exit(int(os.environ.get("CODE", 0)))
"""


def test_a_programs_own_manifest_is_taken_as_it_is(suite: Suite, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, OWN_MANIFEST, trained_on=["audioset_train"]), tmp_path / "out"
    for _ in range(2):
        assert run(suite, recipe, out) == 0
        assert {row.model for row in read_manifest(out)} == {"/ours"}
        assert isinstance(read_manifest(out)[0].settings, GenerationSettings)
        made = read_made(suite, out)
        assert (len(made.pictures), made.missing, failures(out)) == (8, (), [])
        assert made.trained_on == ("audioset_train",)


def test_what_a_programs_own_manifest_lacks_is_counted(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path, OWN_MANIFEST, env={"MADE": "s001 s003"}), tmp_path / "out"
    assert run(suite, recipe, out, seeds=1) == 0
    assert capsys.readouterr().out.startswith("1 pictures of 1 of 4 items")
    rows = failures(out)
    assert [row["id"] for row in rows] == ["s000", "s001", "s002"]
    assert [row["error"] for row in rows] == ["no picture", "not a picture of a known kind", "no picture"]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SHIFT": "1"}, "its manifest names s000 with seed 2, which was not asked for"),
        ({"MADE": "s001"}, "none of its pictures can be used; .*: not a picture"),
        ({"MADE": "nobody"}, "wrote a manifest that cannot be taken: .* names no image"),
        ({"CODE": "1"}, "ended with exit code 1"),
    ],
)
def test_a_manifest_of_a_program_that_went_wrong_does_not_stay(
    env: dict[str, str], message: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, OWN_MANIFEST, env=env)
    assert run(suite, recipe, tmp_path / "out", seeds=1 if "MADE" in env else 2) == 3
    assert re.search(message, last_line(capsys))
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_released_pipeline_is_a_recipe_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = suite_of_its_own(tmp_path, 2)
    model = write_tiny_pixart(tmp_path / "model", clip_seconds=5.0)
    generate = load_recipe("generate", [f"model={model}"])
    assert isinstance(generate, CommandRecipe)
    words = [f"model={model}", f"command={json.dumps([*generate.command, '--steps', '2', '--device', 'cpu'])}"]

    assert run(suite, Path("generate"), tmp_path / "out", *words, seeds=1) == 0

    assert capsys.readouterr().out == f"2 pictures of 2 of 2 items in {tmp_path / 'out'}\n"
    made = read_made(suite, tmp_path / "out")
    assert [(shown.item.id, shown.seed) for shown in made.pictures] == [("s000", 0), ("s001", 0)]
    assert (made.model, made.missing, failures(tmp_path / "out")) == (str(model), (), [])
